"""How many rows of kept numbers a backend may hold at a time."""

from dataclasses import dataclass

import torch

from .precision import accumulator

WAVE_ROWS = 128  # a wave below this spends more time on the sum of d_weight than the product that it saves takes
FROZEN_WAVE_ROWS = 32  # the same without d_weight: a product of fewer rows spends its time on reading the weight


@dataclass(frozen=True)
class OnePassBudget:
    """limit: bytes that may be held. wide: numbers are kept in the accumulator's dtype, made from the weight in that
    dtype, and the rows that have a gradient are picked in place (torch); otherwise they are kept in the dtype of the
    inputs, and the rows are copied where there is room for them (Triton)."""

    limit: int
    wide: bool

    def _row(self, weight: torch.Tensor) -> int:
        """Bytes that a row takes, without its padding; if wide, with those of its gradient in another dtype."""
        itemsize, acc = weight.dtype.itemsize, accumulator(weight.dtype).itemsize
        return weight.shape[0] * (itemsize if not self.wide else acc if acc == itemsize else acc + itemsize)

    def _room(self, weight: torch.Tensor) -> int:
        acc = accumulator(weight.dtype)
        return self.limit - (weight.numel() * acc.itemsize if self.wide and weight.dtype != acc else 0)

    def rows_a_wave(self, tokens: int, weight: torch.Tensor, ratio: str) -> int:
        """How many of the batch's rows a wave of the one pass takes; 0 where two passes are to be taken.

        float16 always takes two: the kept gradient of a logit, divided by the count of units, would underflow."""
        if weight.dtype == torch.float16:
            return 0
        room, row = self._room(weight), self._row(weight)
        if tokens * row <= room:
            return tokens
        acc = accumulator(weight.dtype)
        sum_of_waves = weight.numel() * acc.itemsize if weight.dtype != acc and weight.requires_grad else 0
        rows = (room - sum_of_waves) // (row if self.wide else 2 * row)
        least = WAVE_ROWS if weight.requires_grad else FROZEN_WAVE_ROWS
        if ratio not in ("token", "cispo") or rows < least:
            return 0
        waves = -(-tokens // rows)
        return -(-tokens // waves)

    def may_copy(self, rows: int, picked: int, weight: torch.Tensor) -> bool:
        """Whether the gradients of `picked` rows may be had apart: they fit beside what is kept of `rows`."""
        return self.wide or (rows + picked) * self._row(weight) <= self._room(weight)
