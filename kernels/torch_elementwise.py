"""RMSNorm, the rotary embedding and SwiGLU in torch: on any device, with the bits of the plain operations.

Gradients come from torch's own autograd over the operations computed once more, so they are the ones that a model without
these Functions would get.
"""

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
    return silu(gate) * up


def silu(x: Tensor) -> Tensor:
    """SiLU of x [..., F]. On a CPU rows [R, F] that are decoded are taken so few at a time that one thread computes them.

    torch cuts a large tensor into a piece for each thread, and the numbers at a seam round otherwise: where a seam falls
    inside a row, its bits depend on the rows beside it.
    """
    if x.is_cuda or x.ndim > 2 or x.requires_grad or x.numel() <= THREAD_GRAIN or torch.get_num_threads() == 1:
        return F.silu(x)
    return torch.cat([F.silu(part) for part in x.split(max(1, THREAD_GRAIN // x.shape[-1]))])


def swiglu_backward(gate_up: Tensor, grad: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = gate_up.detach().requires_grad_()
        gate, up = leaf.chunk(2, dim=-1)
        out = F.silu(gate) * up
    return torch.autograd.grad(out, leaf, grad)[0]
