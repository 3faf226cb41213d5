"""The primitives joined to torch's autograd, once for both backends: each Function saves the inputs and a few numbers
a row, never logits.

The clipped surrogate of a linear head takes the fewest products. The loss sees the logits only through one log-prob a row, so
one coefficient a row (d loss / d logp) is all that the gradient needs. Rows whose coefficient is exactly zero (masked,
clipped, zero advantage) are dropped before the gradient products, n of N rows are left, and nothing is approximated: a
dropped row's gradient is zero. Dropping rows waits for the device, so with no_sync none is.

Two passes   a forward without gradients gives every log-prob and coefficient (2NVH FLOPs), the backward recomputes the
             logits of the rows that are left (6nVH). Any ratio and any size.
One pass     the exponentials are kept until the coefficients are known and serve both gradients (2NVH + 4nVH). They
             have to fit in the backend's budget (numbers.OnePassBudget). A token's coefficient depends on its own log-prob
             alone, so a batch with ratio "token" or "cispo" may go in waves; the coefficients of a sequence wait for its last
             token, so there the whole batch is one wave. Several waves add up d_weight, in half precision in an fp32
             copy of 4VH bytes, and a wave of few rows would spend more time on that than the fourth product takes: then
             two passes.

Tensors are arguments of their own, never inside a tuple: torch.compile traces no other way.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Primitives
from .numbers import (
    METRICS,
    Clip,
    Needs,
    RowNumbers,
    Sequences,
    Softmax,
    SurrogateMetrics,
    Upstream,
    accumulator,
    add_product,
)


def upstream_of(known: RowNumbers, logp_grad: Tensor | None, entropy_grad: Tensor | None) -> Upstream:
    return Upstream(torch.zeros_like(known.logp) if logp_grad is None else logp_grad, entropy_grad)


class LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax, entropy: bool, run: Primitives
    ) -> Any:
        known = run.linear_forward(hidden, weight, targets, softmax, entropy)
        ctx.save_for_backward(hidden, weight, targets, *known)
        ctx.softmax, ctx.run = softmax, run
        ctx.set_materialize_grads(False)
        return (known.logp, known.entropy) if entropy else known.logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logp_grad: Tensor | None, entropy_grad: Tensor | None = None) -> Any:
        if logp_grad is None and entropy_grad is None:
            return (None,) * 6
        *inputs, logp, top, log_total, entropy = ctx.saved_tensors
        known = RowNumbers(logp, top, log_total, entropy)
        upstream, needs = upstream_of(known, logp_grad, entropy_grad), Needs(*ctx.needs_input_grad[:2])
        return *ctx.run.linear_backward(*inputs, ctx.softmax, known, upstream, needs), None, None, None, None


class GatherLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, softmax: Softmax, entropy: bool, inplace: bool, run: Primitives
    ) -> Any:
        known = run.gather_forward(logits, targets, softmax, entropy)
        ctx.save_for_backward(logits, targets, *known)
        ctx.softmax, ctx.inplace, ctx.run = softmax, inplace, run
        ctx.set_materialize_grads(False)
        return (known.logp, known.entropy) if entropy else known.logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logp_grad: Tensor | None, entropy_grad: Tensor | None = None) -> Any:
        if logp_grad is None and entropy_grad is None:
            return (None,) * 6
        logits, targets, *numbers = ctx.saved_tensors
        known = RowNumbers(*numbers)
        upstream = upstream_of(known, logp_grad, entropy_grad)
        d_logits = ctx.run.gather_backward(logits, targets, ctx.softmax, known, upstream, ctx.inplace)
        return d_logits, None, None, None, None, None


class ClippedSurrogate(torch.autograd.Function):
    """-> loss, and the two tensors of SurrogateMetrics. *sequences: the tensors of Sequences."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor, run: Primitives, clip: Clip, *sequences: Any) -> Any:
        loss, d_logp, metrics = run.surrogate(logp, Sequences(*sequences), clip)
        ctx.save_for_backward(d_logp)
        ctx.mark_non_differentiable(metrics.sums, metrics.ratio_max)
        ctx.dtype = logp.dtype
        return loss, metrics.sums, metrics.ratio_max

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, *_: Any) -> Any:
        (d_logp,) = ctx.saved_tensors
        return ((d_logp * loss_grad).to(ctx.dtype), *(None,) * 6)


def linear_surrogate(
    head: tuple[Tensor, Tensor, Tensor],
    softmax: Softmax,
    sequences: Sequences,
    clip: Clip,
    run: Primitives,
    no_sync: bool,
) -> tuple[Tensor, SurrogateMetrics]:
    """head: hidden [N, H], weight [V, H] and targets [N]."""
    hidden, weight, _ = head
    need_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    wave = run.one_pass.rows_a_wave(len(hidden), weight, clip.ratio) if need_gradient else 0
    if wave:
        loss, sums, ratio_max = OnePass.apply(*head, softmax, clip, run, no_sync, wave, *sequences)
    else:
        loss, sums, ratio_max = TwoPasses.apply(*head, softmax, clip, run, no_sync, *sequences)
    return loss, SurrogateMetrics(sums, ratio_max)


class TwoPasses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softmax: Softmax,
        clip: Clip,
        run: Primitives,
        no_sync: bool,
        *sequences: Any,
    ) -> Any:
        known = run.linear_forward(hidden, weight, targets, softmax, False)
        loss, d_logp, metrics = run.surrogate(known.logp, Sequences(*sequences), clip)
        ctx.save_for_backward(hidden, weight, targets, *known[:3], d_logp)
        ctx.mark_non_differentiable(metrics.sums, metrics.ratio_max)
        ctx.softmax, ctx.run, ctx.no_sync = softmax, run, no_sync
        return loss, metrics.sums, metrics.ratio_max

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, *_: Any) -> Any:
        hidden, weight, *numbers, d_logp = ctx.saved_tensors
        needs = Needs(*ctx.needs_input_grad[:2])
        rows = None if ctx.no_sync else d_logp.nonzero()[:, 0]
        if rows is not None and len(rows) == len(d_logp):
            rows = None
        kept = hidden
        if rows is not None:
            kept, d_logp = hidden[rows], d_logp[rows]
            numbers = [n[rows] for n in numbers]
        targets, *known = numbers
        d_hidden, d_weight = ctx.run.linear_backward(
            kept, weight, targets, ctx.softmax, RowNumbers(*known), Upstream(d_logp * loss_grad), needs
        )
        if needs.hidden and rows is not None:
            d_hidden = torch.zeros_like(hidden).index_copy_(0, rows, d_hidden)
        return d_hidden, d_weight, *(None,) * 9


class OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softmax: Softmax,
        clip: Clip,
        run: Primitives,
        no_sync: bool,
        wave: int,
        *sequences: Any,
    ) -> Any:
        ref_logp, advantage, cu_seqlens, mask = sequences
        needs = Needs(*ctx.needs_input_grad[:2])
        tokens = hidden.shape[0]
        several = wave < tokens
        if several:
            # Waves cut sequences; with these ratios every token may as well be a sequence of its own.
            advantage = advantage.repeat_interleave(cu_seqlens.diff(), output_size=tokens)
        d_hidden = torch.zeros_like(hidden) if needs.hidden else None
        acc = accumulator(weight.dtype)
        d_weight = torch.zeros_like(weight, dtype=acc if several else None) if needs.weight else None
        loss = hidden.new_zeros((), dtype=acc)
        nothing = torch.zeros(len(METRICS), dtype=torch.float64, device=hidden.device)
        metrics = SurrogateMetrics(nothing, nothing[0])
        for r in range(0, tokens, wave):
            part = slice(r, min(r + wave, tokens))
            x, t = hidden[part], targets[part]
            kept = run.kept_forward(x, weight, t, softmax)
            units = (advantage, cu_seqlens)
            if several:
                units = advantage[part], torch.arange(len(t) + 1, device=hidden.device)
            of_part = Sequences(ref_logp[part], *units, None if mask is None else mask[part])
            part_loss, d_logp, part_metrics = run.surrogate(kept.logp, of_part, clip)
            loss += part_loss
            metrics = metrics.merge(part_metrics)
            picked = None if no_sync else rows_with_gradient(d_logp, weight, run)
            d_logits = run.kept_gradient(kept, t, d_logp, softmax.inv_temperature, picked)
            d_logits = d_logits.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[part if picked is None else picked + r] = d_logits @ weight[: softmax.vocab_size]
            if d_weight is not None:
                add_product(d_weight[: softmax.vocab_size], d_logits.T, x if picked is None else x[picked])
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        ctx.mark_non_differentiable(metrics.sums, metrics.ratio_max)
        return loss, metrics.sums, metrics.ratio_max

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, *_: Any) -> Any:
        # The weight's gradient is a gigabyte at real sizes: where no other backward pass can follow it is not copied.
        times = Tensor.mul_ if frees_the_graph() else Tensor.mul
        gradients = (None if g is None else times(g, loss_grad.to(g.dtype)) for g in ctx.saved_tensors)
        return *gradients, *(None,) * 10


def frees_the_graph() -> bool:
    """In a backward pass: whether what it saved is freed after it (no retain_graph), and so may be written over. False
    while torch.compile traces, which finds out by itself."""
    return not (torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph())


def rows_with_gradient(d_logp: Tensor, weight: Tensor, run: Primitives) -> Tensor | None:
    """The rows whose coefficient is not zero [n] int64; None where that is all of them, or too many to be copied."""
    rows = d_logp.nonzero()[:, 0]
    fewer = len(rows) < len(d_logp)
    return rows if fewer and run.one_pass.may_copy(len(d_logp), len(rows), weight) else None
