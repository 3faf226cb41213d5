"""What a reward remembers of the rounds before: a part of the training state, so that an interrupted run resumes with it."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..recipe import RewardSettings
from ..rewards_over_rounds import a_dlp_penalty, lead_share, shortest_right
from ..typed_json import OMIT_NONE, Amount, Count, Fraction


@dataclass(frozen=True)
class RewardMemory:
    """shortest: tokens of the shortest right answer to each problem so far (HAPO). penalty: lambda per token, and
    reference: the accuracy that it follows (A-DLP). share: of accuracy in the advantage (LEAD). None: not yet known."""

    shortest: dict[str, Count] | None = field(default=None, metadata=OMIT_NONE)
    penalty: Amount | None = field(default=None, metadata=OMIT_NONE)
    reference: Fraction | None = field(default=None, metadata=OMIT_NONE)
    share: Fraction | None = field(default=None, metadata=OMIT_NONE)

    def shortest_of(self, problems: list[str]) -> Tensor:
        """float32 [P] tokens, infinite for a problem without a right answer so far."""
        known = self.shortest or {}
        return torch.tensor([known.get(problem, torch.inf) for problem in problems], dtype=torch.float32)

    def penalty_from(self, first: float) -> float:
        """The penalty of this round, `first` in the first one."""
        return first if self.penalty is None else self.penalty

    def share_after(self, lengths: Tensor, correct: Tensor, limits: Tensor, settings: RewardSettings) -> float:
        """The share with this round's samples counted, which LEAD uses for them already."""
        before = 0.5 if self.share is None else self.share
        return lead_share(lengths, correct, limits, settings.length_floor, before, settings.memory_rate)

    def after(
        self, problems: list[str], lengths: Tensor, correct: Tensor, limits: Tensor, settings: RewardSettings
    ) -> "RewardMemory":
        """The memory of the next round. problems: ids of the P rows of lengths and correct [P, K]; limits [P] tokens."""
        match settings.kind:
            case "hapo":
                found = zip(problems, shortest_right(lengths, correct).minimum(self.shortest_of(problems)).tolist())
                new = {problem: int(tokens) for problem, tokens in found if tokens != torch.inf}
                return replace(self, shortest=(self.shortest or {}) | new or None)
            case "a-dlp":
                accuracy = correct.double().mean().item()
                fixed = settings.accuracy_reference if self.reference is None else self.reference
                reference = accuracy if fixed is None else fixed
                before = self.penalty_from(settings.alpha)
                penalty = a_dlp_penalty(before, accuracy, reference, settings.memory_rate)
                return replace(self, penalty=penalty, reference=reference)
            case "lead":
                return replace(self, share=self.share_after(lengths, correct, limits, settings))
        return self


NOTHING = RewardMemory()  # before the first round
