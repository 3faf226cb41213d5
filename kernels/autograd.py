"""The primitives joined to torch's autograd, once for both backends: each Function saves the inputs and a few numbers
a row, never logits."""

from typing import Any

import torch

from .dispatch import Primitives
from .row_coefficients import RowNumbers


class LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        inv_temperature: float,
        vocab_size: int,
        want_entropy: bool,
        primitives: Primitives,
    ) -> Any:
        known = primitives.linear_forward(hidden, weight, targets, inv_temperature, vocab_size, want_entropy)
        ctx.save_for_backward(hidden, weight, targets, *known)
        ctx.settings = inv_temperature, vocab_size
        ctx.backward_primitive = primitives.linear_backward
        ctx.set_materialize_grads(False)
        return (known.logp, known.entropy) if want_entropy else known.logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, logp_grad: torch.Tensor | None, entropy_grad: torch.Tensor | None = None) -> Any:
        hidden, weight, targets, *numbers = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        if logp_grad is None and entropy_grad is None:
            return (None,) * 7
        known = RowNumbers(*numbers)
        logp_grad = torch.zeros_like(known.logp) if logp_grad is None else logp_grad
        d_hidden, d_weight = ctx.backward_primitive(
            hidden, weight, targets, known, logp_grad, entropy_grad, *ctx.settings, need_hidden, need_weight
        )
        return d_hidden, d_weight, None, None, None, None, None


class GatherLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        inv_temperature: float,
        vocab_size: int,
        want_entropy: bool,
        inplace_gradient: bool,
        primitives: Primitives,
    ) -> Any:
        known = primitives.gather_forward(logits, targets, inv_temperature, vocab_size, want_entropy)
        ctx.save_for_backward(logits, targets, *known)
        ctx.settings = inv_temperature, vocab_size, inplace_gradient
        ctx.backward_primitive = primitives.gather_backward
        ctx.set_materialize_grads(False)
        return (known.logp, known.entropy) if want_entropy else known.logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, logp_grad: torch.Tensor | None, entropy_grad: torch.Tensor | None = None) -> Any:
        logits, targets, *numbers = ctx.saved_tensors
        if logp_grad is None and entropy_grad is None:
            return (None,) * 7
        known = RowNumbers(*numbers)
        logp_grad = torch.zeros_like(known.logp) if logp_grad is None else logp_grad
        d_logits = ctx.backward_primitive(logits, targets, known, logp_grad, entropy_grad, *ctx.settings)
        return d_logits, None, None, None, None, None, None


class ClippedSurrogate(torch.autograd.Function):
    """-> loss, and the two tensors of SurrogateMetrics."""

    @staticmethod
    def forward(ctx: Any, logp: torch.Tensor, primitives: Primitives, *rest: Any) -> Any:
        loss, d_logp, metrics = primitives.surrogate(logp, *rest)
        ctx.save_for_backward(d_logp)
        ctx.mark_non_differentiable(metrics.sums, metrics.ratio_max)
        ctx.dtype = logp.dtype
        ctx.rest = len(rest)
        return loss, metrics.sums, metrics.ratio_max

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_grad: torch.Tensor, *_: Any) -> Any:
        (d_logp,) = ctx.saved_tensors
        return ((d_logp * loss_grad).to(ctx.dtype), None, *(None,) * ctx.rest)
