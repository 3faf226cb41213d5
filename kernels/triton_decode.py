"""One new token's attention over keys and values in pages, in splits of a fixed length, and the write of those pages.

One program a (row, key head, split of 512 tokens). The query heads that share a key head are one block, filled up to 16
rows for the tensor cores, so keys and values are read once. A program folds its pages to a maximum, a sum and a weighted
sum of values; a second kernel adds up a row's splits in their order. Which splits a row has, and what is added in
which order, depends on its own length alone: its bits are the same alone, in any batch, on any pages, under any table.

Left out on purpose: splits chosen by how many multiprocessors are free, which would make a row's bits depend on the
batch; a prompt's pages read once for all its samples (6 % of a step where prompts are short).
"""

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .configs import FLOOR
from .numbers import PAGE_TOKENS, SPLIT_TOKENS, Pages, accumulator

PAGE: tl.constexpr = tl.constexpr(PAGE_TOKENS)
SPLIT: tl.constexpr = tl.constexpr(SPLIT_TOKENS)
GROUP_BLOCK: tl.constexpr = tl.constexpr(16)  # the fewest rows that a product on tensor cores takes


@triton.jit(do_not_specialize=["splits"])
def paged_attention_kernel(
    queries: tl.tensor,
    query_stride: tl.tensor,
    pages: Pages,
    strides: tl.tuple,
    parts: tl.tuple,
    splits: tl.tensor,
    scale: tl.float64,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One split of one row's key head -> sums [R, Hq, splits, D], tops and totals [R, Hq, splits]. A split that begins
    past the row's end writes nothing. What lies past the row's end in its last page is not read: it may be NaN."""
    keys, values, page_table, lengths = pages
    page_stride, table_stride = strides
    sums, tops, totals = parts
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


@triton.jit(do_not_specialize=["splits"])
def attention_merge_kernel(
    parts: tl.tuple, lengths: tl.tensor, out: tl.tensor, splits: tl.tensor, ACC: tl.constexpr, BLOCK_D: tl.constexpr
) -> None:
    """One query head of one row: its splits -> out [R, Hq, D]; zeros for a row of no tokens."""
    sums, tops, totals = parts
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


def paged_attention(queries: Tensor, pages: Pages, max_length: int) -> Tensor:
    """queries [R, Hq, D] -> [R, Hq, D]."""
    rows, heads, size = queries.shape
    kv_heads = pages.keys.shape[1]
    splits = max(triton.cdiv(max_length, SPLIT_TOKENS), 1)
    acc = accumulator(queries.dtype)
    launch = configs.attention(queries.device, queries.dtype)
    queries = queries.contiguous()
    sums = queries.new_empty(rows, heads, splits, size, dtype=acc)
    tops, totals = (queries.new_empty(rows, heads, splits, dtype=acc) for _ in range(2))
    out = queries.new_empty(rows, heads, size)
    if rows:
        parts = sums, tops, totals
        options = {"ACC": configs.accumulator(queries.dtype), "BLOCK_D": size}
        paged_attention_kernel[(rows, kv_heads, splits)](
            queries,
            queries.stride(0),
            pages,
            (pages.keys.stride(0), pages.table.stride(0)),
            parts,
            splits,
            size**-0.5,
            GROUP=heads // kv_heads,
            **options,
            **launch.options(),
        )
        merging = configs.elementwise(configs.ATTENTION_MERGE, sums.device)
        attention_merge_kernel[(rows, heads)](parts, pages.lengths, out, splits, **options, **merging.options())
    return out


@triton.jit(do_not_specialize=["query_heads"])
def write_pages_kernel(
    new: tl.tuple,
    new_strides: tl.tuple,
    rotation: tl.tuple,
    pages: Pages,
    strides: tl.tuple,
    turned: tl.tensor,
    query_heads: tl.tensor,
    ACC: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """One head of one row: below query_heads a query -> turned [R, Hq, D], from there on a key and its value -> slot
    length - 1 of the row. A row of length 0 writes no page."""
    queries, new_keys, new_values = new
    query_stride, key_stride, value_stride = new_strides
    cos, sin = rotation
    keys, values, page_table, lengths = pages
    page_stride, table_stride = strides
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dim = tl.arange(0, HALF)
    c = tl.load(cos + row * HALF + dim).to(ACC)
    s = tl.load(sin + row * HALF + dim).to(ACC)
    if head < query_heads:
        at = queries + row * query_stride + head * (2 * HALF) + dim
        first = tl.load(at).to(ACC)
        second = tl.load(at + HALF).to(ACC)
        to = turned + (row * query_heads + head) * (2 * HALF) + dim
        tl.store(to, (first * c - second * s).to(turned.dtype.element_ty))
        tl.store(to + HALF, (second * c + first * s).to(turned.dtype.element_ty))
    else:
        head -= query_heads
        token = tl.load(lengths + row) - 1
        if token >= 0:
            page = tl.load(page_table + row * table_stride + token // PAGE).to(tl.int64)
            to = page * page_stride + (head * PAGE + token % PAGE) * (2 * HALF) + dim
            at = new_keys + row * key_stride + head * (2 * HALF) + dim
            first = tl.load(at).to(ACC)
            second = tl.load(at + HALF).to(ACC)
            tl.store(keys + to, (first * c - second * s).to(turned.dtype.element_ty))
            tl.store(keys + to + HALF, (second * c + first * s).to(turned.dtype.element_ty))
            at = new_values + row * value_stride + head * (2 * HALF) + dim
            tl.store(values + to, tl.load(at))
            tl.store(values + to + HALF, tl.load(at + HALF))


def write_pages(
    queries: Tensor, new_keys: Tensor, new_values: Tensor, rotation: tuple[Tensor, Tensor], pages: Pages
) -> Tensor:
    """queries [R, Hq, D], new_keys and new_values [R, Hkv, D], each row's heads side by side; rotation: cos and sin
    [R, D/2]; writes into the pages -> the turned queries [R, Hq, D]."""
    rows, heads, size = queries.shape
    turned = queries.new_empty(rows, heads, size)
    new = queries, new_keys, new_values
    if rows:
        write_pages_kernel[(rows, heads + new_keys.shape[1])](
            new,
            tuple(t.stride(0) for t in new),
            tuple(t.contiguous() for t in rotation),
            pages,
            (pages.keys.stride(0), pages.table.stride(0)),
            turned,
            heads,
            ACC=configs.accumulator(queries.dtype),
            HALF=size // 2,
            **configs.elementwise(configs.WRITE_PAGES, queries.device).options(),
        )
    return turned
