"""The splits of a row's attention added up in their order."""

import torch
import triton
import triton.language as tl

from . import configs
from .configs import FLOOR
from .paging import SPLIT_TOKENS

SPLIT: tl.constexpr = tl.constexpr(SPLIT_TOKENS)


@triton.jit
def attention_merge_kernel(
    sums: tl.tensor,
    tops: tl.tensor,
    totals: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,
    splits: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One query head of one row: its splits -> out [R, Hq, D]; zeros for a row of no tokens."""
    row = tl.program_id(0).to(tl.int64)
    head = row * tl.num_programs(1) + tl.program_id(1)
    dim = tl.arange(0, BLOCK_D)
    top = tl.full((), FLOOR, ACC)
    total = tl.full((), 0.0, ACC)
    result = tl.zeros((BLOCK_D,), ACC)
    for split in range(0, tl.cdiv(tl.load(lengths + row), SPLIT)):
        part = head * splits + split
        part_top = tl.load(tops + part)
        new_top = tl.maximum(top, part_top)
        fall = tl.exp(top - new_top)
        part_fall = tl.exp(part_top - new_top)
        total = total * fall + tl.load(totals + part) * part_fall
        result = result * fall + tl.load(sums + part * BLOCK_D + dim) * part_fall
        top = new_top
    result = tl.where(total > 0, result / total, 0.0)
    tl.store(out + head * BLOCK_D + dim, result.to(out.dtype.element_ty))


def attention_merge(
    sums: torch.Tensor, tops: torch.Tensor, totals: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """sums [R, Hq, splits, D], tops and totals [R, Hq, splits] as paged_attention_kernel wrote them -> [R, Hq, D]."""
    rows, heads, splits, size = sums.shape
    out = sums.new_empty(rows, heads, size, dtype=dtype)
    if rows:
        attention_merge_kernel[(rows, heads)](
            sums,
            tops,
            totals,
            lengths,
            out,
            splits,
            ACC=configs.accumulator(sums.dtype),
            BLOCK_D=size,
            **configs.elementwise(configs.ATTENTION_MERGE, sums.device).options(),
        )
    return out
