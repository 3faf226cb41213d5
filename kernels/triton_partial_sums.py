"""Tiles of hidden weight^T folded to three numbers a row, and their exponentials stored where they are to be kept."""

import torch
import triton
import triton.language as tl

from . import configs
from .triton_partial_sums_tma import descriptors, launch_for, partial_sums_tma_kernel
from .triton_tiles import fold_tile, tile_logits, tile_of


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
    """One program a tile; what it writes: fold_tile."""
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
    fold_tile(
        z,
        row,
        column_tile,
        targets,
        kept,
        maxima,
        totals,
        moments,
        target_logits,
        rows,
        columns,
        kept_stride,
        tl.full((), inv_temperature, ACC),
        ENTROPY,
        KEEP,
        BLOCK_V,
    )


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
    tma = launch_for(hidden, weight)
    launch = tma or configs.linear(hidden.device, hidden.dtype)
    tiles = triton.cdiv(rows, launch.constants["BLOCK_N"]) * triton.cdiv(vocab_size, launch.constants["BLOCK_V"])
    written = hidden if kept is None else kept
    numbers = targets, written, parts[0], parts[1], parts[-1], target_logits, rows, vocab_size, width
    options = {
        "ENTROPY": len(parts) == 3,
        "KEEP": kept is not None,
        "ACC": configs.accumulator(hidden.dtype),
        **launch.options(),
    }
    if tma is None:
        strides = hidden.stride(0), weight.stride(0), written.stride(0)
        partial_sums_kernel[(tiles,)](hidden, weight, *numbers, *strides, inv_temperature, **options)
    else:
        grid = (min(tiles, configs.multiprocessors(hidden.device)),)
        operands = descriptors(hidden, weight, vocab_size, tma)
        partial_sums_tma_kernel[grid](*operands, *numbers, written.stride(0), inv_temperature, **options)
