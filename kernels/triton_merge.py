"""Partial sums of a row's tiles merged to its log-prob, maximum, log of the sum above it, and entropy."""

import torch
import triton
import triton.language as tl

from . import configs
from .configs import FLOOR


@triton.jit
def merge_kernel(
    maxima: tl.tensor,
    totals: tl.tensor,
    moments: tl.tensor,
    target_logits: tl.tensor,
    logp: tl.tensor,
    row_top: tl.tensor,
    row_log_total: tl.tensor,
    entropy: tl.tensor,
    rows: tl.tensor,
    tiles: tl.tensor,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Partial sums [tiles, N] -> logp, row_top, row_log_total, entropy [N]."""
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


def merge(
    parts: torch.Tensor,
    tiles: int,
    target_logits: torch.Tensor,
    logp: torch.Tensor,
    top: torch.Tensor,
    log_total: torch.Tensor,
    entropy: torch.Tensor | None,
) -> None:
    """Fills logp, top, log_total and, where given, entropy [N] from what partial_sums wrote."""
    rows = len(logp)
    launch = configs.elementwise(configs.MERGE, logp.device)
    merge_kernel[(triton.cdiv(rows, launch.constants["BLOCK_N"]),)](
        parts[0],
        parts[1],
        parts[-1],
        target_logits,
        logp,
        top,
        log_total,
        logp if entropy is None else entropy,
        rows,
        tiles,
        ENTROPY=entropy is not None,
        ACC=configs.accumulator(logp.dtype),
        **launch.options(),
    )
