"""partial_sums for sm_90 and later: a persistent kernel whose loads are made by the tensor memory accelerator (TMA).

One program a multiprocessor walks over tiles. The accelerator computes addresses and fills in zeros past the edges, so
loads take no registers and no instructions of the warps that multiply. Tiles are folded as partial_sums_kernel does
(triton_tiles.fold_tile), to the same numbers.

Left out on purpose: loads of the next tile while this one is folded (the flattened loop), which spills 8 bytes a thread.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import configs
from .configs import Launch
from .triton_tiles import fold_tile, tile_of


@triton.jit
def partial_sums_tma_kernel(
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
        fold_tile(
            z,
            row_tile * BLOCK_N + tl.arange(0, BLOCK_N),
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


def launch_for(hidden: torch.Tensor, weight: torch.Tensor) -> Launch | None:
    """The kernel's configuration, where it is for this chip and dtype, and the accelerator for these addresses (multiples
    of 16 bytes)."""
    aligned = (t.data_ptr() % 16 == 0 and t.stride(0) * t.dtype.itemsize % 16 == 0 for t in (hidden, weight))
    return configs.linear_tma(hidden.device, hidden.dtype) if all(aligned) else None


def descriptors(hidden: torch.Tensor, weight: torch.Tensor, vocab_size: int, launch: Launch) -> list[TensorDescriptor]:
    """The two operands as the accelerator reads them, in blocks."""
    rows, width = hidden.shape
    n, v, h = (launch.constants[name] for name in ("BLOCK_N", "BLOCK_V", "BLOCK_H"))
    return [
        TensorDescriptor(hidden, [rows, width], [hidden.stride(0), 1], [n, h]),
        TensorDescriptor(weight, [vocab_size, width], [weight.stride(0), 1], [v, h]),
    ]
