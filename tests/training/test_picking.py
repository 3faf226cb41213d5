"""What a round trains on: rewards over all samples, m of them picked, pairs and shortest ones, and what is left out."""

from dataclasses import replace

import pytest
import torch

from o1core.errors import UserError
from o1core.problems import drawn_budget
from o1core.recipe import Recipe
from o1core.runs.loop import score_round
from o1core.seeds import seed_of
from o1core.training import Picked, Progress, Rollouts
from o1core.types import Group, Sample
from tests.training.test_step import make_examples


def groups_of(lengths, correct, cut) -> list[Group]:
    """One problem a row; sample k of problem p has lengths[p][k] tokens."""
    return [
        Group(
            f"p{p}",
            torch.tensor([1, 2], dtype=torch.int32),
            tuple(
                Sample(torch.full((n,), k, dtype=torch.int32), torch.zeros(n), "length" if c else "stop", None, bool(a))
                for k, (n, a, c) in enumerate(zip(*row))
            ),
        )
        for p, row in enumerate(zip(lengths, correct, cut))
    ]


def pick(groups: list[Group], recipe: Recipe, round_index: int, state: dict | None = None) -> Picked:
    """As the loop does."""
    scored = score_round(Rollouts(groups, recipe.sampling.max_new_tokens), recipe, Progress(reward=state or {}))
    seed = seed_of(recipe.seed, round_index, "pick")
    return scored.pick(recipe.objective, seed, recipe.reward.truncated == "mask")


def test_advantages_are_taken_over_all_samples_and_m_of_them_picked():
    groups = groups_of([[10, 20, 30]] * 40, [[1, 0, 1]] * 40, [[0, 0, 0]] * 40)
    by_sample = {10: 1 + 2 / 3, 20: -4 / 3, 30: -1 / 3 + 2 / 3}
    picked = pick(groups, Recipe.of(samples=3, picked=2), 0)
    assert len(picked.examples) == 80
    assert all(e.advantage == pytest.approx(by_sample[len(e.ids)], abs=1e-6) for e in picked.examples)
    pairs = [(e.problem, len(e.ids)) for e in picked.examples]
    assert len(set(pairs)) == 80, "a sample is picked twice"
    assert {n for _, n in pairs} == {10, 20, 30}
    assert pairs == [(e.problem, len(e.ids)) for e in pick(groups, Recipe.of(samples=3, picked=2), 0).examples]
    assert pairs != [(e.problem, len(e.ids)) for e in pick(groups, Recipe.of(samples=3, picked=2), 1).examples]


def test_official_rewards_are_clipped_then_standardised_over_what_was_picked():
    groups = groups_of([[1, 100, 100, 100]], [[0, 1, 1, 1]], [[0] * 4])
    recipe = Recipe.of(samples=4, picked=4, reward_low=-2.0, reward_high=4.0, advantage="z-score")
    rewards = torch.tensor([74.25 - 2 * 0.75, *[75.25 / 100 - 1 + 0.5] * 3]).clamp(-2, 4)
    expected = (rewards - rewards.mean()) / rewards.std(correction=0)
    found = {int(e.ids[0]): e.advantage for e in pick(groups, recipe, 0).examples}
    assert [found[k] for k in range(4)] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("truncated, count", [("keep", 3), ("mask", 2), ("wrong", 3)])
def test_truncated_samples_are_masked_on_demand_and_judged_by_their_grader_alone(truncated, count):
    groups = groups_of([[10, 10, 10]], [[1, 1, 1]], [[0, 0, 1]])
    picked = pick(groups, Recipe.of(samples=3, picked=3, truncated=truncated), 0)
    assert (len(picked.examples), picked.masked) == (count, 3 - count)
    rewards = {int(e.ids[0]): e.advantage for e in picked.examples}
    assert all(reward == pytest.approx(0, abs=1e-6) for reward in rewards.values())


def test_completions_over_the_cutoff_are_left_out_and_counted():
    groups = groups_of([[10, 20]], [[1, 1]], [[0, 0]])
    picked = pick(groups, Recipe.of(samples=2, picked=2, cutoff=21), 0)
    assert ([len(e.ids) for e in picked.examples], picked.over_cutoff) == ([10], 1)


def by_problem(picked) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list] = {}
    for e in picked.examples:
        found.setdefault(e.problem, []).append((len(e.ids), e.advantage))
    return found


def test_sft_takes_the_shortest_right_ones():
    groups = groups_of([[9, 7, 8, 3], [5, 6, 7, 8]], [[1, 1, 1, 0], [0, 0, 1, 0]], [[0] * 4] * 2)
    picked = pick(groups, Recipe.of(samples=4, picked=2, objective="sft"), 0)
    assert by_problem(picked) == {"p0": [(7, 1.0), (8, 1.0)], "p1": [(7, 1.0)]}
    none = pick(groups_of([[5, 6]], [[0, 0]], [[0, 0]]), Recipe.of(samples=2, picked=2, objective="sft"), 0)
    assert (none.examples, none.uniform) == ([], 1)


def test_dpo_holds_the_shortest_right_one_against_the_longest():
    lengths = [[9, 7, 12, 3], [5, 6, 7, 8], [4, 5, 6, 9], [5, 5, 5, 5]]
    correct = [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]
    picked = pick(groups_of(lengths, correct, [[0] * 4] * 4), Recipe.of(samples=4, picked=2, objective="dpo"), 0)
    assert by_problem(picked) == {"p0": [(7, 1.0), (12, -1.0)]}, "no right one, or the longest is it, or all are alike"
    assert picked.uniform == 3


def test_a_pair_over_the_cutoff_is_left_out_whole():
    groups = groups_of([[5, 30]], [[1, 1]], [[0, 0]])
    picked = pick(groups, Recipe.of(samples=2, picked=2, objective="dpo", cutoff=20), 0)
    assert (picked.examples, picked.over_cutoff) == ([], 2)


def test_dynamic_sampling_leaves_out_problems_whose_samples_earn_the_same():
    groups = groups_of([[5, 9], [5, 9], [5, 30]], [[1, 1], [0, 0], [1, 1]], [[0, 0]] * 3)
    recipe = Recipe.of(
        samples=2, picked=2, reward="truncation", length_limit=10, advantage="batch", dynamic_sampling=True
    )
    picked = pick(groups, recipe, 0)
    assert picked.uniform == 2
    # Rewards 1,1 / 0,0 / 1,0; what is left out counts for no spread: .5,-.5 over .5.
    found = dict(by_problem(picked)["p2"])
    assert list(by_problem(picked)) == ["p2"]
    assert (found[5], found[30]) == (pytest.approx(1), pytest.approx(-1))


def test_the_limit_of_truncation_is_the_mean_length_unless_it_is_given():
    groups = groups_of([[10, 20, 60]], [[1, 1, 1]], [[0, 0, 0]])
    recipe = Recipe.of(samples=3, picked=3, reward="truncation")  # the mean is 30
    assert sorted(by_problem(pick(groups, recipe, 0))["p0"]) == [(10, 1.0), (20, 1.0), (60, 0.0)]


def test_budgets_of_the_reward_are_those_of_the_prompt():
    groups = groups_of([[10, 20]] * 3, [[1, 1]] * 3, [[0, 0]] * 3)
    recipe = Recipe.of(
        samples=2, picked=2, reward="l1-exact", instruction="exact", alpha=0.01, budget_low=5, budget_high=90
    )
    groups = [replace(g, budget=drawn_budget(g.problem, 5, 90, recipe.seed)) for g in groups]
    found = by_problem(pick(groups, recipe, 0))
    budgets = {g.problem: drawn_budget(g.problem, 5, 90, recipe.seed) for g in groups}
    assert len(set(budgets.values())) > 1
    for name, pairs in found.items():
        assert dict(pairs) == {n: pytest.approx(1 - 0.01 * abs(n - budgets[name]), abs=1e-6) for n in (10, 20)}


def test_percentiles_of_reference_accuracy():
    correct = [[1, 1], [0, 0], [1, 0], [0, 0], [1, 1]]
    lengths = [[5, 5], [5, 5], [5, 5], [6, 6], [4, 4]]  # of p1 and p3, p3 is the longer and so the harder
    groups = groups_of(lengths, correct, [[0, 0]] * 5)

    def names(percentiles):
        return [g.problem for g in Rollouts(groups, 99).between_percentiles(percentiles).groups]

    assert names("0-20") == ["p3"]
    assert names("0-40") == ["p1", "p3"], "in the order of the problems"
    assert names("40-60") == ["p2"]
    assert names("60-100") == ["p0", "p4"]
    assert names("0-100") == [g.problem for g in groups]
    with pytest.raises(UserError, match="--percentiles: 41-42 of 5 problems leaves none"):
        names("41-42")


def test_gfpo_takes_advantages_and_picks_among_the_retained_alone():
    """Of lengths 10, 40, 20, 30, of which 40, 20 and 30 are right, the two shortest are 10 and 20, and the two with most
    reward per token 20 and 30."""
    groups = groups_of([[10, 40, 20, 30]], [[0, 1, 1, 1]], [[0] * 4])
    recipe = Recipe.of(samples=4, picked=2, reward="accuracy", advantage="group", retained=0.5)
    shortest = pick(groups, recipe.replace(retained_by="shortest"), 0).examples
    assert sorted((len(e.ids), e.advantage) for e in shortest) == [(10, -1.0), (20, 1.0)]
    efficient = pick(groups, recipe, 0).examples
    assert sorted((len(e.ids), e.advantage) for e in efficient) == [(20, 0.0), (30, 0.0)]


def test_gfpo_drops_a_group_that_is_even_among_the_retained():
    groups = groups_of([[10, 40, 20, 30]], [[0, 1, 1, 1]], [[0] * 4])
    recipe = Recipe.of(samples=4, picked=2, reward="accuracy", advantage="group", retained=0.5, dynamic_sampling=True)
    assert pick(groups, recipe, 0).uniform == 1


def test_a_reward_that_remembers_sees_the_rounds_before():
    groups = groups_of([[10, 20]], [[1, 1]], [[0, 0]])
    recipe = Recipe.of(samples=2, picked=2, reward="hapo", alpha=1.0, rounds=2)
    first = pick(groups, recipe, 0)
    assert {e.reward for e in first.examples} == {1.0}
    later = pick(groups, recipe, 1, {"shortest": {"p0": 20}})
    assert {len(e.ids): e.reward for e in later.examples} == {10: pytest.approx(1 + 0.5**0.5), 20: pytest.approx(1)}


def test_a_budget_that_the_rollouts_do_not_state_is_missed_by_name():
    recipe = Recipe.of(samples=2, picked=2, reward="l1-exact", instruction="exact")
    with pytest.raises(UserError, match="--reward l1-exact: the rollouts of problem p0 state no budget"):
        pick(groups_of([[10, 20]], [[1, 1]], [[0, 0]]), recipe, 0)


def test_what_was_picked_of_a_problem_stays_together_in_an_order_that_is_drawn():
    picked = Picked([replace(e, problem=f"p{i // 3}") for i, e in enumerate(make_examples(30))], 0, 0, 0)
    drawn = [[e.problem for batch in picked.split(6, seed) for e in batch] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for order in drawn:
        assert sorted(order) == sorted(e.problem for e in picked.examples)
        assert all(len(set(order[i : i + 3])) == 1 for i in range(0, 30, 3))
