"""What training trains on: completions picked from the rollouts, each with its weight."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Example:
    """A picked completion. prompt int32 [T], ids int32 [L], the sampler's logprobs float32 [L].

    advantage: its weight in the surrogate; DPO: 1 for the better and -1 for the worse sample of a pair; SFT: 1.
    reward: what it earned, for the log.
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
    """What a round trains on, and what was left out.

    over_cutoff: completions longer than the cut-off; masked: truncated completions that were masked; uniform: problems
    with nothing to learn from (all samples earn the same; no right sample, or no pair).
    """

    examples: list[Example]
    over_cutoff: int
    masked: int
    uniform: int
