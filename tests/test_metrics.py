"""AES against the paper's own table, intervals against published values."""

import numpy as np
import pytest

from o1core.metrics import accuracy_interval, accuracy_within, aes, budget_area, lengths_by_verdict, ockscore

MARCO = {"MATH": (73.8, 1156), "GSM8K": (89.2, 530), "GaoKao": (57.1, 1112)}


@pytest.mark.parametrize(
    "benchmark, accuracy, tokens, expected",
    [
        ("MATH", 77.5, 657, 0.58),  # O1-Pruner's row, as printed
        ("GSM8K", 91.4, 343, 0.43),
        ("GaoKao", 61.6, 664, 0.64),
        (
            "MATH",
            71.0,
            1113,
            -0.15,
        ),  # fast prompt loses accuracy: the definition, which the printed row does not follow
        ("GSM8K", 81.7, 447, -0.26),
        ("GaoKao", 56.6, 780, 0.26),  # DPO
    ],
)
def test_aes_of_the_papers_rows(benchmark, accuracy, tokens, expected):
    assert aes(*MARCO[benchmark], accuracy, tokens) == pytest.approx(expected, abs=0.006)


def test_a_loss_of_accuracy_weighs_more_than_a_gain():
    assert aes(0.5, 100, 0.6, 100) == pytest.approx(3 * 0.2)
    assert aes(0.5, 100, 0.4, 100) == pytest.approx(-5 * 0.2)
    assert aes(0.5, 100, 0.5, 150) == pytest.approx(-0.5)


def test_no_score_against_a_base_of_zero():
    with pytest.raises(ValueError, match="accuracy 0"):
        aes(0.0, 100, 0.5, 50)


def test_wilson_interval_of_81_in_263():
    """Newcombe (1998), table I: 81/263 has the 95 % score interval 0.2553 to 0.3662."""
    correct = np.zeros((263, 1))
    correct[:81] = 1
    assert accuracy_interval(correct) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("value", [0, 1])
def test_an_interval_holds_its_mean_at_the_ends(value):
    low, high = accuracy_interval(np.full((20, 1), value))
    assert low <= value <= high
    assert high - low > 0.1


def test_samples_of_one_problem_are_not_counted_as_independent():
    """8 equal samples of each problem say no more than one."""
    one = np.random.default_rng(0).integers(0, 2, size=(200, 1))
    many = accuracy_interval(np.repeat(one, 8, axis=1))
    assert many == pytest.approx(accuracy_interval(one), abs=0.005)


def test_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        chance = rng.beta(2, 1, size=(100, 1))  # mean 2/3
        low, high = accuracy_interval(rng.random((100, 4)) < chance)
        hits += low <= 2 / 3 <= high
    assert 925 <= hits <= 970


def test_ockscore_by_hand():
    assert ockscore(0.75, 1_000) == pytest.approx(75 + 10)
    assert ockscore(0.75, 100_000) == pytest.approx(75 - 10)
    assert ockscore(0.0, 20_000) == pytest.approx(-10 * 0.30102999566)
    with pytest.raises(ValueError, match="0 tokens"):
        ockscore(0.5, 0)


def test_lengths_of_right_and_of_wrong_answers():
    lengths, correct = np.array([[10, 20], [30, 100]]), np.array([[True, False], [True, False]])
    assert lengths_by_verdict(lengths, correct) == (20.0, 60.0)
    assert lengths_by_verdict(lengths, np.ones((2, 2), dtype=bool)) == (40.0, None)
    assert lengths_by_verdict(lengths, np.zeros((2, 2), dtype=bool)) == (None, 40.0)


def test_accuracy_within_a_budget_and_the_area_under_it():
    """Right at 10 and 30 tokens, wrong at 20 and 100: 0, then 1/4 from 10 on, 1/2 from 30 on."""
    lengths, correct = np.array([[10, 20], [30, 100]]), np.array([[True, False], [True, False]])
    assert accuracy_within(lengths, correct, [9, 10, 29, 30, 100]) == [0.0, 0.25, 0.25, 0.5, 0.5]
    assert budget_area(lengths, correct, 40) == pytest.approx((0.25 * 20 + 0.5 * 10) / 40)
    assert budget_area(lengths, correct, 20) == pytest.approx(0.25 * 10 / 20)


def test_the_area_is_the_mean_over_all_budgets():
    rng = np.random.default_rng(0)
    lengths, correct = rng.integers(1, 100, size=(20, 4)), rng.random((20, 4)) < 0.6
    curve = accuracy_within(lengths, correct, list(range(80)))
    assert budget_area(lengths, correct, 80) == pytest.approx(np.mean(curve))
