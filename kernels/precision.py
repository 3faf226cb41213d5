"""The numbers that both backends share: the dtype of sums, the clamp of log-ratios, the stand-in for minus infinity."""

import torch

LOG_RATIO_LIMIT = 20.0  # a unit's log-ratio is clamped to +- this; outside, the gradient is zero
# Stands for minus infinity in running maxima. Finite, because (-inf) - (-inf) and 0 * (-inf) are NaN.
FLOOR = -1e30


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-probs: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a b, added in the dtype of total. The product of bf16 (fp16) operands keeps its fp32 sum on a GPU; a CPU
    has no such product and rounds it to bf16 first."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b
