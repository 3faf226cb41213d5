"""HAPO, A-DLP and LEAD on hand-computed numbers, and what they remember from round to round."""

import math

import pytest
import torch

from o1core.rewards import a_dlp, hapo, lead, lead_efficiency, lead_share, lead_target, length_harmonizing, score

PROBLEMS = ["a", "b"]
FOUR = torch.tensor([[10, 20, 30, 40], [10, 20, 30, 40]])
HALF_AND_NONE = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]])


def test_hapo_by_hand():
    """h = 20: L / h is 1/2, 1, 3/2 and 2, so cos is 1/sqrt 2, 0, -1/sqrt 2 (cut to -.7 where right) and -1."""
    root = 1 / math.sqrt(2)
    found = hapo(FOUR, HALF_AND_NONE, PROBLEMS, {"shortest": {"a": 20, "b": 20}}, 0.5)[0]
    expected = [[1 + root / 2, 0, 1 - 0.35, -0.5], [0, 0, -root / 2, -0.5]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_hapo_without_history_counts_accuracy_alone():
    torch.testing.assert_close(hapo(FOUR, HALF_AND_NONE, PROBLEMS, {}, 1.0)[0], HALF_AND_NONE.float())


def test_hapo_does_not_punish_wrong_answers_shorter_than_the_history():
    assert hapo(torch.tensor([[5, 19]]), torch.zeros(1, 2), ["a"], {"shortest": {"a": 20}}, 1.0)[0].eq(0).all()


def test_a_dlp_by_hand():
    expected = [[1 - 0.1, -0.2, 1 - 0.3, -0.4], [-0.1, -0.2, -0.3, -0.4]]
    torch.testing.assert_close(a_dlp(FOUR, HALF_AND_NONE, {"penalty": 0.01}, 1.0, 0.1)[0], torch.tensor(expected))


def test_the_penalty_of_a_dlp_follows_the_accuracy_and_stays_above_zero():
    five = torch.ones(1, 5)
    for right, expected in ((4, 0.03), (2, 0.0)):
        correct = torch.tensor([[1] * right + [0] * (5 - right)])
        _, state = a_dlp(five, correct, {"penalty": 0.01, "reference": 0.6}, 1.0, 0.1)
        assert state == {"penalty": pytest.approx(expected), "reference": 0.6}


def test_the_target_of_lead_is_the_mean_of_the_right_ones_within_bounds():
    longest = torch.tensor([100.0, 100.0])
    assert lead_target(FOUR, HALF_AND_NONE, longest, 1).tolist() == [20, 100]
    assert lead_target(FOUR, HALF_AND_NONE, longest, 25).tolist() == [25, 100]
    assert lead_target(FOUR, HALF_AND_NONE, torch.tensor([15.0, 15.0]), 1).tolist() == [15, 15]


def test_lead_by_hand():
    """Targets 20 and 50. E of the first row: 1/2, 1, 1/2, 0 (mean 1/2, spread sqrt(1/8)); of the second, which no answer
    solves, 1/5, 2/5, 3/5, 4/5. A of the first row: z = 1, -1, 1, -1."""
    longest = torch.tensor([50.0, 50.0])
    efficiency = lead_efficiency(FOUR, torch.tensor([20.0, 50.0]))
    torch.testing.assert_close(efficiency, torch.tensor([[0.5, 1, 0.5, 0], [0.2, 0.4, 0.6, 0.8]]))
    z = math.sqrt(2)  # 1/2 over sqrt(1/8)
    second = [(2 * k - 3) / math.sqrt(5) for k in range(4)]
    expected = [[0.6, -0.6 + 0.4 * z, 0.6, -0.6 - 0.4 * z], [0.4 * s for s in second]]
    earned, state = lead(FOUR, HALF_AND_NONE, longest, {"share": 0.6}, 1, 0.0)
    torch.testing.assert_close(earned, torch.tensor(expected))
    assert state == {"share": 0.6}


def test_lead_keeps_a_share_of_accuracy():
    longest = torch.tensor([50.0, 50.0])
    none, least = (lead(FOUR, HALF_AND_NONE, longest, {"share": share}, 1, 0.0)[0] for share in (0.0, 0.3))
    torch.testing.assert_close(none, least)


def test_the_efficiency_of_lead_ends_at_minus_one():
    assert lead_efficiency(torch.tensor([[1000]]), torch.tensor([10.0])).item() == -1


def test_the_share_of_lead_by_hand():
    """Accuracy: row means 1/2 and 0, mean 1/4; variance 1/8 within rows and 1/16 between, so D_c = sqrt(3)/4 / (1/4) 3/4.
    Efficiency of the right ones, 1/2 twice: no spread, so D_e = 0 and the target is 1."""
    longest = torch.tensor([50.0, 50.0])
    assert lead_share(FOUR, HALF_AND_NONE, longest, 1, 0.5, 0.05) == pytest.approx(0.95 * 0.5 + 0.05)
    # Lengths 10 and 50 around 30: E = 1/3 twice. 15 and 30 around 22.5 would be even too; three right ones differ:
    lengths, right = torch.tensor([[10, 20, 60, 90]]), torch.tensor([[1, 1, 1, 0]])
    # L* = 30, E = 1/3, 2/3, 0 of the right ones: mean 1/3, variance 2/27. A: mean 3/4, variance 3/16.
    of_accuracy = math.sqrt(3 / 16) / 0.75 * 0.25
    of_efficiency = math.sqrt(2 / 27) / (1 / 3) * (2 / 3) / 2
    target = of_accuracy / (of_accuracy + of_efficiency)
    found = lead_share(lengths, right, torch.tensor([100.0]), 1, 0.5, 0.1)
    assert found == pytest.approx(0.9 * 0.5 + 0.1 * target, rel=1e-6)


def test_the_share_of_lead_stays_where_nothing_differs():
    even = torch.full((2, 3), 7)
    assert lead_share(even, torch.ones(2, 3), torch.tensor([7.0, 7.0]), 1, 0.4, 0.05) == 0.4
    assert lead_share(even, torch.zeros(2, 3), torch.tensor([7.0, 7.0]), 1, 0.4, 0.05) == 0.4


def test_the_state_of_hapo_is_a_running_minimum():
    _, first = hapo(FOUR, HALF_AND_NONE, PROBLEMS, {}, 1.0)
    assert first == {"shortest": {"a": 10}}
    right = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 1]])
    _, later = hapo(FOUR + 5, right, ["b", "a"], first, 1.0)
    assert later == {"shortest": {"a": 10, "b": 25}}


def test_the_state_of_a_dlp_starts_at_alpha_and_follows_the_first_rounds_accuracy():
    _, first = a_dlp(FOUR, HALF_AND_NONE, {}, 0.01, 0.1)
    assert first == {"penalty": 0.01, "reference": 0.25}
    _, better = a_dlp(FOUR, torch.ones(2, 4), first, 0.01, 0.1)
    assert better["penalty"] == pytest.approx(0.01 + 0.1 * 0.75)
    _, fixed = a_dlp(FOUR, HALF_AND_NONE, {}, 0.01, 0.1, accuracy_reference=0.2)
    assert fixed["penalty"] == pytest.approx(0.015)


def test_lead_uses_the_share_that_this_round_has_moved():
    longest = torch.tensor([50.0, 50.0])
    share = lead_share(FOUR, HALF_AND_NONE, longest, 1, 0.5, 0.05)
    earned, state = lead(FOUR, HALF_AND_NONE, longest, {}, 1, 0.05)
    assert state == {"share": share}
    torch.testing.assert_close(earned, lead(FOUR, HALF_AND_NONE, longest, {"share": share}, 1, 0.0)[0])


def test_other_rewards_keep_no_state():
    named = {"lengths": FOUR, "correct": HALF_AND_NONE, "lam": 2.0, "state": {}}
    assert score(length_harmonizing, named)[1] == {}
