"""How many rows of kept numbers a backend may hold at a time."""

from dataclasses import dataclass

import torch

from .precision import accumulator

WAVE_ROWS = 128  # a wave below this spends more time on the sum of d_weight than the product that it saves takes
FROZEN_WAVE_ROWS = (
    32  # the same where there is no d_weight: enough rows that a product is not all reading of the weight
)


@dataclass(frozen=True)
class OnePassBudget:
    """limit: bytes that may be held. wide: numbers are kept in the accumulator's dtype, made from a copy of the weight in
    that dtype (torch); otherwise they are kept in the dtype of the inputs, and there is no copy (Triton)."""

    limit: int
    wide: bool

    def _row(self, weight: torch.Tensor) -> int:
        return weight.shape[0] * (accumulator(weight.dtype).itemsize if self.wide else weight.dtype.itemsize)

    def _room(self, weight: torch.Tensor) -> int:
        acc = accumulator(weight.dtype)
        return self.limit - (weight.numel() * acc.itemsize if self.wide and weight.dtype != acc else 0)

    def rows_a_wave(self, tokens: int, weight: torch.Tensor, ratio: str) -> int:
        """How many of the batch's rows a wave of the one pass takes; 0 where two passes are to be taken.

        float16 always takes two: the kept gradient of a logit, divided by the count of units, would underflow."""
        if weight.dtype == torch.float16:
            return 0
        room, row = self._room(weight), self._row(weight)
        # Torch copies the rows that have a gradient whatever their number; Triton where there is room for them.
        if tokens * row * (2 if self.wide else 1) <= room:
            return tokens
        acc = accumulator(weight.dtype)
        sum_of_waves = weight.numel() * acc.itemsize if weight.dtype != acc and weight.requires_grad else 0
        rows = (room - sum_of_waves) // (2 * row)
        least = WAVE_ROWS if weight.requires_grad else FROZEN_WAVE_ROWS
        return rows if ratio in ("token", "cispo") and rows >= least else 0

    def may_copy(self, rows: int, picked: int, weight: torch.Tensor) -> bool:
        """Whether the gradients of `picked` rows fit beside what is kept of `rows`."""
        return (rows + picked) * self._row(weight) <= self._room(weight)
