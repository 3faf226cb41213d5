"""RMSNorm, the rotary embedding and SwiGLU in torch: on any device, with the bits of the plain operations.

Gradients are made of the operations that torch's own autograd runs, some by it and over operations computed once more, so they
are the ones that a model without these Functions would get.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

THREAD_GRAIN = 1 << 15  # up to so many numbers are computed by one thread (torch's at::internal::GRAIN_SIZE)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def rms_norm_backward(
    x: Tensor, weight: Tensor, eps: float, grad: Tensor, need_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """-> d_x, and d_weight where it is needed."""
    with torch.enable_grad():
        leaves = x.detach().requires_grad_(), weight.detach().requires_grad_(need_weight)
        out = rms_norm(*leaves, eps)
    d_x, *rest = torch.autograd.grad(out, leaves[: 1 + need_weight], grad)
    return d_x, rest[0] if rest else None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return by_rows(F.silu, gate) * up


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of each number of x [..., F]. On a CPU rows [R, F] that are decoded are taken so few at a time that one
    thread computes them.

    torch cuts a large tensor into a piece for each thread, and the numbers at a seam round otherwise: where a seam falls
    inside a row, its bits depend on the rows beside it. The packed rows of an update are as long each time, and need no care.
    """
    decoded = x.ndim == 2 and x.is_inference()
    if x.is_cuda or not decoded or x.numel() <= THREAD_GRAIN or torch.get_num_threads() == 1:
        return function(x)
    return torch.cat([function(part) for part in x.split(max(1, THREAD_GRAIN // x.shape[-1]))])


def swiglu_backward(gate_up: Tensor, grad: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    d_gate_up = torch.empty_like(gate_up)
    d_gate, d_up = d_gate_up.chunk(2, dim=-1)
    torch.mul(grad, F.silu(gate), out=d_up)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=d_gate)
    return d_gate_up
