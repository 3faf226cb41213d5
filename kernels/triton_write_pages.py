"""A decode step's queries and keys turned by their position, and the keys and values put where their page lies."""

import torch
import triton
import triton.language as tl

from . import configs
from .paging import PAGE_TOKENS

PAGE: tl.constexpr = tl.constexpr(PAGE_TOKENS)


@triton.jit
def write_pages_kernel(
    queries: tl.tensor,
    new_keys: tl.tensor,
    new_values: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    page_table: tl.tensor,
    lengths: tl.tensor,
    turned: tl.tensor,
    query_heads: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    page_stride: tl.tensor,
    table_stride: tl.tensor,
    ACC: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """One head of one row: below query_heads a query -> turned [R, Hq, D], from there on a key and its value -> slot
    length - 1 of the row. A row of length 0 writes no page."""
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
            tl.store(keys + to, (first * c - second * s).to(keys.dtype.element_ty))
            tl.store(keys + to + HALF, (second * c + first * s).to(keys.dtype.element_ty))
            at = new_values + row * value_stride + head * (2 * HALF) + dim
            tl.store(values + to, tl.load(at))
            tl.store(values + to + HALF, tl.load(at + HALF))


def write_pages(
    queries: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """queries [R, Hq, D], new_keys and new_values [R, Hkv, D], each row's heads side by side; cos and sin [R, D/2];
    writes into keys and values [pages, Hkv, 64, D] -> the turned queries [R, Hq, D]."""
    rows, heads, size = queries.shape
    turned = queries.new_empty(rows, heads, size)
    if rows:
        write_pages_kernel[(rows, heads + new_keys.shape[1])](
            queries,
            new_keys,
            new_values,
            cos.contiguous(),
            sin.contiguous(),
            keys,
            values,
            page_table,
            lengths,
            turned,
            heads,
            queries.stride(0),
            new_keys.stride(0),
            new_values.stride(0),
            keys.stride(0),
            page_table.stride(0),
            ACC=configs.accumulator(queries.dtype),
            HALF=size // 2,
            **configs.elementwise(configs.WRITE_PAGES, queries.device).options(),
        )
    return turned
