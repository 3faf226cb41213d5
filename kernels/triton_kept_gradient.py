"""Kept exponentials turned into the gradient of the logits."""

import torch
import triton
import triton.language as tl

from . import configs
from .row_coefficients import RowNumbers, row_coefficients
from .triton_tiles import padded


@triton.jit
def kept_gradient_kernel(
    kept: tl.tensor,
    d_logits: tl.tensor,
    picked: tl.tensor,
    maxima: tl.tensor,
    targets: tl.tensor,
    top: tl.tensor,
    at_target: tl.tensor,
    constant: tl.tensor,
    rows: tl.tensor,
    kept_rows: tl.tensor,
    columns: tl.tensor,
    room: tl.tensor,
    kept_stride: tl.tensor,
    d_logits_stride: tl.tensor,
    PICK: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """One tile of kept exponentials -> d (hidden weight^T) of the picked rows. Both may be the same memory where all are
    picked. BLOCK_V is partial_sums_kernel's, for the maxima are. Up to `room` a row may be read and written: a multiple
    of 16 allows 16 bytes a load, which the size of a vocabulary need not be."""
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
    e = tl.load(kept + source[:, None] * kept_stride + column[None, :], mask=inside, other=0.0).to(ACC)
    dz = tl.where(column[None, :] == target[:, None], own[:, None], scale[:, None] * e)
    at = d_logits + row.to(tl.int64)[:, None] * d_logits_stride + column[None, :]
    tl.store(at, dz.to(d_logits.dtype.element_ty), mask=inside)


def kept_gradient(
    kept: torch.Tensor,
    state: tuple[torch.Tensor, ...],
    targets: torch.Tensor,
    logp: torch.Tensor,
    logp_grad: torch.Tensor,
    inv_temperature: float,
    picked: torch.Tensor | None = None,
) -> torch.Tensor:
    """dZ, the gradient of hidden weight^T where d loss / d logp is logp_grad [N]: of all rows, written over kept
    [N, vocab_size]; or of the rows picked [n] int64 alone, in that order, in new memory [n, vocab_size]."""
    columns = kept.shape[1]
    maxima, top, log_total = state
    row = row_coefficients(RowNumbers(logp, top, log_total, None), logp_grad, None, inv_temperature)
    block_v = configs.linear(kept.device, kept.dtype).constants["BLOCK_V"]
    launch = configs.elementwise(configs.KEPT, kept.device)
    d_logits = kept if picked is None else kept.new_empty(len(picked), padded(columns))[:, :columns]
    rows = len(d_logits)
    if rows:
        programs = triton.cdiv(rows, launch.constants["BLOCK_N"]) * triton.cdiv(columns, block_v)
        kept_gradient_kernel[(programs,)](
            kept,
            d_logits,
            targets if picked is None else picked,
            maxima,
            targets.contiguous(),
            top,
            row.at_target,
            row.constant,
            rows,
            len(kept),
            columns,
            min(kept.stride(0), d_logits.stride(0)),
            kept.stride(0),
            d_logits.stride(0),
            PICK=picked is not None,
            ACC=configs.accumulator(kept.dtype),
            BLOCK_V=block_v,
            **launch.options(),
        )
    return d_logits
