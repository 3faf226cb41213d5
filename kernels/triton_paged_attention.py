"""One new token's attention over keys and values in pages, in splits of a fixed length.

One program a (row, key head, split of 512 tokens). The query heads that share a key head are one block, filled up to 16
rows for the tensor cores, so keys and values are read once. A program folds its pages to a maximum, a sum and a weighted
sum of values; triton_attention_merge.py adds up a row's splits in their order. Which splits a row has, and what is added in
which order, depends on its own length alone: its bits are the same alone, in any batch, on any pages, under any table.

Left out on purpose: splits chosen by how many multiprocessors are free, which would make a row's bits depend on the
batch; a prompt's pages read once for all its samples (6 % of a step where prompts are short).
"""

import torch
import triton
import triton.language as tl

from . import configs
from .configs import FLOOR
from .paging import PAGE_TOKENS, SPLIT_TOKENS
from .precision import accumulator
from .triton_attention_merge import attention_merge

PAGE: tl.constexpr = tl.constexpr(PAGE_TOKENS)
SPLIT: tl.constexpr = tl.constexpr(SPLIT_TOKENS)
GROUP_BLOCK: tl.constexpr = tl.constexpr(16)  # the fewest rows that a product on tensor cores takes


@triton.jit
def paged_attention_kernel(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    page_table: tl.tensor,
    lengths: tl.tensor,
    sums: tl.tensor,
    tops: tl.tensor,
    totals: tl.tensor,
    splits: tl.tensor,
    query_stride: tl.tensor,
    page_stride: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.float64,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One split of one row's key head -> sums [R, Hq, splits, D], tops and totals [R, Hq, splits]. A split that begins
    past the row's end writes nothing. What lies past the row's end in its last page is not read: it may be NaN."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.program_id(2) * SPLIT
    length = tl.load(lengths + row)
    if first >= length:
        return
    member = tl.arange(0, GROUP_BLOCK)
    dim = tl.arange(0, BLOCK_D)
    slot = tl.arange(0, PAGE)
    real = member < GROUP
    query_at = queries + row * query_stride + (head * GROUP + member)[:, None] * BLOCK_D + dim[None, :]
    query = tl.load(query_at, mask=real[:, None], other=0.0)
    scale = tl.full((), scale, ACC)
    inside_page = head * (PAGE * BLOCK_D) + slot[:, None] * BLOCK_D + dim[None, :]
    table = page_table + row * table_stride + first // PAGE
    top = tl.full((GROUP_BLOCK,), FLOOR, ACC)
    total = tl.zeros((GROUP_BLOCK,), ACC)
    sum_of_values = tl.zeros((GROUP_BLOCK, BLOCK_D), ACC)
    for page in range(0, tl.cdiv(tl.minimum(length - first, SPLIT), PAGE)):
        at = tl.load(table + page).to(tl.int64) * page_stride + inside_page
        here = slot < length - first - page * PAGE
        key = tl.load(keys + at, mask=here[:, None], other=0.0)
        value = tl.load(values + at, mask=here[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=ACC) * scale
        score = tl.where(here[None, :], score, FLOOR)
        new_top = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp(score - new_top[:, None])
        fall = tl.exp(top - new_top)
        total = total * fall + tl.sum(weight, 1)
        sum_of_values = tl.dot(
            weight.to(value.dtype), value, sum_of_values * fall[:, None], input_precision=PRECISION, out_dtype=ACC
        )
        top = new_top
    heads = tl.num_programs(1) * GROUP
    part = (row * heads + head * GROUP + member) * splits + tl.program_id(2)
    tl.store(tops + part, top, mask=real)
    tl.store(totals + part, total, mask=real)
    tl.store(sums + part[:, None] * BLOCK_D + dim[None, :], sum_of_values, mask=real[:, None])


def paged_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    max_length: int,
) -> torch.Tensor:
    """queries [R, Hq, D], keys and values [pages, Hkv, 64, D], page_table [R, any] and lengths [R] int32 -> [R, Hq, D]."""
    rows, heads, size = queries.shape
    kv_heads = keys.shape[1]
    splits = max(triton.cdiv(max_length, SPLIT_TOKENS), 1)
    acc = accumulator(queries.dtype)
    launch = configs.attention(queries.device, queries.dtype)
    queries = queries.contiguous()
    sums = queries.new_empty(rows, heads, splits, size, dtype=acc)
    tops, totals = (queries.new_empty(rows, heads, splits, dtype=acc) for _ in range(2))
    if rows:
        paged_attention_kernel[(rows, kv_heads, splits)](
            queries,
            keys,
            values,
            page_table,
            lengths,
            sums,
            tops,
            totals,
            splits,
            queries.stride(0),
            keys.stride(0),
            page_table.stride(0),
            size**-0.5,
            GROUP=heads // kv_heads,
            ACC=configs.accumulator(queries.dtype),
            BLOCK_D=size,
            **launch.options(),
        )
    return attention_merge(sums, tops, totals, lengths, queries.dtype)
