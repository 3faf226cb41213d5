"""What sampling leaves behind: the graded samples of a problem, and tables of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One completion: ids int32 [L] with the end-of-text token, the sampler's logprobs float32 [L], and its verdict."""

    ids: Tensor
    logprobs: Tensor
    finish_reason: str
    answer: str | None
    correct: bool

    @property
    def length(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Group:
    """The K samples of one problem, the prompt ids int32 [T] that they continue, and the token budget that the prompt
    states, if it does."""

    problem: str
    prompt: Tensor
    samples: tuple[Sample, ...]
    budget: int | None = None


def lengths_and_verdicts(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """lengths int64 [P, K] in tokens and correct bool [P, K] of P groups with K samples each."""
    lengths = torch.tensor([[s.length for s in g.samples] for g in groups])
    return lengths, torch.tensor([[s.correct for s in g.samples] for g in groups])
