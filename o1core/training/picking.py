"""From rollouts to what is trained on: reward all K samples of each problem, and let the objective pick some."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..recipe import ObjectiveSettings, RewardSettings, parse_percentiles
from ..rewards import clip_reward, reward
from ..rewards_over_rounds import a_dlp, hapo, lead
from ..types import Example, Group, Sample, lengths_and_verdicts
from .memory import NOTHING, RewardMemory
from .objectives import RewardTable, objective_of


@dataclass(frozen=True)
class Picked:
    """What a round trains on, and what was left out.

    over_cutoff: completions longer than the cut-off; masked: truncated completions that were masked; uniform: problems
    with nothing to learn from (all samples earn the same; no right sample, or no pair).
    """

    examples: list[Example]
    over_cutoff: int
    masked: int
    uniform: int


def pick_examples(
    groups: list[Group],
    rewarded: RewardSettings,
    objective: ObjectiveSettings,
    seed: int,
    memory: RewardMemory = NOTHING,
) -> Picked:
    """The examples of a round. Pairs follow each other, the better sample first. seed: of the samples drawn; memory: of
    the rounds before."""
    table = reward_table(groups, rewarded, memory)
    units = objective_of(objective).pick(table, seed)
    examples: list[Example] = []
    over = masked = 0
    for group, rewards, of_group in zip(groups, table.reward.tolist(), units):
        for unit in of_group:
            samples = [group.samples[k] for k, _ in unit]
            if any(len(group.prompt) + s.length > objective.cutoff for s in samples):
                over += len(unit)
            elif rewarded.truncated == "mask" and any(s.finish_reason == "length" for s in samples):
                masked += len(unit)
            else:
                examples += [example(group, group.samples[k], weight, rewards[k]) for k, weight in unit]
    return Picked(examples, over, masked, sum(not of_group for of_group in units))


def reward_table(groups: list[Group], settings: RewardSettings, memory: RewardMemory) -> RewardTable:
    """Lengths, verdicts and rewards of all samples."""
    lengths, correct = judged(groups, settings)
    limits = limits_of(groups, lengths, settings)
    match settings.kind:
        case "hapo":
            earned = hapo(lengths, correct, memory.shortest_of([g.problem for g in groups]), settings.alpha)
        case "a-dlp":
            earned = a_dlp(lengths, correct, memory.penalty_from(settings.alpha))
        case "lead":
            share = memory.share_after(lengths, correct, limits, settings)
            earned = lead(lengths, correct, limits, settings.length_floor, share)
        case _:
            earned = reward(settings.kind, lengths, correct, limits, settings.lam, settings.alpha)
    return RewardTable(lengths, correct, clip_reward(earned, settings.low, settings.high))


def remember(memory: RewardMemory, groups: list[Group], settings: RewardSettings) -> RewardMemory:
    """The memory of the next round, after one with these rollouts."""
    lengths, correct = judged(groups, settings)
    limits = limits_of(groups, lengths, settings)
    return memory.after([g.problem for g in groups], lengths, correct, limits, settings)


def judged(groups: list[Group], settings: RewardSettings) -> tuple[Tensor, Tensor]:
    """Lengths and verdicts [P, K] as the reward sees them: with truncated completions wrong where the settings say so."""
    lengths, correct = lengths_and_verdicts(groups)
    if settings.truncated == "wrong":
        correct &= ~torch.tensor([[s.finish_reason == "length" for s in g.samples] for g in groups])
    return lengths, correct


def example(group: Group, s: Sample, weight: float, earned: float) -> Example:
    return Example(group.problem, group.prompt, s.ids, s.logprobs, weight, s.finish_reason == "length", earned)


def limits_of(groups: list[Group], lengths: Tensor, settings: RewardSettings) -> Tensor:
    """float32 [P] tokens: the budgets that the prompts state, or the one limit of the truncation reward.

    Raises UserError where the reward needs budgets and the rollouts hold none.
    """
    if settings.needs_budget:
        budgets = [group.budget for group in groups]
        if None in budgets:
            raise UserError(
                f"--reward {settings.kind}: the rollouts of problem {groups[budgets.index(None)].problem} state no budget "
                "(an older version sampled them); delete the round's folder and run the same command again"
            )
        return torch.tensor(budgets, dtype=torch.float32)
    limit = lengths.float().mean().item() if settings.length_limit is None else settings.length_limit
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
