"""Tiles of hidden weight^T computed again and turned into the gradient of the logits."""

import torch
import triton
import triton.language as tl

from . import configs, precision
from .triton_tiles import tile_logits, tile_of


@triton.jit
def logit_gradient_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    targets: tl.tensor,
    lse: tl.tensor,
    logp_grad: tl.tensor,
    entropy_grad: tl.tensor,
    entropy: tl.tensor,
    d_logits: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    width: tl.tensor,
    first_column: tl.tensor,
    hidden_stride: tl.tensor,
    weight_stride: tl.tensor,
    d_logits_stride: tl.tensor,
    inv_temperature: tl.float64,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """One tile of logits, recomputed -> d (hidden weight^T) [N, chunk]. weight and columns are the chunk's, and
    first_column is its place in the vocabulary. Whole tiles are stored, without a mask that would make the stores
    narrow: the rows of d_logits have room for the last one."""
    row_tile, column_tile = tile_of(tl.program_id(0), rows, columns, BLOCK_N, BLOCK_V)
    row = row_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    column = column_tile * BLOCK_V + tl.arange(0, BLOCK_V)
    z = tile_logits(
        hidden,
        weight,
        row,
        column,
        rows,
        columns,
        width,
        hidden_stride,
        weight_stride,
        ACC,
        PRECISION,
        BLOCK_N,
        BLOCK_V,
        BLOCK_H,
    )
    here = row < rows
    target = tl.load(targets + row, mask=here, other=-1).to(tl.int32) - first_column
    inv_temperature = tl.full((), inv_temperature, ACC)
    # The temperature enters twice: in z and in dz.
    slope = tl.load(logp_grad + row, mask=here, other=0.0) * inv_temperature
    log_p = z * inv_temperature - tl.load(lse + row, mask=here, other=0.0)[:, None]
    pull = slope[:, None]
    if ENTROPY:
        entropy_slope = tl.load(entropy_grad + row, mask=here, other=0.0) * inv_temperature
        pull = (slope + entropy_slope * tl.load(entropy + row, mask=here, other=0.0))[:, None]
        pull += entropy_slope[:, None] * log_p
    # The target's share is added afterwards, element by element in place: selecting it first spills registers.
    dz = -tl.exp(log_p) * pull
    dz = tl.where(column[None, :] == target[:, None], dz + slope[:, None], dz)
    at = d_logits + row.to(tl.int64)[:, None] * d_logits_stride + column[None, :]
    tl.store(at, dz.to(d_logits.dtype.element_ty), mask=here[:, None])


def logit_gradient(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    logp_grad: torch.Tensor,
    entropy_grad: torch.Tensor | None,
    entropy: torch.Tensor | None,
    first_column: int,
    inv_temperature: float,
    d_logits: torch.Tensor,
) -> None:
    """Fills d_logits [N, chunk]: the gradient of hidden weight^T for the chunk of the vocabulary that begins at
    first_column and whose rows `weight` is. Rows of d_logits have room for padded(chunk) numbers."""
    rows, width = hidden.shape
    columns = len(weight)
    acc = precision.accumulator(hidden.dtype)
    launch = configs.linear(hidden.device, hidden.dtype)
    block_n, block_v = launch.constants["BLOCK_N"], launch.constants["BLOCK_V"]
    logp_grad = logp_grad.to(acc).contiguous()
    logit_gradient_kernel[(triton.cdiv(rows, block_n) * triton.cdiv(columns, block_v),)](
        hidden,
        weight,
        targets.contiguous(),
        lse,
        logp_grad,
        logp_grad if entropy_grad is None else entropy_grad.to(acc).contiguous(),
        lse if entropy_grad is None else entropy,
        d_logits,
        rows,
        columns,
        width,
        first_column,
        hidden.stride(0),
        weight.stride(0),
        d_logits.stride(0),
        inv_temperature,
        ENTROPY=entropy_grad is not None,
        ACC=configs.accumulator(hidden.dtype),
        **launch.options(),
    )
