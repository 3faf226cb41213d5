"""Tiles of hidden weight^T computed again and turned into the gradient of the logits."""

import torch
import triton
import triton.language as tl

from . import configs
from .row_coefficients import RowCoefficients
from .triton_tiles import tile_logits, tile_of


@triton.jit
def logit_gradient_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    targets: tl.tensor,
    top: tl.tensor,
    at_target: tl.tensor,
    constant: tl.tensor,
    linear: tl.tensor,
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
    z = z * inv_temperature - tl.load(top + row, mask=here, other=0.0)[:, None]
    factor = tl.load(constant + row, mask=here, other=0.0)[:, None]
    if ENTROPY:
        factor += tl.load(linear + row, mask=here, other=0.0)[:, None] * z
    dz = tl.exp(z) * factor
    dz = tl.where(column[None, :] == target[:, None], tl.load(at_target + row, mask=here, other=0.0)[:, None], dz)
    at = d_logits + row.to(tl.int64)[:, None] * d_logits_stride + column[None, :]
    tl.store(at, dz.to(d_logits.dtype.element_ty), mask=here[:, None])


def logit_gradient(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    top: torch.Tensor,
    coefficients: RowCoefficients,
    first_column: int,
    inv_temperature: float,
    d_logits: torch.Tensor,
) -> None:
    """Fills d_logits [N, chunk]: the gradient of hidden weight^T for the chunk of the vocabulary that begins at
    first_column and whose rows `weight` is. Rows of d_logits have room for padded(chunk) numbers."""
    rows, width = hidden.shape
    columns = len(weight)
    launch = configs.linear(hidden.device, hidden.dtype)
    block_n, block_v = launch.constants["BLOCK_N"], launch.constants["BLOCK_V"]
    logit_gradient_kernel[(triton.cdiv(rows, block_n) * triton.cdiv(columns, block_v),)](
        hidden,
        weight,
        targets.contiguous(),
        top,
        coefficients.at_target,
        coefficients.constant,
        coefficients.constant if coefficients.linear is None else coefficients.linear,
        d_logits,
        rows,
        columns,
        width,
        first_column,
        hidden.stride(0),
        weight.stride(0),
        d_logits.stride(0),
        inv_temperature,
        ENTROPY=coefficients.linear is not None,
        ACC=configs.accumulator(hidden.dtype),
        **launch.options(),
    )
