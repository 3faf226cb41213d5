"""The gradient of stored logits: one program a row and block of columns, in place of the logits where asked for.

p = exp(z - lse)       d logits_j = inv_temperature (logp_grad ([j = target] - p_j) - entropy_grad p_j (z_j - lse + entropy))
"""

import torch
import triton
import triton.language as tl

from . import configs
from .configs import FLOOR
from .precision import accumulator


@triton.jit
def gather_backward_kernel(
    logits: tl.tensor,
    targets: tl.tensor,
    lse: tl.tensor,
    logp_grad: tl.tensor,
    entropy_grad: tl.tensor,
    entropy: tl.tensor,
    d_logits: tl.tensor,
    vocab_size: tl.tensor,
    columns: tl.tensor,
    blocks: tl.tensor,
    row_stride: tl.tensor,
    d_row_stride: tl.tensor,
    inv_temperature: tl.float64,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """One block of one row: logits -> d_logits, zero from vocab_size on. Both may be the same memory."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK_V + tl.arange(0, BLOCK_V)
    inv_temperature = tl.full((), inv_temperature, ACC)
    z = tl.load(logits + row * row_stride + column, mask=column < columns, other=0.0).to(ACC) * inv_temperature
    log_p = tl.where(column < vocab_size, z, float("-inf")) - tl.load(lse + row)
    slope = tl.load(logp_grad + row)
    pull = slope
    if ENTROPY:
        pull += tl.load(entropy_grad + row) * (tl.maximum(log_p, FLOOR) + tl.load(entropy + row))
    dz = tl.where(column == tl.load(targets + row), slope, 0.0) - tl.exp(log_p) * pull
    dz = (dz * inv_temperature).to(d_logits.dtype.element_ty)
    tl.store(d_logits + row * d_row_stride + column, dz, mask=column < columns)


def gather_backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    logp_grad: torch.Tensor,
    entropy_grad: torch.Tensor | None,
    entropy: torch.Tensor | None,
    inv_temperature: float,
    vocab_size: int,
    inplace: bool,
) -> torch.Tensor:
    """-> d_logits [N, V] in the dtype of logits; with inplace it is logits, written over."""
    rows, columns = logits.shape
    acc = accumulator(logits.dtype)
    launch = configs.elementwise(configs.GATHER, logits.device)
    d_logits = logits if inplace else torch.empty_like(logits, memory_format=torch.contiguous_format)
    logp_grad = logp_grad.to(acc).contiguous()
    blocks = triton.cdiv(columns, launch.constants["BLOCK_V"])
    if rows:
        gather_backward_kernel[(rows * blocks,)](
            logits,
            targets.contiguous(),
            lse,
            logp_grad,
            logp_grad if entropy_grad is None else entropy_grad.to(acc).contiguous(),
            lse if entropy_grad is None else entropy,
            d_logits,
            vocab_size,
            columns,
            blocks,
            logits.stride(0),
            d_logits.stride(0),
            inv_temperature,
            ENTROPY=entropy_grad is not None,
            ACC=configs.accumulator(logits.dtype),
            **launch.options(),
        )
    return d_logits
