"""What a transformer computes number by number beside its products: RMSNorm, the rotary embedding and SwiGLU.

Between the passes each holds its inputs alone, and what the gradient needs beside them is computed again: a read of the
inputs costs less than the memory of what torch's own autograd would keep (SwiGLU: two more tensors of [N, F]). In Triton each
is one kernel a pass, computes in float32 (float64 for float64 inputs) and rounds once; a row's bits do not depend on the rows
beside it. torch's twins have the bits of the plain operations they are made of, gradients included.

Left out on purpose: RMSNorm joined to the sum before it or the product behind it, which would tie the kernels to one kind of
block.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import require
from .dispatch import TORCH, Primitives, primitives

WIDEST_NORM = 16384  # numbers of a row that the Triton kernel holds in registers


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    x [..., H], weight [H] of the same dtype -> [..., H]. Differentiable in both. Raises ValueError naming the wrong argument.
    """
    expected = (x.shape[-1],)
    require(weight.shape == expected, f"weight: shape {tuple(weight.shape)}, expected {expected} to match x")
    require(weight.dtype == x.dtype, f"weight: dtype {weight.dtype}, expected {x.dtype} like x")
    require(x.shape[-1] > 0, "x: rows of no numbers")
    run = primitives(x.device) if x.shape[-1] <= WIDEST_NORM else TORCH
    if not wants_gradient(x, weight):
        return run.rms_norm(x, weight, eps)
    return RmsNorm.apply(x, weight, eps, run)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding (arXiv 2104.09864): the pairs (x_i, x_{i + D/2}) turned by their position's angle.

    x [..., heads, D]; cos and sin [..., 1, D/2] of the same dtype, whose leading dimensions are those of x or the last of
    them (one row of angles for all sequences of a batch). Differentiable in x alone. Raises ValueError naming the wrong
    argument.
    """
    leading = x.shape[: x.ndim - 2]
    for name, table in (("cos", cos), ("sin", sin)):
        of_table = table.shape[: table.ndim - 2]
        fits = table.shape[-2:] == (1, x.shape[-1] // 2) and of_table == leading[len(leading) - len(of_table) :]
        require(
            fits, f"{name}: shape {tuple(table.shape)}, expected {(*leading, 1, x.shape[-1] // 2)} or the end of it"
        )
    run = primitives(x.device)
    if not wants_gradient(x):
        return run.rotate(x, cos, sin)
    return Rotate.apply(x, cos, sin, run)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202) of gate_up [..., 2 F], whose first half is the gate -> [..., F]. Differentiable."""
    require(gate_up.shape[-1] % 2 == 0, f"gate_up: {gate_up.shape[-1]} numbers a row, expected an even count")
    run = primitives(gate_up.device)
    if not wants_gradient(gate_up):
        return run.swiglu(gate_up)
    return SwiGLU.apply(gate_up, run)


def wants_gradient(*tensors: Tensor) -> bool:
    """A Function costs a CPU some microseconds a call, which decoding a small model would notice."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


class RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, run: Primitives) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.run = eps, run
        return run.rms_norm(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *ctx.run.rms_norm_backward(*ctx.saved_tensors, ctx.eps, grad, ctx.needs_input_grad[1]), None, None


class Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, run: Primitives) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.run = run
        return run.rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return ctx.run.rotate(grad, cos, -sin), None, None, None  # a rotation's transpose turns back


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, run: Primitives) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.run = run
        return run.swiglu(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.run.swiglu_backward(*ctx.saved_tensors, grad), None
