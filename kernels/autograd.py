"""The primitives joined to torch's autograd, once for both backends: each Function saves the inputs and a few numbers
a row, never logits."""

import torch


class LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, inv_temperature, vocab_size, want_entropy, primitives):
        logp, lse, entropy = primitives.linear_forward(
            hidden, weight, targets, inv_temperature, vocab_size, want_entropy
        )
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.settings = inv_temperature, vocab_size
        ctx.backward_primitive = primitives.linear_backward
        ctx.set_materialize_grads(False)
        return (logp, entropy) if want_entropy else logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, logp_grad, entropy_grad=None):
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        if logp_grad is None and entropy_grad is None:
            return (None,) * 7
        logp_grad = torch.zeros_like(lse) if logp_grad is None else logp_grad
        d_hidden, d_weight = ctx.backward_primitive(
            hidden, weight, targets, lse, logp_grad, entropy_grad, entropy, *ctx.settings, need_hidden, need_weight
        )
        return d_hidden, d_weight, None, None, None, None, None


class GatherLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, inv_temperature, vocab_size, want_entropy, inplace_gradient, primitives):
        logp, lse, entropy = primitives.gather_forward(logits, targets, inv_temperature, vocab_size, want_entropy)
        ctx.save_for_backward(logits, targets, lse, entropy)
        ctx.settings = inv_temperature, vocab_size, inplace_gradient
        ctx.backward_primitive = primitives.gather_backward
        ctx.set_materialize_grads(False)
        return (logp, entropy) if want_entropy else logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, logp_grad, entropy_grad=None):
        logits, targets, lse, entropy = ctx.saved_tensors
        if logp_grad is None and entropy_grad is None:
            return (None,) * 7
        logp_grad = torch.zeros_like(lse) if logp_grad is None else logp_grad
        d_logits = ctx.backward_primitive(logits, targets, lse, logp_grad, entropy_grad, entropy, *ctx.settings)
        return d_logits, None, None, None, None, None, None


class ClippedSurrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logp, primitives, *rest):
        loss, d_logp, metrics = primitives.surrogate(logp, *rest)
        ctx.save_for_backward(d_logp)
        ctx.dtype = logp.dtype
        ctx.rest = len(rest)
        return loss, metrics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_grad, _):
        (d_logp,) = ctx.saved_tensors
        return ((d_logp * loss_grad).to(ctx.dtype), None, *(None,) * ctx.rest)
