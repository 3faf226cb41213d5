"""Tiles of hidden weight^T folded to three numbers a row, and their exponentials stored where they are to be kept."""

import torch
import triton
import triton.language as tl

from . import configs
from .configs import FLOOR
from .triton_tiles import tile_logits, tile_of


@triton.jit
def partial_sums_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    targets: tl.tensor,
    kept: tl.tensor,
    maxima: tl.tensor,
    totals: tl.tensor,
    moments: tl.tensor,
    target_logits: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    width: tl.tensor,
    hidden_stride: tl.tensor,
    weight_stride: tl.tensor,
    kept_stride: tl.tensor,
    inv_temperature: tl.float64,
    ENTROPY: tl.constexpr,
    KEEP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """One tile of logits -> maxima, totals, moments [ceil(V / BLOCK_V), N] and, once a row, target_logits [N]. With KEEP
    also exp(logit - maximum) -> kept [N, V], whole tiles of it: its rows have room for the last one."""
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
    inv_temperature = tl.full((), inv_temperature, ACC)
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
        kept_at = kept + row.to(tl.int64)[:, None] * kept_stride + column[None, :]
        tl.store(kept_at, e.to(kept.dtype.element_ty), mask=here[:, None])


def partial_sums(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    inv_temperature: float,
    vocab_size: int,
    parts: torch.Tensor,
    target_logits: torch.Tensor,
    kept: torch.Tensor | None,
) -> None:
    """Fills parts [2 or 3, tiles * N or more] (maxima, totals and, where there is a third, moments), target_logits [N]
    and, where given, kept [N, vocab_size] whose rows are padded. The numbers of a row of hidden are neighbours."""
    rows, width = hidden.shape
    launch = configs.linear(hidden.device, hidden.dtype)
    programs = triton.cdiv(rows, launch.constants["BLOCK_N"]) * triton.cdiv(vocab_size, launch.constants["BLOCK_V"])
    partial_sums_kernel[(programs,)](
        hidden,
        weight,
        targets,
        hidden if kept is None else kept,
        parts[0],
        parts[1],
        parts[-1],
        target_logits,
        rows,
        vocab_size,
        width,
        hidden.stride(0),
        weight.stride(0),
        hidden.stride(0) if kept is None else kept.stride(0),
        inv_temperature,
        ENTROPY=len(parts) == 3,
        KEEP=kept is not None,
        ACC=configs.accumulator(hidden.dtype),
        **launch.options(),
    )
