"""The clipped surrogate of a linear head with the fewest products, over either backend's primitives.

The loss sees the logits only through one log-prob a row, so one coefficient a row (d loss / d logp) is all that the
gradient needs. Rows whose coefficient is exactly zero (masked, clipped, zero advantage) are dropped before the gradient
products, n of N rows are left, and nothing is approximated: a dropped row's gradient is zero.

Two passes   a forward without gradients gives every log-prob and coefficient (2NVH FLOPs), the backward recomputes the
             logits of the rows that are left (6nVH). A sequence ratio needs it: its coefficients wait for the last token.
One pass     a token's coefficient depends on its own log-prob alone, so logits are formed once, wave by wave, and used
             for the coefficient and for both gradients (2NVH + 4nVH). The waves add up d_weight, which in half precision
             takes an fp32 accumulator of 4VH bytes; where it does not fit in the scratch bound beside a wave of
             WAVE_ROWS rows of logits, two passes are taken. On a CPU that is no loss: in 128 MiB the waves of a large
             vocabulary are so small that adding up d_weight takes the time that the fourth product would.
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
    rows = wave_rows(weight) if need_gradient and ratio == "token" else 0
    if rows >= WAVE_ROWS:
        return OnePass.apply(hidden, weight, targets, inv_temperature, vocab_size, primitives, rows, *surrogate)
    return TwoPasses.apply(hidden, weight, targets, inv_temperature, vocab_size, primitives, *surrogate)


def wave_rows(weight: torch.Tensor) -> int:
    """How many rows of logits fit in the scratch bound beside the accumulator of d_weight; 0 for float16, in which the
    gradient of a logit would underflow."""
    if weight.dtype == torch.float16:
        return 0
    dtype = chunked.accumulator(weight.dtype)
    added_in_place = weight.dtype == dtype or not weight.requires_grad
    accumulator = 0 if added_in_place else weight.numel() * dtype.itemsize
    bound = WAVE_BYTES_CUDA if weight.device.type == "cuda" else WAVE_BYTES
    return (bound - accumulator) // (weight.shape[0] * dtype.itemsize)


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
        advantage = advantage.repeat_interleave(cu_seqlens.diff(), output_size=tokens)
        d_hidden = torch.zeros_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=acc) if need_weight else None
        loss = hidden.new_zeros((), dtype=acc)
        nothing = torch.zeros(len(FIELDS), dtype=torch.float64, device=hidden.device)
        metrics = SurrogateMetrics(nothing, nothing[0])
        for r in range(0, tokens, wave):
            part = slice(r, min(r + wave, tokens))
            logits = chunked.wide_product(hidden[part], weight)
            logp, lse, _ = primitives.gather_forward(logits, targets[part], inv_temperature, vocab_size, False)
            # Every token is a sequence of its own here, which is all that the token ratio knows of sequences.
            singles = torch.arange(part.stop - r + 1, device=hidden.device)
            part_loss, d_logp, part_metrics = primitives.surrogate(
                logp, ref_logp[part], advantage[part], singles, None if mask is None else mask[part], *settings
            )
            loss += part_loss
            metrics = metrics.merge(part_metrics)
            rows = d_logp.nonzero()[:, 0]
            if len(rows) < len(d_logp):
                logits, lse, d_logp = logits[rows], lse[rows], d_logp[rows]
            rows += r
            d_logits = primitives.gather_backward(
                logits, targets[rows], lse, d_logp, None, None, inv_temperature, vocab_size, True
            ).to(weight.dtype)
            if need_hidden:
                d_hidden[rows] = d_logits @ weight
            if need_weight:
                chunked.accumulate(d_weight, d_logits.T, hidden[rows])
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
