"""Partial sums of a row's tiles merged to its log-prob, log-sum-exp and entropy."""

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
    lse: tl.tensor,
    entropy: tl.tensor,
    rows: tl.tensor,
    tiles: tl.tensor,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Partial sums [tiles, N] -> logp, lse, entropy [N]."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    top = tl.full((BLOCK_N,), FLOOR, ACC)
    total = tl.zeros((BLOCK_N,), ACC)
    moment = tl.zeros((BLOCK_N,), ACC)
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        at = tile.to(tl.int64)[:, None] * rows + row[None, :]
        inside = (tile < tiles)[:, None] & (row < rows)[None, :]
        part_top = tl.load(maxima + at, mask=inside, other=FLOOR)
        part_total = tl.load(totals + at, mask=inside, other=0.0)
        new_top = tl.maximum(top, tl.max(part_top, 0))
        fall = top - new_top
        part_fall = part_top - new_top[None, :]
        if ENTROPY:
            part_moment = tl.load(moments + at, mask=inside, other=0.0)
            moment = tl.exp(fall) * (moment + fall * total)
            moment += tl.sum(tl.exp(part_fall) * (part_moment + part_fall * part_total), 0)
        total = tl.exp(fall) * total + tl.sum(tl.exp(part_fall) * part_total, 0)
        top = new_top
    log_total = tl.log(total)
    target_logit = tl.load(target_logits + row, mask=row < rows, other=0.0)
    tl.store(lse + row, top + log_total, mask=row < rows)
    # top first: where it is large, top + log_total has lost the digits that a log-prob near zero is made of.
    tl.store(logp + row, (target_logit - top) - log_total, mask=row < rows)
    if ENTROPY:
        tl.store(entropy + row, log_total - moment / total, mask=row < rows)


def merge(
    parts: torch.Tensor,
    tiles: int,
    target_logits: torch.Tensor,
    logp: torch.Tensor,
    lse: torch.Tensor,
    entropy: torch.Tensor | None,
) -> None:
    """Fills logp, lse and, where given, entropy [N] from what partial_sums wrote."""
    rows = len(logp)
    launch = configs.elementwise(configs.MERGE, logp.device)
    merge_kernel[(triton.cdiv(rows, launch.constants["BLOCK_N"]),)](
        parts[0],
        parts[1],
        parts[-1],
        target_logits,
        logp,
        lse,
        lse if entropy is None else entropy,
        rows,
        tiles,
        ENTROPY=entropy is not None,
        ACC=configs.accumulator(logp.dtype),
        **launch.options(),
    )
