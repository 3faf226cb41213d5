"""AES against the paper's own table, intervals against published values."""

import numpy as np
import pytest

from o1core.errors import UserError
from o1core.metrics import (
    Answers,
    Spread,
    accuracy_interval,
    accuracy_within,
    aes,
    budget_area,
    lengths_by_verdict,
    mean_interval,
    mean_paired,
    ockscore,
    over_seeds,
    paired,
    paired_over_seeds,
    student,
)

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


@pytest.mark.parametrize(
    "freedom, quantile",
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_students_quantiles_are_the_published_ones(freedom, quantile):
    """The column of .975 of every textbook's table."""
    assert student(freedom) == pytest.approx(quantile, abs=5e-4)
    assert student(10_000) == pytest.approx(1.9602, abs=5e-5)


@pytest.mark.parametrize("value", [False, True])
def test_a_few_problems_that_all_agree_leave_room(value):
    """2 problems x 4 wrong samples are no proof that nothing is ever right; 1 problem says nothing of others."""
    for problems, width in ((2, 0.9), (1, 0.9), (20, 0.1)):
        low, high = accuracy_interval(np.full((problems, 4), value))
        assert low <= value <= high and high - low > width
    low, high = accuracy_interval(np.array([[True, False], [False, True]]))  # no two means differ, either
    assert low < 0.1 and high > 0.9


def test_the_interval_of_a_mean_is_students():
    """Cushny and Peebles' ten differences of sleep, with which Student made his t known: 1.58, from 0.70 to 2.46."""
    hours = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    found = mean_interval(hours)
    assert (found.mean, found.low, found.high) == pytest.approx((1.58, 0.7001, 2.4599), abs=1e-4)
    assert mean_interval(hours[:1]) == Spread(1.2), "one value has no interval"


def test_differences_that_all_agree_have_an_interval_as_wide_as_two_that_do_not():
    same = mean_interval(np.zeros(20), step=1.0)
    two = mean_interval(np.array([1.0, -1.0, *np.zeros(18)]), step=1.0)
    assert same == two and same.high > 0.1
    assert mean_interval(np.zeros(20), step=0.25).high == pytest.approx(same.high / 4)


def answers(lengths: np.ndarray, correct: np.ndarray) -> Answers:
    return Answers([str(i) for i in range(len(lengths))], lengths, correct)


def test_paired_differences_by_hand():
    before = answers(np.array([[10, 20], [30, 30], [40, 40]]), np.array([[True, False], [True, True], [False, False]]))
    after = answers(np.array([[10, 10], [30, 10], [40, 42]]), np.array([[True, True], [True, True], [False, False]]))
    found = paired(before, after)
    assert found.accuracy.mean == pytest.approx(0.5 / 3) and found.tokens.mean == pytest.approx(-14 / 3)
    half = 4.302652729749464 * np.std([-5, -10, 1], ddof=1) / 3**0.5
    assert (found.tokens.low, found.tokens.high) == pytest.approx((-14 / 3 - half, -14 / 3 + half))
    # Accuracy: (.5, 0, 0), whose squares are less than those of one completion better and one worse, 2 x (1/2)^2: so wide
    # that it is cut to what a difference of shares can be.
    assert 4.302652729749464 * (0.5 / 2 / 3) ** 0.5 > 1 + 0.5 / 3
    assert (found.accuracy.low, found.accuracy.high) == (-1.0, 1.0)
    assert found.aes.mean == pytest.approx(aes(0.5, 170 / 6, 4 / 6, 142 / 6))


def test_the_intervals_of_a_comparison_cover_the_truth_about_95_times_in_100():
    """Problems of very different difficulty and length; after pruning, accuracy rises by .05 and tokens fall by 30 %."""
    rng = np.random.default_rng(0)
    truth = {"accuracy": 0.05, "tokens": -0.3 * 150, "aes": aes(0.6, 150, 0.65, 105)}
    hits = dict.fromkeys(truth, 0)
    for _ in range(200):
        chance, length = rng.uniform(0.3, 0.9, (80, 1)), rng.uniform(100, 200, (80, 1))
        sides = [
            answers(rng.normal(factor * length, 20, (80, 2)), rng.random((80, 2)) < chance + gain)
            for factor, gain in ((1.0, 0.0), (0.7, 0.05))
        ]
        found = paired(*sides)
        for name in truth:
            hits[name] += getattr(found, name).low <= truth[name] <= getattr(found, name).high
    assert all(180 <= count <= 198 for count in hits.values()), hits


def test_the_score_has_the_same_interval_every_time_and_none_where_there_is_nothing_to_say():
    rng = np.random.default_rng(0)
    before, after = (answers(rng.integers(10, 90, (30, 2)), rng.random((30, 2)) < 0.6) for _ in range(2))
    found = paired(before, after)
    assert found == paired(before, after) and found.aes.low < found.aes.mean < found.aes.high
    wrong = answers(before.lengths, np.zeros((30, 2), bool))
    assert paired(wrong, after).aes is None, "a base that gets nothing right has no score"
    assert paired(before, before).aes == Spread(0.0), "no resample differs: no interval"
    rare = answers(before.lengths, np.eye(30, 2, dtype=bool))
    assert paired(rare, after).aes.low is None, "the base of many a resample has nothing right"


def test_other_problems_are_not_compared():
    one = answers(np.ones((2, 1)), np.ones((2, 1), bool))
    with pytest.raises(UserError, match="different problems"):
        paired(one, Answers(["a", "b"], one.lengths, one.correct))


def test_the_average_over_tests_combines_their_intervals():
    """Two tests with the same answers: the same mean, and arms shorter by the root of two."""
    rng = np.random.default_rng(2)
    pair = tuple(answers(rng.integers(10, 90, (50, 1)), rng.random((50, 1)) < 0.7) for _ in range(2))
    one, two = paired(*pair), mean_paired([pair, pair])
    for name in ("accuracy", "tokens"):
        first, both = getattr(one, name), getattr(two, name)
        assert both.mean == pytest.approx(first.mean)
        assert both.high - both.mean == pytest.approx((first.high - first.mean) / 2**0.5)
    assert two.aes.high - two.aes.low == pytest.approx((one.aes.high - one.aes.low) / 2**0.5, rel=0.1)


def test_several_seeds_have_an_interval_over_seeds():
    """1, 2, 3: 2 +- 4.303 / sqrt(3). Pooling the problems of three seeds that differ by much would be far narrower."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 4.302652729749464 / 3**0.5, 2 + 4.302652729749464 / 3**0.5))
    assert over_seeds([0.9, 0.95], 0.0, 1.0).high == 1.0
    assert over_seeds([0.5]) == over_seeds([0.5, 0.5]) == Spread(0.5)
    before = answers(np.full((100, 1), 100), np.arange(100)[:, None] < 60)
    runs = [answers(np.full((100, 1), 50), np.arange(100)[:, None] < 60 + gain) for gain in (0, 10, 20)]
    wide = paired_over_seeds([[(before, after)] for after in runs])
    assert (wide.accuracy.low, wide.accuracy.high) == pytest.approx((0.1 - 0.2484, 0.1 + 0.2484), abs=1e-4)
    assert paired_over_seeds([[(before, runs[1])]]) == paired(before, runs[1]), "one seed: over its problems"


def test_a_spread_is_written_with_its_ends():
    assert f"{Spread(0.025, 0.01, 0.04).scaled(100):+.1f}" == "+2.5 (+1.0 to +4.0)"
    assert f"{Spread(2.5).scaled(-1):.2f}" == "-2.50"
