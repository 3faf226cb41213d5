"""The clipped surrogate of a linear head with the fewest products, over either backend's primitives.

The loss sees the logits only through one log-prob a row, so one coefficient a row (d loss / d logp) is all that the
gradient needs. Rows whose coefficient is exactly zero (masked, clipped, zero advantage) are dropped before the gradient
products, n of N rows are left, and nothing is approximated: a dropped row's gradient is zero.

Two passes   a forward without gradients gives every log-prob and coefficient (2NVH FLOPs), the backward recomputes the
             logits of the rows that are left (6nVH). Any ratio and any size.
One pass     the exponentials are kept until the coefficients are known and serve both gradients (2NVH + 4nVH). They
             have to fit in WAVE_BYTES. A token's coefficient depends on its own log-prob alone, so a batch with ratio
             "token" may go in waves; the coefficients of a sequence wait for its last token, so there the whole batch
             is one wave. Several waves add up d_weight, in half precision in an fp32 copy of 4VH bytes, and a wave
             below WAVE_ROWS rows would spend more time on that than the fourth product takes: then two passes.
"""

import torch

from . import chunked
from .surrogate_metrics import FIELDS, SurrogateMetrics

WAVE_ROWS = 128
WAVE_BYTES = chunked.SCRATCH_BYTES
WAVE_BYTES_CUDA = 4 * 2**30


def linear_surrogate(hidden, weight, targets, inv_temperature, vocab_size, primitives, *surrogate):
    """hidden [N, H] and targets [N]; *surrogate: the arguments of the surrogate primitive from ref_logp on."""
    ratio = surrogate[4]
    need_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    wave = rows_a_wave(len(hidden), weight, ratio) if need_gradient else 0
    if wave:
        return OnePass.apply(hidden, weight, targets, inv_temperature, vocab_size, primitives, wave, *surrogate)
    return TwoPasses.apply(hidden, weight, targets, inv_temperature, vocab_size, primitives, *surrogate)


def rows_a_wave(tokens: int, weight: torch.Tensor, ratio: str) -> int:
    """How many rows a wave of the one pass takes; 0 where two passes are to be taken.

    float16 always takes two: the kept gradient of a logit, divided by the count of units, would underflow."""
    acc = chunked.accumulator(weight.dtype)
    if weight.dtype == torch.float16:
        return 0
    bound = WAVE_BYTES_CUDA if weight.device.type == "cuda" else WAVE_BYTES
    a_row = 2 * weight.shape[0] * acc.itemsize  # kept, and what is picked of it
    wide_copy = 0 if weight.dtype == acc else weight.numel() * acc.itemsize
    if tokens * a_row <= bound - wide_copy:
        return tokens
    sum_of_waves = wide_copy if weight.requires_grad else 0
    rows = (bound - wide_copy - sum_of_waves) // a_row
    return rows if ratio == "token" and rows >= WAVE_ROWS else 0


class TwoPasses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, inv_temperature, vocab_size, primitives, *surrogate):
        logp, lse, _ = primitives.linear_forward(hidden, weight, targets, inv_temperature, vocab_size, False)
        loss, d_logp, metrics = primitives.surrogate(logp, *surrogate)
        ctx.save_for_backward(hidden, weight, targets, lse, d_logp)
        ctx.settings = inv_temperature, vocab_size
        ctx.backward_primitive = primitives.linear_backward
        ctx.rest = 4 + len(surrogate)
        return loss, metrics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_grad, _):
        hidden, weight, targets, lse, d_logp = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        rows = d_logp.nonzero()[:, 0]
        all_kept = len(rows) == len(d_logp)
        kept = hidden
        if not all_kept:
            kept, targets, lse, d_logp = hidden[rows], targets[rows], lse[rows], d_logp[rows]
        d_hidden, d_weight = ctx.backward_primitive(
            kept, weight, targets, lse, d_logp * loss_grad, None, None, *ctx.settings, need_hidden, need_weight
        )
        if need_hidden and not all_kept:
            d_hidden = torch.zeros_like(hidden).index_copy_(0, rows, d_hidden)
        return d_hidden, d_weight, *(None,) * ctx.rest


class OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, inv_temperature, vocab_size, primitives, wave, *surrogate):
        ref_logp, advantage, cu_seqlens, mask, *settings = surrogate
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        acc = chunked.accumulator(weight.dtype)
        tokens = hidden.shape[0]
        several = wave < tokens
        if several:
            # Waves cut sequences; with ratio "token" every token may as well be a sequence of its own.
            advantage = advantage.repeat_interleave(cu_seqlens.diff(), output_size=tokens)
        d_hidden = torch.zeros_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=acc if several else None) if need_weight else None
        loss = hidden.new_zeros((), dtype=acc)
        nothing = torch.zeros(len(FIELDS), dtype=torch.float64, device=hidden.device)
        metrics = SurrogateMetrics(nothing, nothing[0])
        for r in range(0, tokens, wave):
            part = slice(r, min(r + wave, tokens))
            x, t = hidden[part], targets[part]
            logp, lse, kept, maxima = primitives.kept_forward(x, weight, t, inv_temperature, vocab_size)
            if several:
                units = advantage[part], torch.arange(len(t) + 1, device=hidden.device)
            else:
                units = advantage, cu_seqlens
            part_loss, d_logp, part_metrics = primitives.surrogate(
                logp, ref_logp[part], *units, None if mask is None else mask[part], *settings
            )
            loss += part_loss
            metrics = metrics.merge(part_metrics)
            rows = d_logp.nonzero()[:, 0]
            picked = rows if len(rows) < len(t) else None
            d_logits = primitives.kept_gradient(kept, maxima, t, logp, lse, d_logp, inv_temperature, picked)
            d_logits = d_logits.to(weight.dtype)
            if need_hidden:
                d_hidden[rows + r] = d_logits @ weight[:vocab_size]
            if need_weight:
                chunked.accumulate(d_weight[:vocab_size], d_logits.T, x if picked is None else x[picked])
        if need_weight:
            d_weight = d_weight.to(weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.rest = 5 + len(surrogate)
        return loss, metrics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_grad, _):
        gradients = (None if g is None else g * loss_grad.to(g.dtype) for g in ctx.saved_tensors)
        return *gradients, *(None,) * ctx.rest
