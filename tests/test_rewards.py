"""The rewards on hand-computed numbers, and the hole in the paper's."""

import pytest
import torch

from o1core.rewards import clip_reward, length_harmonizing, standardise


def test_hand_computed_rewards():
    lengths = torch.tensor([[10, 20, 30], [5, 5, 20]])  # means 20 and 10
    correct = torch.tensor([[1, 0, 1], [0, 0, 0]])  # means 2/3 and 0
    expected = [[2 - 1 + 2 / 3, 0 - 4 / 3, 2 / 3 - 1 + 2 / 3], [1.0, 1.0, -0.5]]
    torch.testing.assert_close(length_harmonizing(lengths, correct, 2.0), torch.tensor(expected))


def test_lambda_zero_rewards_length_alone():
    lengths, correct = torch.tensor([[8, 16]]), torch.tensor([[False, True]])
    torch.testing.assert_close(length_harmonizing(lengths, correct, 0.0), torch.tensor([[0.5, -0.25]]))


def test_the_paper_reward_pays_a_short_wrong_answer_more_than_any_right_one():
    """The hole: a wrong answer of 4 tokens among right ones of 60 earns more than the best right answer can."""
    lengths = torch.tensor([[4] + [60] * 15])
    correct = torch.tensor([[False] + [True] * 15])
    reward = length_harmonizing(lengths, correct, 2.0)[0]
    assert reward[0] > 10
    assert reward[1:].max() < 0.2


def test_the_clipped_reward_bounds_the_hole():
    lengths = torch.tensor([[4] + [60] * 15])
    correct = torch.tensor([[False] + [True] * 15])
    plain = length_harmonizing(lengths, correct, 2.0)
    bounded = clip_reward(plain)
    assert bounded.max() == 4.0
    assert torch.equal(bounded[0, 1:], plain[0, 1:])


def test_standardise_has_mean_zero_and_spread_one_over_the_whole_set():
    z = standardise(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    torch.testing.assert_close(z, torch.tensor([[-2.0, -1.0], [0.0, 3.0]]) / 3.5**0.5)


def test_standardise_of_equal_rewards_is_zero():
    assert torch.equal(standardise(torch.ones(2, 3)), torch.zeros(2, 3))


def test_tables_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"lengths \[2, 3\] and correct \[2, 2\]"):
        length_harmonizing(torch.ones(2, 3), torch.ones(2, 2), 2.0)
