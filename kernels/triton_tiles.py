"""What the kernels over tiles of hidden weight^T share: the order of tiles, the product of one, and its operands' layout."""

import torch
import triton
import triton.language as tl

# Rows of dZ are padded to a multiple of this, which every BLOCK_V divides: whole tiles fit, and rows begin on 16 bytes.
ROW_PADDING = 256


@triton.jit
def tile_of(
    program: tl.tensor, rows: tl.tensor, columns: tl.tensor, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Row tile and column tile of a program: down 8 row tiles, then right, so that neighbours share both operands in
    L2. One grid axis, because the others end at 65,535."""
    row_tiles = tl.cdiv(rows, BLOCK_N)
    column_tiles = tl.cdiv(columns, BLOCK_V)
    band = program // (8 * column_tiles)
    height = min(row_tiles - 8 * band, 8)
    inside = program % (8 * column_tiles)
    return 8 * band + inside % height, inside // height


@triton.jit
def tile_logits(
    hidden: tl.tensor,
    weight: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    width: tl.tensor,
    hidden_stride: tl.tensor,
    weight_stride: tl.tensor,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> tl.tensor:
    """hidden[row] weight[column]^T [BLOCK_N, BLOCK_V]. Past the edge the last row is read again, and the caller drops
    what it makes of it. Offsets are int64: 14,123 rows of 152,064 numbers pass 2^31."""
    k = tl.arange(0, BLOCK_H)
    x_at = hidden + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * hidden_stride + k[None, :]
    w_at = weight + tl.minimum(column, columns - 1).to(tl.int64)[None, :] * weight_stride + k[:, None]
    z = tl.zeros((BLOCK_N, BLOCK_V), dtype=ACC)
    for start in range(0, width, BLOCK_H):
        x = tl.load(x_at, mask=k[None, :] < width - start, other=0.0)
        w = tl.load(w_at, mask=k[:, None] < width - start, other=0.0)
        z = tl.dot(x, w, z, input_precision=PRECISION, out_dtype=ACC)
        x_at += BLOCK_H
        w_at += BLOCK_H
    return z


def padded(columns: int) -> int:
    return triton.cdiv(columns, ROW_PADDING) * ROW_PADDING


def unit_stride(hidden: torch.Tensor) -> torch.Tensor:
    """Rows may lie anywhere, the numbers of a row must be neighbours: loads of 16 bytes need it."""
    return hidden if hidden.stride(1) == 1 else hidden.contiguous()
