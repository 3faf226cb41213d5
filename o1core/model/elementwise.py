"""What blocks compute number by number, RMSNorm and SiLU, and how an update does without keeping it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..kernels.torch_elementwise import by_rows
from .config import ModelConfig


def rms_norm(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    """RMSNorm over the last dimension, statistics in float32. In the hybrid families the weight is what is added to 1."""
    if config.family.hybrid:
        wide = at_least_float32(x)
        return F.rms_norm(wide, (x.shape[-1],), 1 + weight.to(wide.dtype), config.norm_eps).to(x.dtype)
    return kernels.rms_norm(x, weight, config.norm_eps)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def silu(x: Tensor) -> Tensor:
    """SiLU of x [..., F], by_rows."""
    return by_rows(F.silu, x)


def product_of(linear: nn.Module, make: Callable[..., Tensor], *inputs: Tensor, lean: bool) -> Tensor:
    """linear(make(*inputs)). If lean, the backward pass makes what is multiplied again instead of keeping it.

    That is for what is cheap to make of tensors that are kept anyway: a norm, or SwiGLU. Not inside a checkpoint, which is to
    keep none of a block's tensors.
    """
    made = make(*inputs)
    if not lean or not torch.is_grad_enabled():
        return linear(made)
    place, count, detached = made.data_ptr(), made.numel(), [t.detach() for t in inputs]

    def pack(t: Tensor) -> Tensor | torch.Size:
        return t.shape if t.data_ptr() == place and t.numel() == count else t

    def unpack(held: Tensor | torch.Size) -> Tensor:
        return held if isinstance(held, Tensor) else make(*detached).view(held)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return linear(made)
