"""The KV cache of the rollout engine: rows in lanes by length, and one-token attention over them.

A lane holds rows of up to `span` tokens; spans double (64, 128, 256, ...). A row that outgrows its lane is copied into
the next, about once for every doubling. So a short row never pays for the longest one in the batch, and the shapes a
row is computed in depend on its own length alone: its bits do not change with what else is being decoded. Rows of a
lane are kept side by side (the last one fills a hole), so attention reads them in place. A lane is allocated for all
slots when a row first reaches it, and kept: all lanes together hold at most twice what the longest one does.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..model import ModelConfig
from .completion import Row

FIRST_SPAN = 64


class Lane:
    """Keys and values of up to `slots` rows of up to `span` tokens; `rows` are their owners, in storage order."""

    def __init__(self, config: ModelConfig, slots: int, span: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_layers, slots, config.num_kv_heads, span, config.head_dim)
        # Zeros, not empty: what is masked still enters the products, and stray NaNs would pass through the mask.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.bias = torch.full((slots, 1, 1, span), float("-inf"), dtype=dtype, device=device)
        self.span = span
        self.rows: list[Row] = []

    def add(self, row: Row, keys: Tensor, values: Tensor) -> None:
        """Append a row whose first tokens have keys and values [L, Hkv, T, D]."""
        i, length = len(self.rows), keys.shape[2]
        self.keys[:, i, :, :length] = keys
        self.values[:, i, :, :length] = values
        self.bias[i] = float("-inf")
        self.bias[i, ..., :length] = 0
        self.rows.append(row)

    def remove(self, i: int) -> None:
        """Drop row i; the last row takes its place."""
        last = len(self.rows) - 1
        if i != last:
            for storage in (self.keys, self.values):
                storage[:, i] = storage[:, last]
            self.bias[i] = self.bias[last]
            self.rows[i] = self.rows[last]
        self.rows.pop()


class KVCache:
    """Lanes for `slots` rows of at most `max_length` tokens each."""

    def __init__(
        self, config: ModelConfig, slots: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config, self.slots, self.dtype, self.device = config, slots, dtype, device
        self.spans = [FIRST_SPAN]
        while self.spans[-1] < max_length:
            self.spans.append(2 * self.spans[-1])
        self.lanes: dict[int, Lane] = {}

    def lane_for(self, length: int) -> Lane:
        """The lane of a row with `length` tokens once the next one is written."""
        span = next(s for s in self.spans if s >= length)
        if span not in self.lanes:
            self.lanes[span] = Lane(self.config, self.slots, span, self.dtype, self.device)
            self.lanes = dict(sorted(self.lanes.items()))
        return self.lanes[span]

    def rows(self) -> list[Row]:
        """All rows in the order in which a decode step computes them."""
        return [row for lane in self.lanes.values() for row in lane.rows]

    def add(self, row: Row, keys: Tensor, values: Tensor) -> None:
        self.lane_for(row.length + 1).add(row, keys, values)

    def keep(self, is_live: Callable[[Row], bool]) -> None:
        """Drop the rows for which is_live(row) is false, and move those that filled their lane to the next one."""
        for lane in list(self.lanes.values()):
            for i in reversed(range(len(lane.rows))):
                row = lane.rows[i]
                if is_live(row):
                    if row.length < lane.span:
                        continue
                    self.add(row, lane.keys[:, i], lane.values[:, i])
                lane.remove(i)

    def clear(self) -> None:
        for lane in self.lanes.values():
            lane.rows.clear()

    def decode_attention(self) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """The `attend` of one decode step: writes each row's new key and value, then attends over its cache."""
        plan, start = [], 0
        for lane in self.lanes.values():
            if lane.rows:
                index = torch.arange(len(lane.rows), device=self.device)
                position = torch.tensor([row.length for row in lane.rows], device=self.device)
                lane.bias[index, ..., position] = 0
                plan.append((lane, slice(start, start + len(lane.rows)), index, position))
                start += len(lane.rows)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # The query heads that share a key head stand as the query's "time": no copy of the keys per head.
            grouped = q.unflatten(1, (k.shape[1], -1))  # [R, Hkv, G, D]
            out = torch.zeros_like(grouped)  # rows that pad the batch have no lane
            for lane, rows, index, position in plan:
                n = len(lane.rows)
                keys, values = lane.keys[layer, :n], lane.values[layer, :n]
                keys[index, :, position] = k[rows]
                values[index, :, position] = v[rows]
                out[rows] = attention(grouped[rows], keys, values, lane.bias[:n])
            return out.flatten(1, 2)

        return attend


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of q [R, Hkv, G, D] over k, v [R, Hkv, T, D] with bias [R, 1, 1, T] added to the scores.

    Two plain products: on a CPU they are up to twice as fast as torch's fused attention for a single query, and their
    bits do not depend on memory alignment. The scores of a bfloat16 product are rounded before the softmax.
    """
    if q.shape[0] * q.shape[1] == 1:  # the product of a single head is split among threads, which changes its bits
        return attention(*(t.expand(2, -1, -1, -1) for t in (q, k, v, bias)))[:1]
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + bias
    return scores.softmax(-1).to(v.dtype) @ v


def cache_bytes(config: ModelConfig, length: int, dtype: torch.dtype) -> int:
    """Bytes that one slot of the rollout engine takes for rows of up to `length` tokens: all lanes of the KV cache."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    span = FIRST_SPAN
    while span < length:
        span *= 2
    return (2 * span - FIRST_SPAN) * per_token
