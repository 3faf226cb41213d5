"""What blocks compute number by number: RMSNorm and SiLU."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig

THREAD_GRAIN = 1 << 15  # up to so many numbers are computed by one thread (torch's at::internal::GRAIN_SIZE)


def rms_norm(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    """RMSNorm over the last dimension, statistics in float32. In the hybrid families the weight is what is added to 1."""
    if config.family.hybrid:
        wide = at_least_float32(x)
        return F.rms_norm(wide, (x.shape[-1],), 1 + weight.to(wide.dtype), config.norm_eps).to(x.dtype)
    return F.rms_norm(x, (x.shape[-1],), weight, config.norm_eps)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def silu(x: Tensor) -> Tensor:
    """SiLU of x [..., F], by_rows."""
    return by_rows(F.silu, x)


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of each number of x [..., F]. On a CPU rows [R, F] that are decoded are taken so few at a time that one
    thread computes them.

    torch cuts a large tensor into a piece for each thread, and the numbers at a seam round otherwise: where a seam falls
    inside a row, its bits depend on the rows beside it.
    """
    decoded = x.ndim == 2 and x.is_inference()  # the packed rows of an update are alike, and not the engine's
    if x.is_cuda or not decoded or x.numel() <= THREAD_GRAIN or torch.get_num_threads() == 1:
        return function(x)
    return torch.cat([function(part) for part in x.split(max(1, THREAD_GRAIN // x.shape[-1]))])
