"""What travels through the house. Read this file first.

    Problem -> (policy) -> Completion -> (grader) -> Sample, K of them a Group -> (reward, pick) -> Example -> (update)

Everything here is frozen: a later room makes a new object and never edits an earlier one's. Tensors rest on the CPU.
Tokens, never text, pass between rooms, so what was sampled is what is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """One problem of a file, of the generator or of reasoning-gym."""

    id: str  # unique within its source, and independent of the problem's place there
    question: str  # the text of the user turn, choices included
    answer: str  # the bare gold answer: "72", r"\frac{1}{2}", "B"
    level: str | None = None  # MATH: "1" to "5"
    subject: str | None = None
    system: str | None = None  # a system turn of its own
    task: str | None = None  # how reasoning-gym scores an answer: written by gym.py, read by the grading worker
    budget: int | None = None  # tokens that the question asks to think for, where it states such a budget


@dataclass(frozen=True)
class Completion:
    """What was sampled. ids include the end-of-text token; logprobs, in nats, are the sampler's, one a token.

    finish_reason: "stop" after an end-of-text token, "length" where max_new_tokens or the context ran out.
    routes: of a mixture of experts, which of them computed the token before each sampled one: uint8 (int16 where there are more
    than 256) [S, L, chosen] of the last S tokens, which are those that were sampled, and L layers.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: str
    routes: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Sample:
    """One completion: ids int32 [L] with the end-of-text token, the sampler's logprobs float32 [L], its verdict, and a
    Completion's routes."""

    ids: Tensor
    logprobs: Tensor
    finish_reason: str
    answer: str | None
    correct: bool
    routes: Tensor | None = None

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
    import torch  # here, so that a grading worker, which needs a Problem alone, starts without it

    lengths = torch.tensor([[s.length for s in g.samples] for g in groups])
    return lengths, torch.tensor([[s.correct for s in g.samples] for g in groups])


@dataclass(frozen=True)
class Example:
    """A picked completion. prompt int32 [T], ids int32 [L], the sampler's logprobs float32 [L].

    advantage: its weight in the surrogate; DPO: 1 for the better and -1 for the worse sample of a pair; SFT: 1.
    reward: what it earned, for the log. reference: float32 [L], log-probs under the policy that sampled it, by the trainer's
    own forward; they are there once all of a round are picked, before its first step. taught: reads hidden states [L, H]
    of CRISP's teacher. routes: a Completion's.
    """

    problem: str
    prompt: Tensor
    ids: Tensor
    logprobs: Tensor
    advantage: float
    truncated: bool
    reward: float = 0.0
    reference: Tensor | None = None
    taught: Callable[[], Tensor] | None = None
    routes: Tensor | None = None

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.ids)
