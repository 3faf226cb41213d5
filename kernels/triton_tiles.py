"""What the kernels over tiles of hidden weight^T share: the order of tiles, the product of one, and its operands' layout.

Kernels take numbers of rows and columns with do_not_specialize: one is compiled for every batch, and a number that 16 divides
does not make the compiler keep more in registers, and spill.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import FLOOR

# Rows of dZ are padded to a multiple of this, which every BLOCK_V divides: whole tiles fit, and rows begin on 16 bytes.
ROW_PADDING = 256
# Row tiles that are walked side by side. The tiles of 128 x 256 that a GPU's 132 multiprocessors work on at a time then are
# about a square, and the weight is read once a band of 2,048 rows.
BAND_TILES = 16
BAND: tl.constexpr = tl.constexpr(BAND_TILES)


@triton.jit
def tile_of(
    program: tl.tensor, rows: tl.tensor, columns: tl.tensor, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Row tile and column tile of a program: down BAND row tiles, then right, so that neighbours share both operands in
    L2. One grid axis, because the others end at 65,535."""
    row_tiles = tl.cdiv(rows, BLOCK_N)
    column_tiles = tl.cdiv(columns, BLOCK_V)
    band = program // (column_tiles * BAND)
    height = tl.minimum(row_tiles - band * BAND, BAND)
    inside = program % (column_tiles * BAND)
    return band * BAND + inside % height, inside // height


class Operands(NamedTuple):
    """hidden [N, H] and weight [V, H] as a kernel gets them: addresses, how far apart their rows lie, and H."""

    hidden: Any
    weight: Any
    hidden_stride: Any
    weight_stride: Any
    width: Any


class Sums(NamedTuple):
    """What a tile is folded to: maxima, totals and moments [ceil(V / BLOCK_V), N], target_logits [N] by the targets [N], and
    kept [N, V] whose rows lie kept_stride apart, with room for whole tiles."""

    targets: Any
    kept: Any
    maxima: Any
    totals: Any
    moments: Any
    target_logits: Any
    kept_stride: Any


@triton.jit
def tile_logits(
    operands: Operands,
    rows: tl.tensor,
    columns: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> tl.tensor:
    """hidden[row] weight[column]^T [BLOCK_N, BLOCK_V]. Past the edge the last row is read again, and the caller drops
    what it makes of it. Offsets are int64: 14,123 rows of 152,064 numbers pass 2^31."""
    hidden, weight, hidden_stride, weight_stride, width = operands
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


@triton.jit
def fold_tile(
    z: tl.tensor,
    row: tl.tensor,
    column_tile: tl.tensor,
    sums: Sums,
    rows: tl.tensor,
    columns: tl.tensor,
    inv_temperature: tl.tensor,
    ENTROPY: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """A tile z of hidden weight^T -> its part of the sums and, once a row, the target's logit. With KEEP also exp(logit -
    maximum) -> kept, whole tiles of it: its rows have room for the last one."""
    targets, kept, maxima, totals, moments, target_logits, kept_stride = sums
    here = row < rows
    target = tl.load(targets + row, mask=here, other=-1).to(tl.int32)
    # Columns are counted within the tile: compared with constants, they take no registers, and there are none to spare.
    local = tl.arange(0, BLOCK_V)
    first_column = column_tile * BLOCK_V
    z = tl.where(local[None, :] < columns - first_column, z * inv_temperature, FLOOR)
    target_logit = tl.sum(tl.where(local[None, :] == (target - first_column)[:, None], z, 0.0), 1)
    top = tl.max(z, 1)
    z -= top[:, None]
    e = tl.exp(z)
    at = column_tile.to(tl.int64) * rows + row
    tl.store(maxima + at, top, mask=here)
    tl.store(totals + at, tl.sum(e, 1), mask=here)
    if ENTROPY:
        tl.store(moments + at, tl.sum(e * z, 1), mask=here)
    inside = (target >= first_column) & (target < first_column + BLOCK_V)
    tl.store(target_logits + row, target_logit, mask=inside)
    if KEEP:
        kept_at = kept + row.to(tl.int64)[:, None] * kept_stride + (first_column + local)[None, :]
        tl.store(kept_at, e.to(kept.dtype.element_ty), mask=here[:, None])


def padded(columns: int) -> int:
    return triton.cdiv(columns, ROW_PADDING) * ROW_PADDING


def loadable(hidden: Tensor) -> Tensor:
    """hidden as loads of 16 bytes need it, a copy where it is not: the numbers of a row are neighbours, and rows begin at
    multiples of 16 bytes if they are a multiple of them long."""
    if hidden.stride(1) != 1:
        return hidden.contiguous()
    aligned = is_aligned(hidden) or hidden.shape[1] * hidden.itemsize % 16
    return hidden if aligned else hidden.clone(memory_format=torch.contiguous_format)


def is_aligned(matrix: Tensor) -> bool:
    """Whether each row begins at a multiple of 16 bytes."""
    return matrix.data_ptr() % 16 == 0 and matrix.stride(0) * matrix.itemsize % 16 == 0
