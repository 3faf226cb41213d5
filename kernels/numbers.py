"""The few numbers that every backend computes with, and the tuples in which they travel.

A linear head's gradient needs a few numbers a row, never logits. With z the logits over the temperature, top their maximum,
log_total = log sum_j exp(z_j - top), log p_j = z_j - top - log_total and H the entropy:

    d logits_j = inv_temperature (logp_grad ([j = target] - p_j) - entropy_grad p_j (log p_j + H))
               = exp(z_j - top) (constant + linear (z_j - top))                                for j other than the target
               = at_target                                                                     for the target

top and log_total stay apart: their sum, the log-sum-exp, has lost the digits that a likely token's 1 - p is made of. The
target's own entry comes from its log-prob: 1 - exp(logp) is -expm1(logp).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # a unit's log-ratio is clamped to +- this; outside, the gradient is zero
# Stands for minus infinity in running maxima. Finite, because (-inf) - (-inf) and 0 * (-inf) are NaN.
FLOOR = -1e30
WAVE_ROWS = 128  # a wave below this spends more time on the sum of d_weight than the product that it saves takes
FROZEN_WAVE_ROWS = 32  # the same without d_weight: a product of fewer rows spends its time on reading the weight
PAGE_TOKENS = 64
SPLIT_TOKENS = 512  # tokens whose attention one program computes: fixed, so that bits do not depend on the batch
METRICS = ("units", "tokens", "clipped", "ratio_sum", "kl_sum", "loss_sum")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-probs: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, added in the dtype of total. The product of bf16 (fp16) operands keeps its fp32 sum on a GPU; a CPU
    has no such product and rounds it to bf16 first."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def card_memory(device: torch.device) -> int:
    """Bytes of a GPU; 0 of a CPU, and of a GPU that is only pretended."""
    there = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_properties(device).total_memory if there else 0


class Softmax(NamedTuple):
    """How logits become a distribution: z = inv_temperature * logits, and ids from vocab_size on have probability 0."""

    inv_temperature: float
    vocab_size: int


class Upstream(NamedTuple):
    """The gradients from above of a row's results [N], float32 or float64, of any stride; no entropy, no gradient of it."""

    logp: Tensor
    entropy: Tensor | None = None


class Needs(NamedTuple):
    """Which gradients of a linear head are wanted."""

    hidden: bool
    weight: bool


class RowNumbers(NamedTuple):
    """What a forward pass finds of each row [N], float32 or float64; entropy is None where nobody asked for it."""

    logp: Tensor
    top: Tensor
    log_total: Tensor
    entropy: Tensor | None = None

    def of(self, part: slice) -> "RowNumbers":
        """Those of some rows."""
        entropy = None if self.entropy is None else self.entropy[part]
        return RowNumbers(self.logp[part], self.top[part], self.log_total[part], entropy)


class RowCoefficients(NamedTuple):
    """Each [N], in the dtype of logp; linear is None where there is no gradient of the entropy."""

    at_target: Tensor
    constant: Tensor
    linear: Tensor | None

    def of(self, part: slice) -> "RowCoefficients":
        """Those of some rows."""
        return RowCoefficients(
            self.at_target[part], self.constant[part], None if self.linear is None else self.linear[part]
        )


def row_coefficients(known: RowNumbers, upstream: Upstream, inv_temperature: float) -> RowCoefficients:
    logp, _, log_total, entropy = known
    slope = upstream.logp.to(logp.dtype) * -inv_temperature
    share = log_total.neg().exp()
    if upstream.entropy is None or entropy is None:
        return RowCoefficients(slope * logp.expm1(), slope * share, None)
    entropy_slope = upstream.entropy.to(logp.dtype) * -inv_temperature
    at_target = slope * logp.expm1() + entropy_slope * logp.exp() * (logp.clamp(min=FLOOR) + entropy)
    return RowCoefficients(at_target, (slope + entropy_slope * (entropy - log_total)) * share, entropy_slope * share)


class Kept(NamedTuple):
    """What a forward pass keeps of whole rows, for a gradient in the same pass: logp [N]; numbers [N, vocab_size], from which
    with `state`, a column of it for each `block` of the vocabulary, the backend forms the probabilities again."""

    logp: Tensor
    numbers: Tensor
    state: tuple[Tensor, ...] = ()
    block: int = 0


class Sequences(NamedTuple):
    """The sequences of a loss, laid end to end: ref_logp [N], advantage [S], cu_seqlens [S + 1] int32 or int64 (sequence s is
    tokens cu_seqlens[s] to cu_seqlens[s + 1]), mask [N] bool (True counts) or None for all."""

    ref_logp: Tensor
    advantage: Tensor
    cu_seqlens: Tensor
    mask: Tensor | None


class Clip(NamedTuple):
    """Whose ratio is clipped ("sequence", "sequence_mean", "token" or "cispo"), to 1 - eps_low and 1 + eps_high, and what the
    sum over units is divided by."""

    ratio: str
    eps_low: float
    eps_high: float
    normalizer: float

    @property
    def of_tokens(self) -> bool:
        """A unit is a token, whose coefficient depends on its own log-prob alone."""
        return self.ratio in ("token", "cispo")


class Pages(NamedTuple):
    """Keys and values of a decode step's rows (decode.py): keys and values [pages, Hkv, 64, D], page_table [R, any] and
    lengths [R] int32."""

    keys: Tensor
    values: Tensor
    table: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class SurrogateMetrics:
    """What a surrogate step reports. Only sums are kept (and one maximum), in float64, so that counts stay exact and the order
    of merging does not matter; across ranks, all-reduce `sums` with SUM and `ratio_max` with MAX.

    sums: [6] float64, in the order of METRICS; ratio_max: [] float64, 0 where there is no unit.

    units      sequences with at least one unmasked token (ratios "token" and "cispo": unmasked tokens)
    tokens     unmasked tokens
    clipped    units whose clip bound is active, so that their gradient is zero: ratio > 1 + eps_high and advantage > 0,
               or ratio < 1 - eps_low and advantage < 0; ratio "cispo": tokens whose weight is cut, which keep a gradient
    ratio_sum  sum of the units' ratios (after the clamp of the log-ratio)
    kl_sum     sum over unmasked tokens of r - 1 - log r, r = exp(logp - ref_logp) with the log-ratio clamped: since the
               tokens were drawn from the reference, its mean is an unbiased estimate of KL(reference || policy) that is
               never negative (Schulman's k3)
    loss_sum   the loss times its normaliser
    """

    sums: Tensor
    ratio_max: Tensor

    def merge(self, other: "SurrogateMetrics") -> "SurrogateMetrics":
        """The metrics of both batches together."""
        return SurrogateMetrics(self.sums + other.sums, torch.maximum(self.ratio_max, other.ratio_max))

    def finalize(self) -> dict[str, float]:
        """Python floats (this waits for the device): units, tokens, clip_fraction, ratio_mean, ratio_max, approx_kl
        (per token) and loss (per unit). A mean over nothing is 0."""
        total = dict(zip(METRICS, self.sums.tolist()))
        units, tokens = max(total["units"], 1.0), max(total["tokens"], 1.0)
        return {
            "units": total["units"],
            "tokens": total["tokens"],
            "clip_fraction": total["clipped"] / units,
            "ratio_mean": total["ratio_sum"] / units,
            "ratio_max": self.ratio_max.item(),
            "approx_kl": total["kl_sum"] / tokens,
            "loss": total["loss_sum"] / units,
        }


@dataclass(frozen=True)
class OnePassBudget:
    """limit: bytes that may be held; on a GPU a sixteenth of its memory, where that is more. wide: numbers are kept in the
    accumulator's dtype, made from the weight in that dtype, and the rows that have a gradient are picked in place (torch);
    otherwise they are kept in the dtype of the inputs, and the rows are copied where there is room for them (Triton)."""

    limit: int
    wide: bool

    def _row(self, weight: Tensor) -> int:
        """Bytes that a row takes, without its padding; if wide, with those of its gradient in another dtype."""
        itemsize, acc = weight.dtype.itemsize, accumulator(weight.dtype).itemsize
        return weight.shape[0] * (itemsize if not self.wide else acc if acc == itemsize else acc + itemsize)

    def _room(self, weight: Tensor) -> int:
        acc, limit = accumulator(weight.dtype), max(self.limit, card_memory(weight.device) // 16)
        return limit - (weight.numel() * acc.itemsize if self.wide and weight.dtype != acc else 0)

    def rows_a_wave(self, tokens: int, weight: Tensor, ratio: str) -> int:
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

    def may_copy(self, rows: int, picked: int, weight: Tensor) -> bool:
        """Whether the gradients of `picked` rows may be had apart: they fit beside what is kept of `rows`."""
        return self.wide or (rows + picked) * self._row(weight) <= self._room(weight)
