"""The clipped surrogate of a linear head with the fewest products, over either backend's primitives.

The loss sees the logits only through one log-prob a row, so one coefficient a row (d loss / d logp) holds all that the
gradient needs. A forward without gradients gives the log-probs (2NVH FLOPs) and with them the coefficients; rows whose
coefficient is exactly zero (masked, clipped, zero advantage) are dropped, and the backward products run on the n rows
that are left (6nVH). Nothing is approximated: a dropped row's gradient is zero.
"""

import torch


class LinearSurrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, inv_temperature, vocab_size, primitives, *surrogate):
        logp, lse, _ = primitives.linear_forward(hidden, weight, targets, inv_temperature, vocab_size, False)
        loss, d_logp, metrics = primitives.surrogate(logp, *surrogate)
        if any(ctx.needs_input_grad[:2]):
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
        some = len(rows) < len(d_logp)
        if some:
            targets, lse, d_logp = targets[rows], lse[rows], d_logp[rows]
        d_rows, d_weight = ctx.backward_primitive(
            hidden[rows] if some else hidden,
            weight, targets, lse, d_logp * loss_grad, None, None, *ctx.settings, need_hidden, need_weight,
        )  # fmt: skip
        d_hidden = d_rows
        if need_hidden and some:
            d_hidden = torch.zeros_like(hidden).index_copy_(0, rows, d_rows)
        return d_hidden, d_weight, *(None,) * ctx.rest
