"""Lanes, the KV cache of a CPU: rows stand side by side by length, and attention reads them in place.

A lane holds rows of up to `span` tokens; spans double (64, 128, 256, ...). A row that outgrows its lane is copied into
the next, about once for every doubling. So a short row never pays for the longest one in the batch, and the shapes a
row is computed in depend on its own length alone: its bits do not change with what else is being decoded (row_bits.py).
Rows of a lane are kept side by side (the last one fills a hole), so attention reads them in place. A lane is allocated for
all slots when a row first reaches it, and kept: all lanes together hold at most twice what the longest one does.

The last lane ends at the longest length that is possible, for a fifth less memory: 9,216 tokens do not need a lane of
16,384. Its rows must have the bits of the whole span, for another call of the engine may have longer rows; where that
does not hold on a machine (cut_keeps_bits), the last lane is whole.

Why a CPU has lanes beside the pages of a GPU (pages.py): its products need a row's keys side by side, so pages are
gathered first, and for small models that copy costs more than attention itself. Both caches sample the same completions,
but pages run at .45 of the speed of lanes for tiny-o1, at .4 at SmolLM2-135M's widths and at .75 at Qwen2.5-0.5B's, where
prompts are short (bench/results/rollouts.md).
"""

import itertools
from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import ALONE, Team, share_tokens
from ..model import Attend, DeltaState, ModelConfig, Recur, Transformer
from .prefill import prefill
from .routes import empty_routes, noted
from .row import Read, Row
from .row_bits import ATTENTION_ROWS, BatchSizes, Product, attention_sizes, cancelling
from .sampling import SamplingParams, sample, uniforms
from .states import DeltaStates, state_bytes

FIRST_SPAN = 64


class Lane:
    """Keys and values of up to `slots` rows of up to `span` tokens; `rows` are their owners, in storage order."""

    def __init__(self, config: ModelConfig, slots: int, span: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (len(config.attention_layers), slots, config.num_kv_heads, span, config.head_dim)
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


class LaneCache:
    """Lanes for `slots` rows of at most `max_length` tokens each."""

    def __init__(
        self, config: ModelConfig, slots: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config, self.slots, self.dtype, self.device = config, slots, dtype, device
        self.max_length = max_length
        self.spans = spans_for(max_length)
        self.states = DeltaStates(config, slots, dtype, device)
        self.index = {layer: i for i, layer in enumerate(config.attention_layers)}
        self.lanes: dict[int, Lane] = {}  # by the span that they would have if they were not cut

    def lane_for(self, length: int) -> Lane:
        """The lane of a row with `length` tokens once the next one is written."""
        span = next(s for s in self.spans if s >= length)
        if span not in self.lanes:
            self.lanes[span] = Lane(self.config, self.slots, self._cut(span), self.dtype, self.device)
            self.lanes = dict(sorted(self.lanes.items()))
        return self.lanes[span]

    def _cut(self, span: int) -> int:
        """The tokens that a lane has room for."""
        c, needed = self.config, cut_span(self.max_length)
        if needed >= span:
            return span
        heads = c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim
        same = cut_keeps_bits(needed, span, *heads, self.dtype, self.device, torch.get_num_threads())
        return needed if same else span

    def rows(self) -> list[Row]:
        """All rows in the order in which a decode step computes them."""
        return [row for lane in self.lanes.values() for row in lane.rows]

    @property
    def full(self) -> bool:
        """Whether all slots are taken."""
        return sum(len(lane.rows) for lane in self.lanes.values()) == self.slots

    @property
    def behind(self) -> int:
        """Tokens that are known and not computed yet: none."""
        return 0

    @torch.inference_mode()
    def add(self, row: Row, keys: Tensor, values: Tensor, state: DeltaState | None = None) -> None:
        """Take a row whose first tokens have keys and values [L, Hkv, T, D] and left a state. There is room for every slot."""
        self.states.add(row, state)
        self.lane_for(row.length + 1).add(row, keys, values)

    def make_room(self) -> list[Row]:
        """Nothing to do: a lane has room for its rows, and keep moves those that filled it."""
        return []

    @torch.inference_mode()
    def keep(self, is_live: Callable[[Row], bool]) -> None:
        """Drop the rows for which is_live(row) is false, and move those that filled their lane to the next one."""
        for lane in list(self.lanes.values()):
            for i in reversed(range(len(lane.rows))):
                row = lane.rows[i]
                if is_live(row):
                    if row.length < lane.span:
                        continue
                    self.lane_for(row.length + 1).add(row, lane.keys[:, i], lane.values[:, i])
                else:
                    self.states.drop(row)
                lane.remove(i)

    def clear(self) -> None:
        """Forget all rows."""
        for lane in self.lanes.values():
            lane.rows.clear()
        self.states.clear()

    def decode_attention(self, first: int, last: int) -> Attend:
        """The `attend` of one decode step of rows first to last - 1 of rows(), which may be followed by padding.

        It writes each row's new key and value, then attends over its cache.
        """
        parts, start = [], 0
        for lane in self.lanes.values():
            low, high = max(first, start), min(last, start + len(lane.rows))
            if low < high:
                parts.append(LanePart(lane, slice(low - first, high - first), low - start))
            start += len(lane.rows)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # The query heads that share a key head stand as the query's "time": no copy of the keys per head.
            grouped = q.unflatten(1, (k.shape[1], -1))  # [R, Hkv, G, D]
            out = torch.zeros_like(grouped)  # rows that pad the batch have no lane
            for part in parts:
                part.write(self.index[layer], k[part.rows], v[part.rows])
                out[part.rows] = part.attention(self.index[layer], grouped[part.rows])
            return out.flatten(1, 2)

        return attend

    def decode_recurrence(self, first: int, last: int) -> Recur:
        """The `recur` of the same rows, followed by as many that fill the batch."""
        places = [self.states.place(row) for row in self.rows()[first : min(last, len(self.rows()))]]
        return self.states.recur(torch.tensor(places + [0] * (last - first - len(places)), device=self.device))


class LaneDecoder:
    """Decode steps of `model` for the rows of `cache`. head: hidden states -> logits; team: the ranks that hold the model.

    A step's results are there when it returns: nothing is launched ahead.
    """

    lookahead = 0

    def __init__(
        self,
        model: Transformer,
        head: Product,
        cache: LaneCache,
        batches: BatchSizes,
        params: SamplingParams,
        team: Team = ALONE,
    ) -> None:
        self.model, self.head, self.cache, self.batches, self.params = model, head, cache, batches, params
        self.team = team
        # The prompt whose samples come, with its keys, values and state.
        self.prefilled: tuple[int, Tensor, Tensor, DeltaState | None] | None = None

    def admit(self, row: Row, prompt: list[int]) -> bool:
        """Take a row. prompt: its ids, which are computed once for all of its samples."""
        if self.prefilled is None or self.prefilled[0] != row.prompt:
            self.prefilled = row.prompt, *prefill(self.model, prompt[:-1])
        self.cache.add(row, *self.prefilled[1:])
        return True

    def look_ahead(self, prompts: Iterator[tuple[int, list[int]]]) -> None:
        """Nothing to do: a prompt is computed when its first sample comes."""

    @torch.inference_mode()
    def launch(self, rows: list[Row]) -> Read:
        """One new token for every row of the cache. Returns what reads the ids and log-probs."""
        device = self.model.embed.device
        u = torch.from_numpy(uniforms([row.key for row in rows], [row.steps for row in rows])).to(device)
        feed = torch.tensor([[row.token for row in rows], [row.length for row in rows]], device=device)
        ids: list[int] = []
        logprobs: list[float] = []
        routes: list[Tensor] = []
        config, first = self.model.config, 0
        for size in self.batches.cut(len(rows)):
            last = min(first + size, len(rows))
            tokens, positions = F.pad(feed[:, first:last], (0, first + size - last))
            attend, recur = self.cache.decode_attention(first, last), self.cache.decode_recurrence(first, first + size)
            of_batch = empty_routes(config, size, device)
            hidden = self.model(tokens, positions, attend, recur=recur, choose=noted(of_batch, config))
            found = sample(self.head(hidden)[: last - first], u[first:last], self.params)
            share_tokens(found[0], self.team)
            ids += found[0].tolist()
            logprobs += found[1].tolist()
            if of_batch is not None:
                routes.append(of_batch[: last - first].cpu())
            first = last
        return lambda: (ids, logprobs, torch.cat(routes) if routes else None)


class LanePart:
    """The rows of one lane in a decode step: `rows` of the step are those of the lane from `start` on."""

    def __init__(self, lane: Lane, rows: slice, start: int) -> None:
        self.lane, self.rows, self.start = lane, rows, start
        members = lane.rows[start : start + rows.stop - rows.start]
        device = lane.keys.device
        self.index = torch.arange(start, start + len(members), device=device)
        self.position = torch.tensor([row.length for row in members], device=device)
        lane.bias[self.index, ..., self.position] = 0

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Put the new token's keys and values [R, Hkv, D] in their places."""
        self.lane.keys[layer][self.index, :, self.position] = k
        self.lane.values[layer][self.index, :, self.position] = v

    def attention(self, layer: int, q: Tensor) -> Tensor:
        """Attention of q [R, Hkv, G, D] over the rows' own keys and values."""
        lane = self.lane
        return attention(q, lane.keys[layer], lane.values[layer], lane.bias, self.start)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, start: int = 0) -> Tensor:
    """Attention of q [R, Hkv, G, D] over rows `start` to `start` + R - 1 of k, v [S, Hkv, T, D], in batches of
    fixed sizes (row_bits.py). bias [S, 1, 1, T] is added to the scores.
    """
    rows, kv_heads, group, head_dim = q.shape
    batches = attention_sizes(k.shape[2], kv_heads, group, head_dim, q.dtype, q.device, torch.get_num_threads())
    sizes = batches.cut(rows)
    if sizes == [rows]:
        part = slice(start, start + rows)
        return batch_attention(q, k[part], v[part], bias[part])
    ends = list(itertools.accumulate(sizes, initial=0))
    parts = [q[a:b] for a, b in itertools.pairwise(ends)]
    return torch.cat([padded_attention(part, k, v, bias, start + a, size) for part, a, size in zip(parts, ends, sizes)])


def padded_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, start: int, size: int) -> Tensor:
    """`attention` of at most `size` rows in a batch of `size` rows.

    Neighbours fill the batch up: their queries are zeros and their results are dropped.
    """
    first = max(0, min(start, len(k) - size))
    before, after = start - first, size - (start - first) - len(q)
    queries = F.pad(q, (0, 0, 0, 0, 0, 0, before, after))
    cached = [part[first : first + size] for part in (k, v, bias)]
    if size > len(k):
        cached = [F.pad(part, (0, 0, 0, 0, 0, 0, 0, size - len(k))) for part in cached]
    return batch_attention(queries, *cached)[before : before + len(q)]


def batch_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of the rows of one batch, each over its own keys and values.

    Two plain products: on a CPU they are up to twice as fast as torch's fused attention for a single query, and their
    bits do not depend on memory alignment. The scores of a bfloat16 product are rounded before the softmax.
    """
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + bias
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)


@cache
@torch.inference_mode()
def cut_keeps_bits(
    span: int,
    full: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
) -> bool:
    """Whether attention over `span` tokens has the bits of one over `full` tokens of which the others are masked.

    The products are tested with terms that cancel (row_bits.py), the softmax with random scores.
    """
    heads = ATTENTION_ROWS, kv_heads
    q, k = cancelling(full, head_dim, dtype, device)
    q, k = q.repeat(*heads, group, 1), k.repeat(*heads, 1, 1)
    whole = torch.matmul(q, k.transpose(-1, -2))
    if not torch.equal(torch.matmul(q, k[:, :, :span].transpose(-1, -2)), whole[..., :span]):
        return False
    weights, values = cancelling(head_dim, span, dtype, device)
    weights, values = weights.repeat(*heads, group, 1), values.T.repeat(*heads, 1, 1)
    whole = torch.matmul(F.pad(weights, (0, full - span)), F.pad(values, (0, 0, 0, full - span)))
    if not torch.equal(torch.matmul(weights, values), whole):
        return False
    scores = torch.randn(*heads, group, span, generator=torch.Generator().manual_seed(0)).to(device)
    masked = F.pad(scores, (0, full - span), value=float("-inf"))
    return torch.equal(scores.softmax(-1), masked.softmax(-1)[..., :span])


def spans_for(length: int) -> list[int]:
    """The spans of the lanes for rows of up to `length` tokens, where none is cut."""
    spans = [FIRST_SPAN]
    while spans[-1] < length:
        spans.append(2 * spans[-1])
    return spans


def cut_span(length: int) -> int:
    """Where the last lane may end."""
    return -(-length // FIRST_SPAN) * FIRST_SPAN


def cache_bytes(config: ModelConfig, length: int, dtype: torch.dtype) -> int:
    """Bytes that one slot of the rollout engine takes for rows of up to `length` tokens: all lanes of the KV cache, and the
    states of the delta rule."""
    per_token = 2 * len(config.attention_layers) * config.num_kv_heads * config.head_dim * dtype.itemsize
    *spans, last = spans_for(length)
    return (sum(spans) + min(last, cut_span(length))) * per_token + state_bytes(config, dtype)
