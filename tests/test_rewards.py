"""The rewards and advantages on hand-computed numbers, and the two holes in the paper's."""

import math

import pytest
import torch

from o1core.choices import ADVANTAGES
from o1core.rewards import (
    REWARDS,
    advantage,
    alp,
    arora_zanette,
    clip_reward,
    correct_only,
    dot,
    drpo,
    grpo_lambda,
    kimi,
    l1_exact,
    l1_max,
    length_harmonizing,
    overlong,
    prime_rl,
    prime_rl_gate,
    reward,
    shorter_better,
    smart_thinker,
    standardise,
    truncation,
)


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


@pytest.mark.parametrize(("right", "break_even"), [(9, 0.36), (2, 0.71)])
def test_the_paper_reward_pays_a_short_wrong_answer_below_a_break_even_length(right, break_even):
    """The second hole: L_ref / L - 1 - lambda A_ref > 0 where L < L_ref / (1 + lambda A_ref), at lambda 2 and A_ref .9, .2.

    Ten samples of mean length 1,000: a wrong one just below or just above the break-even length, nine that make up for it.
    """
    correct = torch.tensor([[False] + [True] * right + [False] * (9 - right)])
    assert round(1 / (1 + 2 * right / 10), 2) == break_even
    for share, is_paid in ((break_even - 0.01, True), (break_even + 0.01, False)):
        short = round(1000 * share)
        others = [(10_000 - short) // 9] * 8
        lengths = torch.tensor([[short, *others, 10_000 - short - sum(others)]])
        assert (length_harmonizing(lengths, correct, 2.0)[0, 0] > 0) == is_paid


def test_correct_only_pays_no_wrong_answer_whatever_its_length():
    lengths, correct = torch.tensor([[1] + [100] * 9]), torch.tensor([[False] + [True] * 9])
    assert correct_only(lengths, correct, 2.0)[0, 0] == -1.8


def test_standardise_has_mean_zero_and_spread_one_over_the_whole_set():
    z = standardise(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    torch.testing.assert_close(z, torch.tensor([[-2.0, -1.0], [0.0, 3.0]]) / 3.5**0.5)


def test_standardise_of_equal_rewards_is_zero():
    """0.8 too, whose mean in float32 is not quite 0.8."""
    for value in (1.0, 0.8):
        assert torch.equal(standardise(torch.full((20, 5), value)), torch.zeros(20, 5))


@pytest.mark.parametrize("kind", REWARDS)
def test_tables_of_different_shape_are_refused(kind):
    with pytest.raises(ValueError, match=r"lengths \[2, 3\] and correct \[2, 2\]"):
        reward(kind, torch.ones(2, 3), torch.ones(2, 2), torch.ones(2), 2.0, 1.0)


LENGTHS = torch.tensor([[10, 20, 30, 40], [8, 8, 4, 16]])
RIGHT = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]])


def test_correct_only_gives_a_wrong_answer_nothing_for_being_short():
    # The right ones of the first row: 10 and 30, mean 20; its accuracy is a half. The second row has none.
    expected = [[20 / 10 - 1 + 1, -1, 20 / 30 - 1 + 1, -1], [0.0, 0, 0, 0]]
    torch.testing.assert_close(correct_only(LENGTHS, RIGHT, 2.0), torch.tensor(expected))


def test_correct_only_closes_the_hole():
    lengths, correct = torch.tensor([[4] + [60] * 15]), torch.tensor([[False] + [True] * 15])
    earned = correct_only(lengths, correct, 2.0)[0]
    assert earned[0] < 0 < earned[1]


def test_truncation_counts_what_is_not_finished_in_time_as_wrong():
    right = torch.ones_like(LENGTHS)
    expected = [[1.0, 1, 0, 0], [1, 1, 1, 0]]
    torch.testing.assert_close(truncation(LENGTHS, right, torch.tensor([20.0, 15.0])), torch.tensor(expected))
    assert truncation(LENGTHS, 0 * right, torch.tensor([99.0, 99.0])).sum() == 0


def test_arora_zanette_takes_z_scores_among_the_right():
    # Right: 10 and 30, mean 20, standard deviation 10: z = -1 and 1.
    low, high = 1 / (1 + math.e), 1 / (1 + math.exp(-1))
    expected = [[1 - 0.4 * low, 0, 1 - 0.4 * high, 0], [0.0, 0, 0, 0]]
    torch.testing.assert_close(arora_zanette(LENGTHS, RIGHT, 0.4), torch.tensor(expected))


def test_arora_zanette_of_equal_lengths_is_one_less_half_of_alpha():
    lengths, correct = torch.tensor([[7, 7, 50]]), torch.tensor([[1, 1, 0]])
    torch.testing.assert_close(arora_zanette(lengths, correct, 0.4), torch.tensor([[0.8, 0.8, 0.0]]))


def test_kimi_pays_short_right_answers_and_never_wrong_ones():
    # 0.5 - (L - 10) / 30: 1/2, 1/6, -1/6, -1/2; the second row over 4..16: 1/6, 1/6, 1/2, -1/2, none of them right.
    expected = [[1 + 1 / 2, 0, 1 - 1 / 6, -1 / 2], [0.0, 0, 0, -1 / 2]]
    torch.testing.assert_close(kimi(LENGTHS, RIGHT, 1.0), torch.tensor(expected))
    torch.testing.assert_close(kimi(torch.full((1, 2), 9), torch.tensor([[1, 0]]), 1.0), torch.tensor([[1.0, 0.0]]))


def test_l1_exact_pays_for_the_distance_to_the_budget_right_or_wrong():
    expected = [[1 - 0.1, 0 - 0.0, 1 - 0.1, 0 - 0.2], [-0.08, -0.08, -0.12, 0.0]]
    torch.testing.assert_close(l1_exact(LENGTHS, RIGHT, torch.tensor([20.0, 16.0]), 0.01), torch.tensor(expected))


def test_l1_max_pays_right_answers_below_the_budget_up_to_one():
    right = torch.ones_like(LENGTHS)
    # 0.1 (20 - L) + 0.5 = 1.5, 0.5, -0.5, -1.5, cut to 0..1; 0.1 (10 - L) + 0.5 = 0.7, 0.7, 1.1, -0.1.
    expected = [[1.0, 0.5, 0.0, 0.0], [0.7, 0.7, 1.0, 0.0]]
    torch.testing.assert_close(l1_max(LENGTHS, right, torch.tensor([20.0, 10.0]), 0.1), torch.tensor(expected))
    assert l1_max(LENGTHS, 0 * right, torch.tensor([20.0, 10.0]), 0.1).sum() == 0


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("reward", [[1.0, 3.0], [5.0, 5.0]]),
        ("z-score", [[1.0, 3.0], [5.0, 5.0]]),  # standardised later, over what was picked
        ("centred", [[-1.0, 1.0], [0.0, 0.0]]),
        ("rloo", [[-2.0, 2.0], [0.0, 0.0]]),  # 1 - 3, 3 - 1
        ("group", [[-1.0, 1.0], [0.0, 0.0]]),
        ("batch", [[-(2**0.5), 2**0.5], [0.0, 0.0]]),  # the centred four have the spread sqrt(1/2)
    ],
)
def test_advantages(kind, expected):
    torch.testing.assert_close(advantage(kind, torch.tensor([[1.0, 3.0], [5.0, 5.0]])), torch.tensor(expected))


def test_every_named_reward_and_advantage_exists():
    for kind in REWARDS:
        assert reward(kind, LENGTHS, RIGHT, torch.tensor([20.0, 20.0]), 2.0, 0.1).shape == LENGTHS.shape
    for kind in ADVANTAGES:
        assert advantage(kind, LENGTHS.float()).shape == LENGTHS.shape


FOUR = torch.tensor([[10, 20, 30, 40], [10, 20, 30, 40]])
HALF_AND_NONE = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]])


def test_alp_by_hand():
    """p = 1/2 and, of four wrong answers, 1/4."""
    expected = [[1 - 0.5 * 0.1, -0.5 * 0.2, 1 - 0.5 * 0.3, -0.5 * 0.4], [-0.25 * L / 100 for L in (10, 20, 30, 40)]]
    torch.testing.assert_close(alp(FOUR, HALF_AND_NONE, torch.tensor([100.0, 100.0]), 1.0), torch.tensor(expected))


def test_shorter_better_by_hand():
    """The shortest right answer has 10 tokens; where none is right the mean of 25 counts."""
    expected = [[2.0, -0.1, 2 - 0.2, -0.3], [-0.15, -0.05, -0.05, -0.15]]
    torch.testing.assert_close(shorter_better(FOUR, HALF_AND_NONE, 2.0, 0.01), torch.tensor(expected))


def test_smart_thinker_by_hand():
    """m = 25, s^2 = 125, m_c = 20, s_c^2 = 100: L_opt = (2500 - 2500) / -25 = 0, cut to 10. Penalties 0 and 20, their mean 5:
    a = .5 / 15."""
    found = smart_thinker(FOUR, HALF_AND_NONE)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 1 - 20 * 0.5 / 15, 0.0], [0.0] * 4]))
    assert found[0, 2] == pytest.approx(found[0].mean()), "no right answer earns less than the mean"


def test_smart_thinker_leaves_solved_problems_alone():
    torch.testing.assert_close(smart_thinker(FOUR[:1], torch.ones(1, 4)), torch.ones(1, 4))


def test_smart_thinker_never_punishes_a_right_answer():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 500, (200, 8), generator=generator)
    correct = torch.rand(200, 8, generator=generator) < 0.5
    found = smart_thinker(lengths, correct)
    above = found - found.mean(1, keepdim=True)
    assert above[correct].min() > -1e-4 and found.isfinite().all()


def test_prime_rl_s_gate_by_hand():
    """The right answers of 10 and 30 tokens have the mean 20: the short one earns 1 + 1/2, the long one 1."""
    torch.testing.assert_close(prime_rl_gate(FOUR, HALF_AND_NONE), torch.tensor([[1.5, 0, 1, 0], [0.0] * 4]))


def test_dot_by_hand():
    """Fifteen answers of 100 tokens and one of 500: mean 125, deviation 100, T = 425, which 500 passes by 75. With one of
    260: 110, 40, T = 230, passed by 30, which is less than 32; with one of 276: 111, 44, T = 243, passed by 33."""
    for longest, kept in ((500, 0.0), (276, 0.0), (260, 1.0)):
        lengths = torch.tensor([[100] * 15 + [longest]] * 2)
        correct = torch.ones(2, 16)
        correct[1, 0] = 0  # not solved by all: nothing is cut
        expected = correct.clone()
        expected[0, 15] = kept
        torch.testing.assert_close(dot(lengths, correct), expected)
    # Ten numbers: the most that one can be above their mean is 9 / sqrt(10) = 2.85 deviations.
    lengths = torch.tensor([[1.0] * 9 + [10_000.0]])
    torch.testing.assert_close(dot(lengths, torch.ones(1, 10)), torch.ones(1, 10))


def test_drpo_by_hand():
    """C 100, lambda .1: the right answers of 10 and 30 tokens have (1 - L / C) / lambda of 9 and 7, so that the short one has
    e^2 times the weight of the long one. The two wrong ones share -K."""
    weight = math.exp(2) / (1 + math.exp(2))
    expected = torch.tensor([[4 * weight, -2.0, 4 * (1 - weight), -2.0], [0.0] * 4])
    found = drpo(FOUR, HALF_AND_NONE, torch.tensor([100.0, 100.0]), 0.1)
    torch.testing.assert_close(found, expected)
    assert found[0].sum() == pytest.approx(0, abs=1e-5)


def test_prime_rl_by_hand():
    expected = [[1 - 0.125, -0.25, 1 - 0.375, -0.5], [0.0] * 4]
    torch.testing.assert_close(prime_rl(FOUR, HALF_AND_NONE, 1.0), torch.tensor(expected))


def test_overlong_by_hand():
    """Limit 40, margin 20: 0 up to 20, -1/2 at 30, -1 from 40 on."""
    expected = [[1.0, 0.0, 0.5, -1.0], [0.0, 0.0, -0.5, -1.0]]
    torch.testing.assert_close(overlong(FOUR, HALF_AND_NONE, torch.tensor([40.0, 40.0]), 0.5), torch.tensor(expected))
    assert overlong(torch.tensor([[400]]), torch.ones(1, 1), torch.tensor([40.0]), 0.5) == 0.0


def test_grpo_lambda_counts_length_where_problems_are_solved():
    lengths = FOUR[:1].repeat(3, 1)
    correct = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    found = grpo_lambda(lengths, correct, 1 / 3, 0.4)
    torch.testing.assert_close(found[0], correct[0].float())
    # Of 10, 20, 30: mean 20, deviation sqrt(200 / 3), so z is -1.2247, 0, 1.2247 and its sigmoid .22710, .5, .77290.
    torch.testing.assert_close(found[1], torch.tensor([0.909159, 0.8, 0.690841, 0.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(grpo_lambda(lengths, correct, 0.0, 0.4), correct.float())
    assert grpo_lambda(lengths, correct, 1.0, 0.4)[2].eq(0).all()
