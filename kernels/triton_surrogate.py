"""The clipped surrogate in Triton: loss, its gradient in every log-prob and the metrics, in one launch.

    l_t = logp_t - ref_logp_t over the unmasked tokens of a sequence with advantage A
    log r = sum_t l_t ("sequence"),  mean_t l_t ("sequence_mean"),  l_t a token ("token"),  clamped to +-20
    loss = - sum over units of min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) / normalizer
    d loss / d logp_t = - r A / normalizer  (/ token count for "sequence_mean"),  0 where clip or clamp is active

    "cispo":  loss = - sum_t w_t A logp_t / normalizer,  d loss / d logp_t = - w_t A / normalizer,
              w_t = clip(r_t, 1 - eps_low, 1 + eps_high) without a gradient of its own

One program a sequence; it writes seven sums of its own, and torch adds them up over sequences in float64. No atomic:
two runs give the same bits. Per token everything is float32 (float64 if logp is).
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .configs import LOG_RATIO_LIMIT as LIMIT
from .numbers import Clip, Sequences, SurrogateMetrics, accumulator

LEVELS = {"sequence": 0, "sequence_mean": 1, "token": 2, "cispo": 3}
TOKEN: tl.constexpr = tl.constexpr(LEVELS["token"])
CISPO: tl.constexpr = tl.constexpr(LEVELS["cispo"])
MEAN: tl.constexpr = tl.constexpr(LEVELS["sequence_mean"])


class Batch(NamedTuple):
    """Log-probs [N] of sequences laid end to end, and what belongs to them."""

    logp: Any
    ref_logp: Any
    advantage: Any
    cu_seqlens: Any
    mask: Any


class Bounds(NamedTuple):
    """Of the ratio, and what a unit's gain is multiplied by."""

    low: Any
    high: Any
    per_unit: Any


@triton.jit
def _clamp(x: tl.tensor) -> tl.tensor:
    # With where, a NaN stays one. tl.clamp told to keep it does not compile for float64.
    return tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))


@triton.jit
def _divergence(log_ratio: tl.tensor) -> tl.tensor:
    """r - 1 - log r (Schulman's k3) of a clamped log-ratio. Below 1/4, where that is a difference of near numbers, its
    series: x^2/2! + x^3/3! + ... + x^9/9!."""
    x = _clamp(log_ratio)
    series = 1 / 5040 + x * (1 / 40320 + x * (1 / 362880))
    series = 1 / 24 + x * (1 / 120 + x * (1 / 720 + x * series))
    series = 1 / 2 + x * (1 / 6 + x * series)
    return tl.where(tl.abs(x) < 0.25, x * x * series, tl.exp(x) - 1 - x)


@triton.jit
def _unit(
    log_ratio: tl.tensor, advantage: tl.tensor, bounds: Bounds
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Of one unit, or a block of them: its ratio, whether its clip bound is active, its gain min(r A, clip(r) A) and
    d loss / d log_ratio. The clip is strict and the clamp's edge counts as inside, as in torch."""
    low, high, per_unit = bounds
    ratio = tl.exp(_clamp(log_ratio))
    over = (ratio > high) & (advantage > 0)
    under = (ratio < low) & (advantage < 0)
    gain = advantage * tl.where(over, high, tl.where(under, low, ratio))
    slope = tl.where(over | under | (tl.abs(log_ratio) > LIMIT), 0.0, -per_unit * ratio * advantage)
    return ratio, over | under, gain, slope


@triton.jit
def _weighted_token(
    log_ratio: tl.tensor, logp: tl.tensor, advantage: tl.tensor, bounds: Bounds
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """What _unit returns, of tokens for CISPO: the clipped ratio is a weight of the log-prob, and no gradient is lost."""
    low, high, per_unit = bounds
    ratio = tl.exp(_clamp(log_ratio))
    over, under = ratio > high, ratio < low
    weight = advantage * tl.where(over, high, tl.where(under, low, ratio))
    return ratio, over | under, weight * logp, -per_unit * weight


@triton.jit
def _log_ratios(
    batch: Batch, token: tl.tensor, end: tl.tensor, HAS_MASK: tl.constexpr, ACC: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Which tokens count, and logp - ref_logp there. A masked token is not even read: it may hold NaN."""
    counted = token < end
    if HAS_MASK:
        counted = counted & (tl.load(batch.mask + token, mask=counted, other=0) != 0)
    new = tl.load(batch.logp + token, mask=counted, other=0.0).to(ACC)
    return counted, new - tl.load(batch.ref_logp + token, mask=counted, other=0.0).to(ACC)


@triton.jit(do_not_specialize=["sequences"])
def surrogate_kernel(
    batch: Batch,
    d_logp: tl.tensor,
    sums: tl.tensor,
    sequences: tl.tensor,
    low: tl.float64,
    high: tl.float64,
    per_unit: tl.float64,
    LEVEL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One sequence -> d_logp of its unmasked tokens (zero elsewhere already) and its column of sums [7, S]."""
    sequence = tl.program_id(0)
    begin = tl.load(batch.cu_seqlens + sequence).to(tl.int64)
    end = tl.load(batch.cu_seqlens + sequence + 1).to(tl.int64)
    A = tl.load(batch.advantage + sequence).to(ACC)
    bounds = Bounds(tl.full((), low, ACC), tl.full((), high, ACC), tl.full((), per_unit, ACC))
    tokens = tl.zeros((BLOCK,), ACC)
    divergence = tl.zeros((BLOCK,), ACC)
    # A token is a unit: sums of units. A sequence is one: only its log-ratio adds up over tokens.
    clipped_sum = tl.zeros((BLOCK,), ACC)
    ratio_sum = tl.zeros((BLOCK,), ACC)
    ratio_max = tl.zeros((BLOCK,), ACC)
    gain_sum = tl.zeros((BLOCK,), ACC)
    log_ratio_sum = tl.zeros((BLOCK,), ACC)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        counted, log_ratio = _log_ratios(batch, token, end, HAS_MASK, ACC)
        tokens += counted.to(ACC)
        divergence += tl.where(counted, _divergence(log_ratio), 0.0)
        if LEVEL >= TOKEN:
            # A as a block: the interpreter cannot combine a block of truths with a single one.
            of_token = A + tl.zeros_like(log_ratio)
            if LEVEL == CISPO:
                new = tl.load(batch.logp + token, mask=counted, other=0.0).to(ACC)
                ratio, clipped, gain, slope = _weighted_token(log_ratio, new, of_token, bounds)
            else:
                ratio, clipped, gain, slope = _unit(log_ratio, of_token, bounds)
            clipped_sum += (clipped & counted).to(ACC)
            ratio_sum += tl.where(counted, ratio, 0.0)
            ratio_max = tl.maximum(ratio_max, tl.where(counted, ratio, 0.0))
            gain_sum += tl.where(counted, gain, 0.0)
            tl.store(d_logp + token, slope, mask=counted)
        else:
            log_ratio_sum += log_ratio
    length = tl.sum(tokens, 0)
    at = sums + sequence
    tl.store(at + sequences, length)
    tl.store(at + 4 * sequences, tl.sum(divergence, 0))
    if LEVEL >= TOKEN:
        tl.store(at, length)
        tl.store(at + 2 * sequences, tl.sum(clipped_sum, 0))
        tl.store(at + 3 * sequences, tl.sum(ratio_sum, 0))
        tl.store(at + 5 * sequences, -tl.sum(gain_sum, 0))
        tl.store(at + 6 * sequences, tl.max(ratio_max, 0))
    else:
        exists = (length > 0).to(ACC)
        share = exists
        if LEVEL == MEAN:
            share = exists / tl.maximum(length, 1.0)
        ratio, clipped, gain, slope = _unit(tl.sum(log_ratio_sum, 0) * share, A, bounds)
        tl.store(at, exists)
        tl.store(at + 2 * sequences, exists * clipped.to(ACC))
        tl.store(at + 3 * sequences, exists * ratio)
        tl.store(at + 5 * sequences, -exists * gain)
        tl.store(at + 6 * sequences, exists * ratio)
        slope *= share
        # Masked, clipped and zero-advantage sequences end here.
        if slope != 0:
            for start in range(begin, end, BLOCK):
                token = start + tl.arange(0, BLOCK)
                counted, _ = _log_ratios(batch, token, end, HAS_MASK, ACC)
                tl.store(d_logp + token, tl.zeros((BLOCK,), ACC) + slope, mask=counted)


def surrogate(logp: Tensor, sequences: Sequences, clip: Clip) -> tuple[Tensor, Tensor, SurrogateMetrics]:
    """-> loss [], d_logp [N], metrics. The loss and its gradient are float32, or float64 if logp is."""
    ref_logp, advantage, cu_seqlens, mask = sequences
    count = len(advantage)
    acc = accumulator(logp.dtype)
    logp = logp.contiguous()
    d_logp = torch.zeros_like(logp, dtype=acc)
    sums = logp.new_zeros(7, count, dtype=acc)
    if count:
        ends = cu_seqlens.contiguous()
        surrogate_kernel[(count,)](
            Batch(
                logp, ref_logp.contiguous(), advantage.contiguous(), ends, ends if mask is None else mask.contiguous()
            ),
            d_logp,
            sums,
            count,
            1.0 - clip.eps_low,
            1.0 + clip.eps_high,
            1.0 / clip.normalizer,
            LEVEL=LEVELS[clip.ratio],
            HAS_MASK=mask is not None,
            ACC=configs.accumulator(logp.dtype),
            **configs.elementwise(configs.SURROGATE, logp.device).options(),
        )
    totals = sums[:6].double().sum(1)
    ratio_max = sums[6].double().amax() if count else totals.new_zeros(())
    return (totals[5] / clip.normalizer).to(acc), d_logp, SurrogateMetrics(totals, ratio_max)
