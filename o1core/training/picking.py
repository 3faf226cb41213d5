"""From rollouts to what is trained on: reward all K samples of each problem, pick some, and weigh them.

The clipped surrogate picks m of the K at random. SFT picks the m shortest right ones, DPO the shortest right one and the
longest of all: the baselines of arXiv 2501.12570, section 5.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..problems import drawn_budget
from ..recipe.recipe import Recipe, parse_percentiles
from ..rewards import BUDGETED, advantage, clip_reward, reward, standardise
from ..rollout import Group, Sample, lengths_and_verdicts
from ..seeds import seed_of


@dataclass(frozen=True)
class Example:
    """A picked completion. prompt int32 [T], ids int32 [L], the sampler's logprobs float32 [L].

    advantage: its weight in the surrogate; DPO: 1 of the better and -1 of the worse one of a pair; SFT: 1. reward: what
    it earned, for the log.
    """

    problem: str
    prompt: Tensor
    ids: Tensor
    logprobs: Tensor
    advantage: float
    truncated: bool
    reward: float = 0.0

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.ids)


@dataclass(frozen=True)
class Picked:
    """What a round trains on, and what was left out of it: completions over the cut-off, truncated ones that were masked,
    problems that have nothing to teach (all samples earn the same; no right one, or no pair)."""

    examples: list[Example]
    over_cutoff: int
    masked: int
    uniform: int


def pick_examples(groups: list[Group], recipe: Recipe, round: int) -> Picked:
    """The examples of a round. Pairs stand one after the other, the better one first."""
    lengths, correct = lengths_and_verdicts(groups)
    if recipe.truncated == "wrong":
        correct &= ~torch.tensor([[s.finish_reason == "length" for s in g.samples] for g in groups])
    earned = reward(recipe.reward, lengths, correct, limits_of(groups, lengths, recipe), recipe.lam, recipe.alpha)
    earned = clip_reward(earned, recipe.reward_low, recipe.reward_high)
    if recipe.objective == "sft":
        units = [[[(k, 1.0)] for k in shortest_right(*row)[: recipe.picked]] for row in zip(lengths, correct)]
    elif recipe.objective == "dpo":
        units = [pair(*row) for row in zip(lengths, correct)]
    else:
        units = weighted(earned, recipe, round)
    examples, over, masked = [], 0, 0
    for group, rewards, of_group in zip(groups, earned.tolist(), units):
        for unit in of_group:
            samples = [group.samples[k] for k, _ in unit]
            if any(len(group.prompt) + s.length > recipe.cutoff for s in samples):
                over += len(unit)
            elif recipe.truncated == "mask" and any(s.finish_reason == "length" for s in samples):
                masked += len(unit)
            else:
                examples += [example(group, group.samples[k], weight, rewards[k]) for k, weight in unit]
    return Picked(examples, over, masked, sum(not of_group for of_group in units))


def example(group: Group, s: Sample, weight: float, earned: float) -> Example:
    return Example(group.problem, group.prompt, s.ids, s.logprobs, weight, s.finish_reason == "length", earned)


def shortest_right(lengths: Tensor, correct: Tensor) -> list[int]:
    """The right ones among K samples, short to long."""
    return [k for k in lengths.argsort(stable=True).tolist() if correct[k]]


def pair(lengths: Tensor, correct: Tensor) -> list[list[tuple[int, float]]]:
    """The shortest right sample against the longest one, if they differ in length."""
    right, longest = shortest_right(lengths, correct), int(lengths.argmax())
    if not right or lengths[right[0]] == lengths[longest]:
        return []
    return [[(right[0], 1.0), (longest, -1.0)]]


def weighted(earned: Tensor, recipe: Recipe, round: int) -> list[list[list[tuple[int, float]]]]:
    """Of each problem m samples at random with their advantages, from the rewards [P, K]. With recipe.dynamic_sampling
    none of a problem whose samples all earn the same, and such problems count for no mean or spread."""
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, round, "pick"))
    chosen = torch.rand(earned.shape, generator=generator).argsort(dim=1)[:, : recipe.picked]
    teaches = earned.amax(1) > earned.amin(1) if recipe.dynamic_sampling else torch.ones(len(earned), dtype=torch.bool)
    units: list[list] = [[] for _ in earned]
    if teaches.any():
        chosen = chosen[teaches]
        value = advantage(recipe.advantage, earned[teaches]).gather(1, chosen)
        if recipe.advantage == "z-score":
            value = standardise(value)
        for row, ks, weights in zip(teaches.nonzero()[:, 0].tolist(), chosen.tolist(), value.tolist()):
            units[row] = [[(k, weight)] for k, weight in zip(ks, weights)]
    return units


def limits_of(groups: list[Group], lengths: Tensor, recipe: Recipe) -> Tensor:
    """float32 [P] tokens: the budgets that the prompts state, or the one limit of the truncation reward."""
    if recipe.reward in BUDGETED:
        span = (recipe.budget_low, recipe.budget_high, recipe.seed)
        return torch.tensor([float(drawn_budget(g.problem, *span)) for g in groups])
    limit = lengths.float().mean().item() if recipe.length_limit is None else recipe.length_limit
    return torch.full((len(groups),), float(limit))


def between_percentiles(groups: list[Group], percentiles: str) -> list[Group]:
    """The groups between two percentiles ("30-70") of reference accuracy, in their order; 0 is the hardest. Of equal
    accuracies the longer mean counts as harder. Raises UserError where none is left."""
    low, high = parse_percentiles(percentiles)
    lengths, correct = lengths_and_verdicts(groups)
    rank = list(zip(correct.float().mean(1).tolist(), (-lengths.float().mean(1)).tolist(), range(len(groups))))
    places = sorted(range(len(groups)), key=rank.__getitem__)
    kept = set(places[int(low * len(groups) / 100) : int(high * len(groups) / 100)])
    if not kept:
        raise UserError(f"--percentiles: {percentiles} of {len(groups)} problems leaves none; widen it, or sample more")
    return [group for i, group in enumerate(groups) if i in kept]
