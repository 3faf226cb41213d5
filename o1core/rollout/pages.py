"""Pages, the KV cache of a GPU: memory for the tokens that rows have, not for those that they may have; and its decode step.

A page holds 64 tokens of all layers. A row takes its next page when its tokens fill the last one; the host knows all
lengths, so it allots pages without asking the device. The full pages of a prompt are shared by its samples, and counted;
the last, partly filled one is written for each sample anew. A page is free when nobody owns it any more.

Where no page is free, the newest row loses its pages and starts again later. Its bits depend on its key alone, so the
second start finds the same tokens, and the oldest row always ends. After that nobody is admitted until a row has left. Left
out on purpose: pages swapped out to the host's memory (a restart costs less than it seems: the newest row has done least),
and a prompt's pages found again by their contents (each prompt comes once).

In a decode step the host says what to compute and does not look at what comes out. A step's tokens are taken on the device
from what the step before has sampled, its random numbers are made there, and its results are read when the next step is
under way. What the host knows is sent with every step in two small copies: each row's key, number of tokens and place in
the step before, and the pages. So one row too many is computed where a row ends with its end-of-text token: the host learns
of it a step later, and drops what was sampled after it.

Rows are computed in batches of a fixed size (row_bits.py), so that every product has the same shape: 256 on a GPU, where
fewer rows would read the weights for as long. On a CPU the same code runs with the kernels' torch twins and reads its
results at once. CUDA graphs need Triton's kernels, which nothing has to wait for. A team's all-reduces are part of its graphs:
its ranks capture and replay the same steps in the same order. Nothing here ran on a GPU.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..distributed import Team, share_tokens
from ..errors import UserError
from ..kernels import PAGE_TOKENS, SPLIT_TOKENS, paged_attention, refused_heads, runs_triton, sample_tokens, write_pages
from ..model import Attend, DeltaState, ModelConfig, Transformer, rotate
from .row import Read, Row
from .row_bits import BatchSizes, Product
from .sampling import NOT_FINITE, SamplingParams, device_uniforms, sample
from .states import DeltaStates

FIELDS = (  # of what is sent
    "key",
    "length",
    "steps",
    "place in the step before",
    "token of a row's first step",
    "place of its states",
)

Step = Callable[[int, int, int], None]  # (first row, rows, splits of attention)


class PagePool:
    """Which pages are free, and how many owners the others have."""

    def __init__(self, pages: int) -> None:
        self.owners = [0] * pages
        self.free = list(reversed(range(pages)))  # the page that came back last is taken first

    def take(self) -> int:
        page = self.free.pop()
        self.owners[page] = 1
        return page

    def share(self, pages: list[int]) -> list[int]:
        """The same pages, with one more owner each."""
        for page in pages:
            assert self.owners[page] > 0
            self.owners[page] += 1
        return list(pages)

    def give_back(self, pages: list[int]) -> None:
        """One owner less for each of the pages."""
        for page in pages:
            self.owners[page] -= 1
            assert self.owners[page] >= 0
            if self.owners[page] == 0:
                self.free.append(page)


class PagedCache:
    """`pages` pages for up to `slots` rows of at most `max_length` tokens each.

    A row's place in rows() is its row of `table`, int32 [slots, width], which names its pages in order; entries past its
    last page mean nothing. keys and values are [L, pages, Hkv, 64, D]. Raises UserError where one row may need more
    pages than there are.
    """

    def __init__(
        self, config: ModelConfig, slots: int, pages: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        if pages < pages_of(max_length):
            raise UserError(
                f"KV cache: {pages} pages of {PAGE_TOKENS} tokens do not hold one completion of {max_length} tokens with "
                "its prompt; lower --max-new-tokens or free some memory"
            )
        shape = (len(config.attention_layers), pages, config.num_kv_heads, PAGE_TOKENS, config.head_dim)
        # Not cleared: attention reads no slot that was not written, so that memory is touched by the pages in use alone.
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        self.splits = max(1, -(-max_length // SPLIT_TOKENS))  # of attention, for the longest row
        self.table = np.zeros((slots, self.splits * SPLIT_TOKENS // PAGE_TOKENS), dtype=np.int32)
        self.slots, self.pool = slots, PagePool(pages)
        self.states = DeltaStates(config, slots, dtype, device)
        self.index = {layer: i for i, layer in enumerate(config.attention_layers)}
        self.clear()

    def holds(self, pages: int, max_length: int) -> bool:
        """Whether there are so many pages, and rows may have so many tokens."""
        return len(self.pool.owners) >= pages and self.splits * SPLIT_TOKENS >= max_length

    def clear(self) -> None:
        """Forget all rows."""
        self.pool = PagePool(len(self.pool.owners))
        self.states.clear()
        self._rows: list[Row] = []
        self._pages: dict[Row, list[int]] = {}  # in the order in which the rows came
        self._prompt: tuple[int, list[int]] | None = None  # the prompt whose samples come, and its full pages
        self._crowded = False  # whether a row had to start again and none has left since

    def rows(self) -> list[Row]:
        """All rows in the order in which a decode step computes them."""
        return list(self._rows)

    @torch.inference_mode()
    def add(self, row: Row, keys: Tensor, values: Tensor, state: DeltaState | None = None) -> bool:
        """Take a row whose first tokens have keys and values [L, Hkv, T, D] and left a state; False where there is no room for
        it now."""
        if self._crowded and self._rows:
            return False
        if self._prompt is not None and self._prompt[0] != row.prompt:
            self._leave_prompt()
        full = row.length // PAGE_TOKENS
        needed = 1 if self._prompt else full + 1
        if len(self.pool.free) < needed:
            return False
        if self._prompt is None:
            self._prompt = row.prompt, [self.pool.take() for _ in range(full)]
            self._write(self._prompt[1], keys, values, 0)
        pages = self.pool.share(self._prompt[1])
        pages.append(self.pool.take())
        if row.length % PAGE_TOKENS:
            self._write(pages[full:], keys, values, full * PAGE_TOKENS)
        self.table[len(self._rows), : len(pages)] = pages
        self._rows.append(row)
        self._pages[row] = pages
        self.states.add(row, state)
        return True

    def make_room(self) -> list[Row]:
        """A page for the next token of every row. Returns the rows that had to leave for it, oldest first: they start again."""
        restarted: list[Row] = []
        places = {row: i for i, row in enumerate(self._rows)}
        for row in list(self._pages):
            if row.restarted or row.length < PAGE_TOKENS * len(self._pages[row]):
                continue
            while not self.pool.free:
                if self._prompt is not None:
                    self._leave_prompt()
                    continue
                newest = next(r for r in reversed(self._pages) if not r.restarted)
                newest.restarted = self._crowded = True
                restarted.append(newest)
                self.pool.give_back(self._pages[newest])
                self._pages[newest] = []
            if not row.restarted:
                page = self.pool.take()
                self.table[places[row], len(self._pages[row])] = page
                self._pages[row].append(page)
        if restarted:
            self._drop(lambda row: not row.restarted)
        return restarted[::-1]

    def keep(self, is_live: Callable[[Row], bool]) -> None:
        """Drop the rows for which is_live(row) is false."""
        if self._drop(is_live):
            self._crowded = False

    def decode_attention(self, model: Transformer, table: Tensor, lengths: Tensor, max_length: int) -> Attend:
        """The `attend` of one decode step, which turns queries and keys itself (give the model no positions).

        table int32 [R, width] and lengths int32 [R] are on the device: rows of `table`, and each row's tokens with the new
        one (0: a row that fills the batch); max_length is at least the longest of them. It writes the new tokens' keys and
        values to their pages, then attends over them.
        """
        rotation = model.rotation((lengths - 1).clamp(min=0), self.keys.dtype)
        cos, sin = (part.squeeze(1) for part in rotation)
        half = model.config.head_dim // 2
        partial = cos.shape[-1] < half  # the kernel turns whole heads: what it is given is turned already
        still = (
            (cos.new_ones(len(cos), half), cos.new_zeros(len(cos), half))
            if model.config.nope_layers or partial
            else None
        )
        turned = [(cos, sin) if block.rotates else still for block in model.blocks]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values, angle = self.keys[self.index[layer]], self.values[self.index[layer]], turned[layer]
            if partial:
                q, k, angle = rotate(q, *rotation), rotate(k, *rotation), still
            assert angle is not None
            q = write_pages(q, k, v, *angle, keys, values, table, lengths)
            return paged_attention(q, keys, values, table, lengths, max_length)

        return attend

    def _write(self, pages: list[int], keys: Tensor, values: Tensor, start: int) -> None:
        """Fill pages with the tokens from `start` on of keys and values [L, Hkv, T, D], as far as they go."""
        for page in pages:
            end = min(start + PAGE_TOKENS, keys.shape[2])
            self.keys[:, page, :, : end - start] = keys[:, :, start:end]
            self.values[:, page, :, : end - start] = values[:, :, start:end]
            start = end

    def _drop(self, is_live: Callable[[Row], bool]) -> bool:
        """Drop rows, the last one taking the place of each; whether there was one to drop."""
        before = len(self._rows)
        for i in reversed(range(before)):
            row = self._rows[i]
            if not is_live(row):
                self.pool.give_back(self._pages.pop(row))
                self.states.drop(row)
                self._rows[i] = self._rows[-1]
                self.table[i] = self.table[len(self._rows) - 1]
                self._rows.pop()
        return len(self._rows) < before

    def _leave_prompt(self) -> None:
        assert self._prompt is not None
        self.pool.give_back(self._prompt[1])
        self._prompt = None


class PageDecoder:
    """Decode steps of `model` for the rows of `cache`. head: hidden states -> logits; team: the ranks that hold the model.

    lookahead: how many steps the host may launch before it reads the first one's results.
    """

    def __init__(
        self,
        model: Transformer,
        head: Product,
        cache: PagedCache,
        batches: BatchSizes,
        params: SamplingParams,
        team: Team,
    ) -> None:
        self.model, self.head, self.cache, self.batches, self.params = model, head, cache, batches, params
        self.team = team
        device, config = model.embed.device, model.config
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        self.triton = runs_triton(device) and refused_heads(*heads) is None
        self.lookahead = int(device.type == "cuda")
        # A step is run once before it is captured, which would move the states of a hybrid's rows on twice.
        captures = device.type == "cuda" and self.triton and config.delta is None
        self.graphs = Captured() if captures else None
        self.assumed = self.assumptions(params)
        rows = -(-len(cache.table) // batches.base) * batches.base
        self.live = 0  # rows of the step that are no padding
        self._places: dict[Row, int] = {}  # of the rows of the step before
        with torch.inference_mode():
            self.sent = torch.zeros(len(FIELDS), rows, dtype=torch.int64, device=device)
            self.table = torch.zeros(rows, cache.table.shape[1], dtype=torch.int32, device=device)
            self.tokens, self.ids = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
            self.lengths, self.flags = (torch.zeros(rows, dtype=torch.int32, device=device) for _ in range(2))
            self.logprobs = torch.zeros(rows, dtype=torch.float32, device=device)

    def assumptions(self, params: SamplingParams) -> tuple[object, ...]:
        """What a graph has taken for granted beside this decoder's own tensors: where weights lie, and how tokens are drawn. A
        weight that is changed in place is read as it is now."""
        weights = tuple(p.data_ptr() for p in self.model.parameters())
        return weights, params.temperature, params.top_k, params.top_p

    def serves(self, cache: PagedCache, batches: BatchSizes, params: SamplingParams) -> bool:
        """Whether another call of the engine may go on with this decoder and its graphs."""
        same = self.cache is cache and self.batches.base == batches.base
        return same and self.assumed == self.assumptions(params)

    def begin(self, head: Product, batches: BatchSizes, params: SamplingParams) -> None:
        """Another call of the engine, with other rows and seeds."""
        self.head, self.batches, self.params, self.live, self._places = head, batches, params, 0, {}

    @torch.inference_mode()
    def launch(self, rows: list[Row]) -> Read:
        """Start one step for all rows of the cache, which have room for a token. Returns what reads its ids and log-probs."""
        self._send(rows)
        sizes = self.batches.cut(len(rows)) if self.ids.device.type == "cpu" else self._whole_batches(len(rows))
        first = 0
        for size in sizes:
            longest = max((row.length + 1 for row in rows[first : first + size]), default=1)
            numbers = first, size, rounded_splits(longest, SPLIT_TOKENS, self.cache.splits)
            if self.graphs is None:
                self._compute(*numbers)
            else:
                self.graphs(self._compute, *numbers)
            first += size
        share_tokens(self.ids, self.team)
        self._places = {row: i for i, row in enumerate(rows)}
        return self._results(len(rows))

    def _whole_batches(self, rows: int) -> list[int]:
        return [self.batches.base] * -(-rows // self.batches.base)

    def _send(self, rows: list[Row]) -> None:
        """What the step needs to know, and the tokens that it is fed."""
        self.live = len(rows)
        facts = np.zeros(self.sent.shape, dtype=np.int64)
        place = self.cache.states.place
        columns = [(row.length + 1, row.steps, self._places.get(row, -1), row.token, place(row)) for row in rows]
        facts[1:, : self.live] = np.array(columns, dtype=np.int64).T
        facts[0, : self.live] = np.array([row.key for row in rows], dtype=np.uint64).view(np.int64)
        device = self.ids.device
        self.sent.copy_(to_device(torch.from_numpy(facts), device))
        self.table[: self.live] = to_device(torch.from_numpy(self.cache.table[: self.live]), device)
        _, lengths, _, places, prompt_tokens, _ = self.sent
        self.lengths.copy_(lengths)
        torch.where(places < 0, prompt_tokens, self.ids[places.clamp(min=0)], out=self.tokens)

    def _compute(self, first: int, rows: int, splits: int) -> None:
        """The step of a batch: hidden states, logits, random numbers, tokens. Writes nothing that it reads, but pages."""
        part = slice(first, first + rows)
        attend = self.cache.decode_attention(self.model, self.table[part], self.lengths[part], splits * SPLIT_TOKENS)
        recur = self.cache.states.recur(self.sent[5, part])
        logits = self.head(self.model(self.tokens[part], None, attend, recur=recur))
        u = device_uniforms(self.sent[0, part], self.sent[2, part])
        if self.triton:
            p = self.params
            found = sample_tokens(logits, u, temperature=p.temperature, top_k=p.top_k, top_p=p.top_p)
            self.ids[part], self.logprobs[part], self.flags[part] = found
        else:
            part = slice(first, min(first + rows, self.live))
            count = part.stop - part.start
            self.ids[part], self.logprobs[part] = sample(logits[:count], u[:count], self.params)

    def _results(self, count: int) -> Read:
        """A copy of the results on its way to the host, and what waits for it."""
        on_gpu = self.ids.device.type == "cuda"
        copies = [torch.empty(count, dtype=t.dtype, pin_memory=on_gpu) for t in (self.ids, self.logprobs, self.flags)]
        for copy, source in zip(copies, (self.ids, self.logprobs, self.flags)):
            copy.copy_(source[:count], non_blocking=on_gpu)
        done = torch.cuda.Event() if on_gpu else None
        if done is not None:
            done.record()

        def read() -> tuple[list[int], list[float]]:
            if done is not None:
                done.synchronize()
            ids, logprobs, flags = (copy.tolist() for copy in copies)
            if any(flags):
                raise UserError(NOT_FINITE)
            return ids, logprobs

        return read


class Captured:
    """Decode steps as CUDA graphs, in which hundreds of launches become one.

    A step is captured the first time that its numbers are seen, and replayed from then on: it must read and write the same
    tensors every time, wait for nothing and ask the host for nothing (tests/rollout/test_page_decoder.py holds it to that
    on a CPU). All graphs share one pool of memory. They live as long as their decoder, which the engine keeps until the cache
    is given back or something moves (PageDecoder.assumptions).

    The step is handed over with each call and not kept: a step that its owner keeps would keep the owner, and with it the
    cache, past its time.
    """

    def __init__(self) -> None:
        self.graphs: dict[tuple[int, int, int], torch.cuda.CUDAGraph] = {}

    def __call__(self, step: Step, first: int, rows: int, splits: int) -> None:
        """Replay the step of these numbers; `step` itself is called where there is no graph of it yet."""
        numbers = first, rows, splits
        if numbers not in self.graphs:
            self.graphs[numbers] = self._capture(step, numbers)
        self.graphs[numbers].replay()

    def _capture(self, step: Step, numbers: tuple[int, int, int]) -> torch.cuda.CUDAGraph:
        """A graph of the step. The step runs once before: kernels are compiled then, and libraries take their workspaces.
        It does no harm: what a step writes does not change what it reads."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            step(*numbers)
        torch.cuda.current_stream().wait_stream(beside)
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: one writes a training state, NCCL's looks after its collectives.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step(*numbers)
        return graph


def rounded_splits(longest: int, split: int, most: int) -> int:
    """Splits of `split` tokens in attention that a step for rows of up to `longest` tokens is made for: a power of two, or
    `most`, so that few graphs serve all lengths."""
    needed = max(1, -(-longest // split))
    return min(most, 1 << (needed - 1).bit_length())


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers of the host on their way to the device, which they reach before what is launched next. A GPU's host does not
    wait for that."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)


def pages_of(tokens: int) -> int:
    """Pages that so many tokens of one row take."""
    return math.ceil(tokens / PAGE_TOKENS)


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one page: keys and values of 64 tokens in all layers."""
    return 2 * len(config.attention_layers) * config.num_kv_heads * PAGE_TOKENS * config.head_dim * dtype.itemsize
