"""The gradient of the logits of a linear head: tiles of hidden weight^T computed again, or kept exponentials turned into it."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .numbers import Kept, RowCoefficients, RowNumbers, Upstream, row_coefficients
from .triton_tiles import Operands, padded, tile_logits, tile_of


class Rows(NamedTuple):
    """What a kernel is told of each row [N]: its target and the numbers of row_coefficients."""

    targets: Any
    top: Any
    at_target: Any
    constant: Any
    linear: Any


class Table(NamedTuple):
    """A matrix of one number a logit, and how far apart its rows lie."""

    numbers: Any
    stride: Any


@triton.jit(do_not_specialize=["rows", "columns", "first_column"])
def logit_gradient_kernel(
    operands: Operands,
    per_row: Rows,
    d_logits: Table,
    rows: tl.tensor,
    columns: tl.tensor,
    first_column: tl.tensor,
    inv_temperature: tl.float64,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """One tile of logits, recomputed -> d (hidden weight^T) [N, chunk]. weight and the columns of the shape are the chunk's,
    and first_column is its place in the vocabulary. Whole tiles are stored, without a mask that would make the stores
    narrow: the rows of d_logits have room for the last one."""
    targets, top, at_target, constant, linear = per_row
    row_tile, column_tile = tile_of(tl.program_id(0), rows, columns, BLOCK_N, BLOCK_V)
    row = row_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    column = column_tile * BLOCK_V + tl.arange(0, BLOCK_V)
    z = tile_logits(operands, rows, columns, row, column, ACC, PRECISION, BLOCK_N, BLOCK_V, BLOCK_H)
    here = row < rows
    target = tl.load(targets + row, mask=here, other=-1).to(tl.int32) - first_column
    inv_temperature = tl.full((), inv_temperature, ACC)
    z = z * inv_temperature - tl.load(top + row, mask=here, other=0.0)[:, None]
    factor = tl.load(constant + row, mask=here, other=0.0)[:, None]
    if ENTROPY:
        factor += tl.load(linear + row, mask=here, other=0.0)[:, None] * z
    dz = tl.exp(z) * factor
    dz = tl.where(column[None, :] == target[:, None], tl.load(at_target + row, mask=here, other=0.0)[:, None], dz)
    at = d_logits.numbers + row.to(tl.int64)[:, None] * d_logits.stride + column[None, :]
    tl.store(at, dz.to(d_logits.numbers.dtype.element_ty), mask=here[:, None])


def logit_gradient(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    top: Tensor,
    coefficients: RowCoefficients,
    first_column: int,
    inv_temperature: float,
    d_logits: Tensor,
) -> None:
    """Fills d_logits [N, chunk]: the gradient of hidden weight^T for the chunk of the vocabulary that begins at
    first_column and whose rows `weight` is. Rows of d_logits have room for padded(chunk) numbers."""
    at_target, constant, linear = coefficients
    rows, columns = len(hidden), len(weight)
    launch = configs.linear(hidden.device, hidden.dtype, hidden.shape[1])
    block_n, block_v = launch.constants["BLOCK_N"], launch.constants["BLOCK_V"]
    logit_gradient_kernel[(triton.cdiv(rows, block_n) * triton.cdiv(columns, block_v),)](
        Operands(hidden, weight, hidden.stride(0), weight.stride(0), hidden.shape[1]),
        Rows(targets.contiguous(), top, at_target, constant, constant if linear is None else linear),
        Table(d_logits, d_logits.stride(0)),
        rows,
        columns,
        first_column,
        inv_temperature,
        ENTROPY=linear is not None,
        ACC=configs.accumulator(hidden.dtype),
        **launch.options(),
    )


@triton.jit(do_not_specialize=["rows", "columns", "kept_rows"])
def kept_gradient_kernel(
    kept: Table,
    d_logits: Table,
    picked: tl.tensor,
    maxima: tl.tensor,
    per_row: Rows,
    rows: tl.tensor,
    columns: tl.tensor,
    kept_rows: tl.tensor,
    room: tl.tensor,
    PICK: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """One tile of kept exponentials -> d (hidden weight^T) of the picked rows. Both may be the same memory where all are
    picked. BLOCK_V is partial_sums_kernel's, for the maxima are. Up to `room` a row may be read and written: a multiple
    of 16 allows 16 bytes a load, which the size of a vocabulary need not be."""
    targets, top, at_target, constant, _ = per_row
    column_tiles = tl.cdiv(columns, BLOCK_V)
    column_tile = tl.program_id(0) % column_tiles
    row = (tl.program_id(0) // column_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = column_tile * BLOCK_V + tl.arange(0, BLOCK_V)
    here = row < rows
    source = row.to(tl.int64)
    if PICK:
        source = tl.load(picked + row, mask=here, other=0)
    target = tl.load(targets + source, mask=here, other=-1).to(tl.int32)
    tile_top = tl.load(maxima + column_tile.to(tl.int64) * kept_rows + source, mask=here, other=0.0)
    fall = tl.exp(tile_top - tl.load(top + source, mask=here, other=0.0))
    scale = tl.load(constant + source, mask=here, other=0.0) * fall
    own = tl.load(at_target + source, mask=here, other=0.0)
    inside = here[:, None] & (column < room)[None, :]
    e = tl.load(kept.numbers + source[:, None] * kept.stride + column[None, :], mask=inside, other=0.0).to(ACC)
    dz = tl.where(column[None, :] == target[:, None], own[:, None], scale[:, None] * e)
    at = d_logits.numbers + row.to(tl.int64)[:, None] * d_logits.stride + column[None, :]
    tl.store(at, dz.to(d_logits.numbers.dtype.element_ty), mask=inside)


def kept_gradient(
    kept: Kept, targets: Tensor, logp_grad: Tensor, inv_temperature: float, picked: Tensor | None = None
) -> Tensor:
    """dZ, the gradient of hidden weight^T where d loss / d logp is logp_grad [N]: of all rows, written over what was kept
    [N, vocab_size]; or of the rows picked [n] int64 alone, in that order, in new memory [n, vocab_size]."""
    numbers, (maxima, top, log_total) = kept.numbers, kept.state
    columns = numbers.shape[1]
    row = row_coefficients(RowNumbers(kept.logp, top, log_total), Upstream(logp_grad), inv_temperature)
    launch = configs.elementwise(configs.KEPT, numbers.device)
    d_logits = numbers if picked is None else numbers.new_empty(len(picked), padded(columns))[:, :columns]
    rows = len(d_logits)
    if rows:
        programs = triton.cdiv(rows, launch.constants["BLOCK_N"]) * triton.cdiv(columns, kept.block)
        kept_gradient_kernel[(programs,)](
            Table(numbers, numbers.stride(0)),
            Table(d_logits, d_logits.stride(0)),
            targets if picked is None else picked,
            maxima,
            Rows(targets.contiguous(), top, row.at_target, row.constant, row.constant),
            rows,
            columns,
            len(numbers),
            min(numbers.stride(0), d_logits.stride(0)),
            PICK=picked is not None,
            ACC=configs.accumulator(numbers.dtype),
            BLOCK_V=kept.block,
            **launch.options(),
        )
    return d_logits
