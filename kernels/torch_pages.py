"""Paged attention and the write of pages in torch: the way of a CPU, and of a GPU that the Triton kernels do not take.

Rows are put together by the number of their pages, rounded up to a power of two, so that the shapes a row is computed in
depend on its own length alone: where the library multiplies each matrix of a batch alike, its bits do not change with the
batch, its pages or the table's width. Reads lengths back.
"""

import torch
from torch import Tensor

from .numbers import PAGE_TOKENS, Pages


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs (x_i, x_{i + D/2}) of x [R, heads, D] turned by their row's angle, cos and sin [R, D/2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def write_pages(
    queries: Tensor, new_keys: Tensor, new_values: Tensor, rotation: tuple[Tensor, Tensor], pages: Pages
) -> Tensor:
    keys, values, page_table, lengths = pages
    live = (lengths > 0).nonzero()[:, 0]
    token = lengths[live].long() - 1
    page, slot = page_table[live, token // PAGE_TOKENS].long(), token % PAGE_TOKENS
    keys[page, :, slot] = turn(new_keys, *rotation)[live]
    values[page, :, slot] = new_values[live]
    return turn(queries, *rotation)


def paged_attention(queries: Tensor, pages: Pages, max_length: int) -> Tensor:
    keys, values, page_table, lengths = pages
    grouped = queries.unflatten(1, (keys.shape[1], -1))  # [R, Hkv, G, D]
    out = torch.zeros_like(grouped)
    buckets: dict[int, list[int]] = {}
    for row, length in enumerate(lengths.tolist()):
        if length:
            buckets.setdefault(1 << ((length - 1) // PAGE_TOKENS).bit_length(), []).append(row)
    for count, members in sorted(buckets.items()):
        rows = torch.tensor(members, device=queries.device)
        out[rows] = _attention(grouped[rows], keys, values, _table(page_table, rows, count), lengths[rows])
    return out.flatten(1, 2)


def _table(page_table: Tensor, rows: Tensor, count: int) -> Tensor:
    """The first `count` entries of the rows [r, count] int64. Where the table ends before, its first entry is taken: what
    lies past a row's length is masked."""
    width = min(count, page_table.shape[1])
    table = page_table[rows, :1].long().expand(-1, count).clone()
    table[:, :width] = page_table[rows, :width]
    return table


def _attention(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """q [r, Hkv, G, D] over the pages of table [r, n] -> [r, Hkv, G, D]."""
    if len(q) * q.shape[1] == 1:  # the product of a single head is split among threads, which changes its bits
        return _attention(q.expand(2, -1, -1, -1), keys, values, table.expand(2, -1), lengths.expand(2))[:1]
    tokens = table.shape[1] * PAGE_TOKENS
    inside = torch.arange(tokens, device=q.device) < lengths[:, None]  # [r, T]
    # Entries past the last page of a row are any number: its first page is read in their place.
    table = torch.where(inside[:, ::PAGE_TOKENS], table, table[:, :1])
    k, v = (t[table].transpose(1, 2).flatten(2, 3) for t in (keys, values))  # [r, Hkv, T, D]
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~inside[:, None, None], float("-inf"))
    v = v.masked_fill(~inside[:, None, :, None], 0)  # an unused slot may hold NaN
    return scores.softmax(-1).to(v.dtype) @ v
