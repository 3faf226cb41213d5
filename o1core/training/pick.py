"""From rollouts to what is trained on: score all K samples of each problem, and let the objective pick some.

    rollouts.score(reward).pick(2).split(32)

A script and `o1core prune` go the same way. The script's reward may be a name of o1core.rewards or a function.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..own_code import is_own, load_own
from ..recipe import ObjectiveSettings, RewardSettings, parse_percentiles
from ..rewards import REWARDS, Reward, State, clip_reward, score
from ..types import Example, Group, Sample, lengths_and_verdicts
from .objectives import Objective, RewardTable, objective_of
from .update import with_reference

Reference = Callable[[list[Example]], list[Tensor]]  # float32 [L] of each example


@dataclass(frozen=True)
class Rollouts:
    """The graded completions of P problems, K of each.

    limit: the most tokens that a completion could have. reference: the log-probs of the policy that sampled them, by the
    trainer's forward; it works until the policy moves on.
    """

    groups: Sequence[Group]
    limit: int
    reference: Reference | None = None

    @cached_property
    def lengths(self) -> Tensor:
        """int64 [P, K] tokens."""
        return lengths_and_verdicts(self.groups)[0]

    @cached_property
    def correct(self) -> Tensor:
        """bool [P, K]."""
        return lengths_and_verdicts(self.groups)[1]

    @cached_property
    def truncated(self) -> Tensor:
        """bool [P, K]: ran out of tokens."""
        return torch.tensor([[s.finish_reason == "length" for s in g.samples] for g in self.groups])

    def score(
        self, reward: str | Reward = "length-harmonizing", state: State | None = None, **settings: Any
    ) -> "Scored":
        """Reward every sample.

        reward: a name of o1core.rewards.REWARDS, FILE.py:function, or a function (o1core/rewards.py says of what).
        state: what the reward returned for the round before. settings: of RewardSettings, such as lam=2.0 or high=4.0.
        Raises UserError where the reward fails, or returns anything but one finite number a sample.
        """
        name = reward if isinstance(reward, str) else getattr(reward, "__name__", "function")
        function = find_reward(reward) if isinstance(reward, str) else reward
        of = RewardSettings(**settings | ({"kind": reward} if isinstance(reward, str) else {}))
        named = {
            "lengths": self.lengths.float(),  # means and differences of integers and bools are errors in torch
            "correct": self.correct.float(),
            "truncated": self.truncated,
            "limits": self.limits(of),
            "problems": [group.problem for group in self.groups],
            "state": state or {},
            **{n: getattr(of, n) for n in ("lam", "alpha", "length_floor", "memory_rate", "accuracy_reference")},
        }
        earned, after = score(function, named, name)
        return Scored(self, clip_reward(earned, of.low, of.high), after)

    def limits(self, settings: RewardSettings) -> Tensor:
        """float32 [P] tokens: the budgets that the prompts state, or one limit for all.

        That is --length-limit, else the most that could be generated for overlong and drpo, and the mean length elsewhere.
        Raises UserError where the reward needs budgets and the rollouts hold none.
        """
        if settings.needs_budget:
            budgets = [group.budget for group in self.groups]
            if None in budgets:
                raise UserError(
                    f"--reward {settings.kind}: the rollouts of problem {self.groups[budgets.index(None)].problem} state no "
                    "budget (an older version sampled them); delete the round's folder and run the same command again"
                )
            return torch.tensor(budgets, dtype=torch.float32)
        usual = self.limit if settings.kind in ("overlong", "drpo") else self.lengths.float().mean().item()
        return torch.full((len(self.groups),), float(settings.length_limit or usual))

    def between_percentiles(self, percentiles: str) -> "Rollouts":
        """Those between two percentiles ("30-70") of reference accuracy, in their order; 0 is the hardest. Of equal
        accuracies the longer mean counts as harder. Raises UserError where none is left."""
        low, high = parse_percentiles(percentiles)
        count = len(self.groups)
        accuracy, length = self.correct.float().mean(1).tolist(), (-self.lengths.float().mean(1)).tolist()
        places = sorted(range(count), key=list(zip(accuracy, length, range(count))).__getitem__)
        kept = set(places[int(low * count / 100) : int(high * count / 100)])
        if not kept:
            raise UserError(f"--percentiles: {percentiles} of {count} problems leaves none; widen it, or sample more")
        return dataclasses.replace(self, groups=[group for i, group in enumerate(self.groups) if i in kept])


@dataclass(frozen=True)
class Scored:
    """Rollouts with the reward [P, K] of each sample. state: for the next round's reward."""

    rollouts: Rollouts
    reward: Tensor
    state: State

    def pick(
        self,
        objective: int | ObjectiveSettings | Objective = 2,
        seed: int = 0,
        mask_truncated: bool = False,
        cutoff: int | None = None,
    ) -> "Picked":
        """What to train on: m samples of each problem for the clipped surrogate, or what an objective picks, given as its
        settings or as itself.

        seed: of what is drawn. mask_truncated: leave out completions that ran out of tokens. cutoff: of prompt and
        completion together, in tokens; default the settings', 4,096. Pairs (DPO) follow each other, the better sample
        first.
        """
        if isinstance(objective, int):
            objective = ObjectiveSettings(picked=objective)
        chooser = objective_of(objective) if isinstance(objective, ObjectiveSettings) else objective
        if cutoff is None:
            cutoff = (objective if isinstance(objective, ObjectiveSettings) else ObjectiveSettings()).cutoff
        table = RewardTable(self.rollouts.lengths, self.rollouts.correct, self.reward)
        units = chooser.pick(table, seed)
        examples: list[Example] = []
        over = masked = 0
        for group, rewards, of_group in zip(self.rollouts.groups, self.reward.tolist(), units):
            for unit in of_group:
                samples = [group.samples[k] for k, _ in unit]
                if any(len(group.prompt) + s.length > cutoff for s in samples):
                    over += len(unit)
                elif mask_truncated and any(s.finish_reason == "length" for s in samples):
                    masked += len(unit)
                else:
                    examples += [example_of(group, k, weight, rewards[k]) for k, weight in unit]
        uniform = sum(not of_group for of_group in units)
        return Picked(examples, over, masked, uniform, chooser.unit_size, self.rollouts.reference)


@dataclass(frozen=True)
class Picked:
    """What a round trains on, and what was left out.

    over_cutoff: completions longer than the cut-off; masked: truncated completions that were masked; uniform: problems
    with nothing to learn from (all samples earn the same; no right sample, or no pair). unit_size: so many examples in a
    row stay together (DPO: 2).
    """

    examples: list[Example]
    over_cutoff: int
    masked: int
    uniform: int
    unit_size: int = 1
    reference: Reference | None = None

    def split(self, batch: int, seed: int = 0) -> Iterator[list[Example]]:
        """Batches of so many units, each example with its reference log-probs. The order of problems is drawn from the seed;
        what was picked of one stays together, so that an update forwards its prompt once.

        Take the iterator before the policy's first step: the log-probs are those of the policy that sampled.
        """
        if not self.examples:
            return iter(())
        examples = self.with_reference().examples
        units = [examples[i : i + self.unit_size] for i in range(0, len(examples), self.unit_size)]
        problems = [list(of_problem) for _, of_problem in itertools.groupby(units, key=lambda unit: unit[0].problem)]
        order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(seed))
        drawn = [unit for p in order.tolist() for unit in problems[p]]
        return ([e for unit in drawn[i : i + batch] for e in unit] for i in range(0, len(drawn), batch))

    def with_reference(self, reference: list[Tensor] | None = None) -> "Picked":
        """The same with reference log-probs (float32 [L] of each example; None: computed where they are missing)."""
        if reference is None:
            if self.reference is None or all(e.reference is not None for e in self.examples):
                return self
            reference = self.reference(self.examples)
        return dataclasses.replace(self, examples=with_reference(self.examples, reference))


def find_reward(name: str) -> Reward:
    """A reward by its name, or of a file. Raises UserError where there is none."""
    if is_own(name):
        return load_own("--reward", name)
    if name not in REWARDS:
        raise UserError(f"--reward {name}: is none of {', '.join(REWARDS)}, nor FILE.py:function")
    return REWARDS[name]


def try_reward(settings: RewardSettings) -> None:
    """Call a reward of one's own on two made-up problems, before hours of sampling. Raises UserError where it fails."""
    if not is_own(settings.kind):
        return
    ids = torch.arange(8, dtype=torch.int32)
    groups = [
        Group(
            name,
            ids[:2],
            tuple(Sample(ids[: 2 * k + 2], torch.zeros(2 * k + 2), "stop", None, k in right) for k in range(4)),
        )
        for name, right in (("a", (0, 2)), ("b", ()))
    ]
    Rollouts(groups, 8).score(settings.kind, **{n: v for n, v in vars(settings).items() if n != "kind"})


def example_of(group: Group, k: int, weight: float, earned: float) -> Example:
    """Sample k of a group as an example."""
    s = group.samples[k]
    cut = s.finish_reason == "length"
    return Example(group.problem, group.prompt, s.ids, s.logprobs, weight, cut, earned, routes=s.routes)
