"""Tiles of hidden weight^T folded to three numbers a row, their exponentials stored where they are to be kept, and the
partial sums of a row's tiles merged to its log-prob, maximum, log of the sum above it, and entropy.

On sm_90 and later a persistent kernel loads tiles through the tensor memory accelerator (TMA): one program a multiprocessor
walks over tiles, the accelerator computes addresses and fills in zeros past the edges, so loads take no registers and no
instructions of the warps that multiply. Tiles are folded alike, to the same numbers.

Left out on purpose: loads of the next tile while this one is folded (the flattened loop), which spills 8 bytes a thread.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import configs
from .configs import FLOOR, Launch
from .numbers import RowNumbers, Softmax
from .triton_tiles import Operands, Sums, fold_tile, is_aligned, tile_logits, tile_of


@triton.jit(do_not_specialize=["rows", "columns"])
def partial_sums_kernel(
    operands: Operands,
    sums: Sums,
    rows: tl.tensor,
    columns: tl.tensor,
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
    z = tile_logits(operands, rows, columns, row, column, ACC, PRECISION, BLOCK_N, BLOCK_V, BLOCK_H)
    fold_tile(z, row, column_tile, sums, rows, columns, tl.full((), inv_temperature, ACC), ENTROPY, KEEP, BLOCK_V)


@triton.jit(do_not_specialize=["rows", "columns"])
def partial_sums_tma_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    width: tl.tensor,
    sums: Sums,
    rows: tl.tensor,
    columns: tl.tensor,
    inv_temperature: tl.float64,
    ENTROPY: tl.constexpr,
    KEEP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """Every num_programs-th tile. hidden [N, H] and weight [V, H] are descriptors with blocks [BLOCK_N, BLOCK_H] and
    [BLOCK_V, BLOCK_H]."""
    tiles = tl.cdiv(rows, BLOCK_N) * tl.cdiv(columns, BLOCK_V)
    # What does not change from tile to tile is computed again for each: kept in registers, it makes others spill.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        row_tile, column_tile = tile_of(tile, rows, columns, BLOCK_N, BLOCK_V)
        z = tl.zeros((BLOCK_N, BLOCK_V), dtype=ACC)
        for start in range(0, width, BLOCK_H):
            x = hidden.load([row_tile * BLOCK_N, start])
            w = weight.load([column_tile * BLOCK_V, start])
            z = tl.dot(x, w.T, z, input_precision=PRECISION, out_dtype=ACC)
        row = row_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        fold_tile(z, row, column_tile, sums, rows, columns, tl.full((), inv_temperature, ACC), ENTROPY, KEEP, BLOCK_V)


def partial_sums(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softmax: Softmax,
    parts: Tensor,
    target_logits: Tensor,
    kept: Tensor | None = None,
) -> None:
    """Fills parts [2 or 3, tiles * N or more] (maxima, totals and, where there is a third, moments), target_logits [N]
    and, where given, kept [N, vocab_size] whose rows are padded. The numbers of a row of hidden are neighbours."""
    rows, width = hidden.shape
    inv_temperature, vocab_size = softmax
    tma = launch_for(hidden, weight)
    launch = tma or configs.linear(hidden.device, hidden.dtype, width)
    tiles = triton.cdiv(rows, launch.constants["BLOCK_N"]) * triton.cdiv(vocab_size, launch.constants["BLOCK_V"])
    written = hidden if kept is None else kept
    sums = Sums(targets, written, parts[0], parts[1], parts[-1], target_logits, written.stride(0))
    options = {
        "ENTROPY": len(parts) == 3,
        "KEEP": kept is not None,
        "ACC": configs.accumulator(hidden.dtype),
        **launch.options(),
    }
    if tma is None:
        operands = Operands(hidden, weight, hidden.stride(0), weight.stride(0), width)
        partial_sums_kernel[(tiles,)](operands, sums, rows, vocab_size, inv_temperature, **options)
    else:
        grid = (min(tiles, configs.multiprocessors(hidden.device)),)
        described = descriptors(hidden, weight, vocab_size, tma)
        partial_sums_tma_kernel[grid](*described, width, sums, rows, vocab_size, inv_temperature, **options)


def launch_for(hidden: Tensor, weight: Tensor) -> Launch | None:
    """The kernel's configuration, where it is for this chip and dtype, and the accelerator for these addresses (multiples
    of 16 bytes)."""
    aligned = is_aligned(hidden) and is_aligned(weight)
    return configs.linear_tma(hidden.device, hidden.dtype, hidden.shape[1]) if aligned else None


def descriptors(hidden: Tensor, weight: Tensor, vocab_size: int, launch: Launch) -> list[TensorDescriptor]:
    """The two operands as the accelerator reads them, in blocks."""
    rows, width = hidden.shape
    n, v, h = (launch.constants[name] for name in ("BLOCK_N", "BLOCK_V", "BLOCK_H"))
    return [
        TensorDescriptor(hidden, [rows, width], [hidden.stride(0), 1], [n, h]),
        TensorDescriptor(weight, [vocab_size, width], [weight.stride(0), 1], [v, h]),
    ]


@triton.jit(do_not_specialize=["rows", "tiles"])
def merge_kernel(
    parts: tl.tuple,
    target_logits: tl.tensor,
    found: tl.tuple,
    rows: tl.tensor,
    tiles: tl.tensor,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Partial sums [tiles, N] -> logp, row_top, row_log_total, entropy [N]."""
    maxima, totals, moments = parts
    logp, row_top, row_log_total, entropy = found
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # A maximum and sums a lane, merged at the end: next to a likely token's 1, what is added later is rounded away.
    tops = tl.full((BLOCK_T, BLOCK_N), FLOOR, ACC)
    sums = tl.zeros((BLOCK_T, BLOCK_N), ACC)
    sums_of_moments = tl.zeros((BLOCK_T, BLOCK_N), ACC)
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        at = tile.to(tl.int64)[:, None] * rows + row[None, :]
        inside = (tile < tiles)[:, None] & (row < rows)[None, :]
        part_top = tl.load(maxima + at, mask=inside, other=FLOOR)
        part_total = tl.load(totals + at, mask=inside, other=0.0)
        new_tops = tl.maximum(tops, part_top)
        fall = tops - new_tops
        part_fall = part_top - new_tops
        if ENTROPY:
            part_moment = tl.load(moments + at, mask=inside, other=0.0)
            sums_of_moments = tl.exp(fall) * (sums_of_moments + fall * sums)
            sums_of_moments += tl.exp(part_fall) * (part_moment + part_fall * part_total)
        sums = tl.exp(fall) * sums + tl.exp(part_fall) * part_total
        tops = new_tops
    top = tl.max(tops, 0)
    fall = tops - top[None, :]
    if ENTROPY:
        moment = tl.sum(tl.exp(fall) * (sums_of_moments + fall * sums), 0)
    total = tl.sum(tl.exp(fall) * sums, 0)
    log_total = tl.log(total)
    target_logit = tl.load(target_logits + row, mask=row < rows, other=0.0)
    # top and log_total stay apart: their sum has lost the digits that a log-prob near zero is made of.
    tl.store(row_top + row, top, mask=row < rows)
    tl.store(row_log_total + row, log_total, mask=row < rows)
    tl.store(logp + row, (target_logit - top) - log_total, mask=row < rows)
    if ENTROPY:
        tl.store(entropy + row, log_total - moment / total, mask=row < rows)


def merge(parts: Tensor, tiles: int, target_logits: Tensor, found: RowNumbers) -> None:
    """Fills what was found of the rows [N] from what partial_sums wrote."""
    rows = len(found.logp)
    launch = configs.elementwise(configs.MERGE, found.logp.device)
    merge_kernel[(triton.cdiv(rows, launch.constants["BLOCK_N"]),)](
        (parts[0], parts[1], parts[-1]),
        target_logits,
        (*found[:3], found.logp if found.entropy is None else found.entropy),
        rows,
        tiles,
        ENTROPY=found.entropy is not None,
        ACC=configs.accumulator(found.logp.dtype),
        **launch.options(),
    )
