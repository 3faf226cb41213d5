"""The clipped surrogate of a linear head with the fewest products, over either backend's primitives.

The loss sees the logits only through one log-prob a row, so one coefficient a row (d loss / d logp) is all that the
gradient needs. Rows whose coefficient is exactly zero (masked, clipped, zero advantage) are dropped before the gradient
products, n of N rows are left, and nothing is approximated: a dropped row's gradient is zero. Dropping rows waits for
the device, so with no_sync none is.

Two passes   a forward without gradients gives every log-prob and coefficient (2NVH FLOPs), the backward recomputes the
             logits of the rows that are left (6nVH). Any ratio and any size.
One pass     the exponentials are kept until the coefficients are known and serve both gradients (2NVH + 4nVH). They
             have to fit in the backend's budget (one_pass_budget.py). A token's coefficient depends on its own log-prob
             alone, so a batch with ratio "token" or "cispo" may go in waves; the coefficients of a sequence wait for its last
             token, so there the whole batch is one wave. Several waves add up d_weight, in half precision in an fp32
             copy of 4VH bytes, and a wave of few rows would spend more time on that than the fourth product takes: then
             two passes.
"""

from typing import Any

import torch

from .dispatch import Primitives
from .precision import accumulator, add_product
from .row_coefficients import RowNumbers
from .surrogate_metrics import FIELDS, SurrogateMetrics


def linear_surrogate(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    inv_temperature: float,
    vocab_size: int,
    primitives: Primitives,
    no_sync: bool,
    *surrogate: Any,
) -> tuple[torch.Tensor, SurrogateMetrics]:
    """hidden [N, H] and targets [N]; *surrogate: the arguments of the surrogate primitive from ref_logp on."""
    ratio = surrogate[4]
    need_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    wave = primitives.one_pass.rows_a_wave(len(hidden), weight, ratio) if need_gradient else 0
    arguments = hidden, weight, targets, inv_temperature, vocab_size, primitives, no_sync
    if wave:
        loss, sums, ratio_max = OnePass.apply(*arguments, wave, *surrogate)
    else:
        loss, sums, ratio_max = TwoPasses.apply(*arguments, *surrogate)
    return loss, SurrogateMetrics(sums, ratio_max)


class TwoPasses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        inv_temperature: float,
        vocab_size: int,
        primitives: Primitives,
        no_sync: bool,
        *surrogate: Any,
    ) -> Any:
        known = primitives.linear_forward(hidden, weight, targets, inv_temperature, vocab_size, False)
        loss, d_logp, metrics = primitives.surrogate(known.logp, *surrogate)
        ctx.save_for_backward(hidden, weight, targets, *known[:3], d_logp)
        ctx.mark_non_differentiable(metrics.sums, metrics.ratio_max)
        ctx.settings = inv_temperature, vocab_size
        ctx.backward_primitive = primitives.linear_backward
        ctx.no_sync = no_sync
        ctx.rest = 5 + len(surrogate)
        return loss, metrics.sums, metrics.ratio_max

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_grad: torch.Tensor, *_: Any) -> Any:
        hidden, weight, *numbers, d_logp = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        rows = None if ctx.no_sync else d_logp.nonzero()[:, 0]
        if rows is not None and len(rows) == len(d_logp):
            rows = None
        kept = hidden
        if rows is not None:
            kept, d_logp = hidden[rows], d_logp[rows]
            numbers = [n[rows] for n in numbers]
        targets, logp, top, log_total = numbers
        d_hidden, d_weight = ctx.backward_primitive(
            *(kept, weight, targets, RowNumbers(logp, top, log_total, None), d_logp * loss_grad, None),
            *(*ctx.settings, need_hidden, need_weight),
        )
        if need_hidden and rows is not None:
            d_hidden = torch.zeros_like(hidden).index_copy_(0, rows, d_hidden)
        return d_hidden, d_weight, *(None,) * ctx.rest


class OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        inv_temperature: float,
        vocab_size: int,
        primitives: Primitives,
        no_sync: bool,
        wave: int,
        *surrogate: Any,
    ) -> Any:
        ref_logp, advantage, cu_seqlens, mask, *settings = surrogate
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        tokens = hidden.shape[0]
        several = wave < tokens
        if several:
            # Waves cut sequences; with these ratios every token may as well be a sequence of its own.
            advantage = advantage.repeat_interleave(cu_seqlens.diff(), output_size=tokens)
        d_hidden = torch.zeros_like(hidden) if need_hidden else None
        acc = accumulator(weight.dtype)
        d_weight = torch.zeros_like(weight, dtype=acc if several else None) if need_weight else None
        loss = hidden.new_zeros((), dtype=acc)
        nothing = torch.zeros(len(FIELDS), dtype=torch.float64, device=hidden.device)
        metrics = SurrogateMetrics(nothing, nothing[0])
        for r in range(0, tokens, wave):
            part = slice(r, min(r + wave, tokens))
            x, t = hidden[part], targets[part]
            logp, kept, state = primitives.kept_forward(x, weight, t, inv_temperature, vocab_size)
            units = (advantage, cu_seqlens)
            if several:
                units = advantage[part], torch.arange(len(t) + 1, device=hidden.device)
            part_loss, d_logp, part_metrics = primitives.surrogate(
                logp, ref_logp[part], *units, None if mask is None else mask[part], *settings
            )
            loss += part_loss
            metrics = metrics.merge(part_metrics)
            picked = None if no_sync else rows_with_gradient(d_logp, weight, primitives)
            d_logits = primitives.kept_gradient(kept, state, t, logp, d_logp, inv_temperature, picked)
            d_logits = d_logits.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[part if picked is None else picked + r] = d_logits @ weight[:vocab_size]
            if d_weight is not None:
                add_product(d_weight[:vocab_size], d_logits.T, x if picked is None else x[picked])
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        ctx.mark_non_differentiable(metrics.sums, metrics.ratio_max)
        ctx.rest = 6 + len(surrogate)
        return loss, metrics.sums, metrics.ratio_max

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_grad: torch.Tensor, *_: Any) -> Any:
        # The weight's gradient is a gigabyte at real sizes: where no other backward pass can follow it is not copied.
        times = torch.Tensor.mul_ if frees_the_graph() else torch.Tensor.mul
        gradients = (None if g is None else times(g, loss_grad.to(g.dtype)) for g in ctx.saved_tensors)
        return *gradients, *(None,) * ctx.rest


def frees_the_graph() -> bool:
    """In a backward pass: whether what it saved is freed after it (no retain_graph), and so may be written over. False
    while torch.compile traces, which finds out by itself."""
    return not (torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph())


def rows_with_gradient(d_logp: torch.Tensor, weight: torch.Tensor, primitives: Primitives) -> torch.Tensor | None:
    """The rows whose coefficient is not zero [n] int64; None where that is all of them, or too many to be copied."""
    rows = d_logp.nonzero()[:, 0]
    fewer = len(rows) < len(d_logp)
    return rows if fewer and primitives.one_pass.may_copy(len(d_logp), len(rows), weight) else None
