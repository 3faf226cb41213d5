"""Pages, the KV cache of a GPU: memory for the tokens that rows have, not for those that they may have; and its decode step.

A page holds 64 tokens of all layers. A row takes its next page when its tokens fill the last one; the host knows all
lengths, so it allots pages without asking the device. The full pages of a prompt are shared by its samples, and counted;
the last, partly filled one is copied for each sample. A page is free when nobody owns it any more.

Rows are computed in batches of a fixed size (row_bits.py), so that every product has the same shape: 256 on a GPU, where
fewer rows would read the weights for as long. Prompts go through the same batches, each token as a row of its own that
attends to the pages before it: in places that decoding leaves free, and in a batch more where a slot waits for them. So a
token's bits do not depend on what is computed beside it, and several prompts, or parts of them, fill a batch together. It
suits prompts of hundreds of tokens: a row reads its keys by itself, which is a T-th of what a long prompt's T rows would share.

Where no page is free, prompts that nobody has begun with leave, then the newest row, which goes on later: what was read
of it is computed once more like a prompt, to the same bits, and the oldest row always ends. After that nobody is admitted
until a row has left. Left out on purpose: pages swapped out to the host's memory (a restart costs less than it seems: the
newest row has done least), and a prompt's pages found again by their contents (each prompt comes once).

In a decode step the host says what to compute and does not look at what comes out. A step's tokens are taken on the device
from what the step before has sampled, its random numbers are made there, and its results are read when the next step is
under way. What the host knows is sent with every step in two small copies: each row's key, number of tokens and place in
the step before, and the pages. So one row too many is computed where a row ends with its end-of-text token: the host learns
of it a step later, and drops what was sampled after it.

On a CPU the same code runs with the kernels' torch twins and reads its results at once. CUDA graphs need Triton's kernels,
which nothing has to wait for. A team's all-reduces are part of its graphs: its ranks capture and replay the same steps in the
same order. Nothing here ran on a GPU.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..distributed import Team, share_tokens
from ..errors import UserError
from ..kernels import PAGE_TOKENS, SPLIT_TOKENS, paged_attention, refused_heads, runs_triton, sample_tokens, write_pages
from ..model import Attend, DeltaState, ModelConfig, Transformer, rotate, stays_on_device
from .memory import to_device
from .prefill import prefill
from .routes import empty_routes, noted
from .row import Read, Row
from .row_bits import BatchSizes, Product
from .sampling import NOT_FINITE, SamplingParams, device_uniforms, sample
from .states import DeltaStates

FIELDS = (  # of what is sent
    "key",
    "length",
    "steps",
    "place in the step before",
    "token, where the host knows it",
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


@dataclass(eq=False)
class Prefix:
    """Tokens that are known before they are computed, and the pages that their keys and values go to: a prompt's, which its
    samples share, or those of a row that goes on. done: tokens that launched steps have computed; state: what a hybrid's prompt
    leaves."""

    tokens: list[int]
    pages: list[int]
    done: int = 0
    state: DeltaState | None = None

    @property
    def behind(self) -> int:
        return len(self.tokens) - self.done


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
        self.prompts: dict[int, Prefix] = {}  # whose samples come or are to come, by index
        self.returning: dict[Row, Prefix] = {}  # rows of which more is known than the prompt, until it is computed
        self._newest: int | None = None  # the prompt whose sample came last
        self._crowded = False  # whether a row had to start again and none has left since

    def rows(self) -> list[Row]:
        """All rows in the order in which a decode step computes them."""
        return list(self._rows)

    @property
    def full(self) -> bool:
        """Whether all slots are taken."""
        return len(self._pages) == self.slots

    @property
    def behind(self) -> int:
        """Tokens that are known and not computed yet."""
        return sum(prefix.behind for prefix in self._prefixes())

    def _prefixes(self) -> list[Prefix]:
        """Rows that wait for themselves first."""
        return [*self.returning.values(), *self.prompts.values()]

    def begin(self, prompt: int, tokens: list[int], ahead: bool = False) -> Prefix | None:
        """Pages for a prompt's tokens, to be computed; those that it has where it was begun. None where there is no room for
        it now. ahead: nobody waits for it yet, so each row keeps a page to grow by."""
        if prompt not in self.prompts:
            needed = pages_of(len(tokens))
            if self._crowded and self._pages:
                return None
            if not ahead:
                self._leave_for(needed)
            if len(self.pool.free) < needed + ahead * (len(self._pages) + 1):
                return None
            self.prompts[prompt] = Prefix(tokens, [self.pool.take() for _ in range(needed)])
        return self.prompts[prompt]

    @torch.inference_mode()
    def fill(self, prefix: Prefix, keys: Tensor, values: Tensor, state: DeltaState | None) -> None:
        """A prompt that was computed by itself: keys and values [L, Hkv, T, D], and the state that it has left."""
        for i, page in enumerate(prefix.pages):
            part = slice(i * PAGE_TOKENS, (i + 1) * PAGE_TOKENS)
            tokens = keys[:, :, part].shape[2]
            self.keys[:, page, :, :tokens] = keys[:, :, part]
            self.values[:, page, :, :tokens] = values[:, :, part]
        prefix.done, prefix.state = len(prefix.tokens), state

    @torch.inference_mode()
    def add(self, row: Row, tokens: list[int]) -> bool:
        """Take a row that has these tokens, which begin with its prompt's; False where that is not computed yet or there is
        no room for the row now."""
        prefix = self.prompts[row.prompt]
        if prefix.behind or (self._crowded and self._pages):
            return False
        if self._newest != row.prompt:
            self._leave(self._newest)
        shared = len(prefix.tokens) // PAGE_TOKENS
        partial = prefix.pages[shared:]
        own = pages_of(len(tokens) + 1) - shared
        self._leave_for(own, but=row.prompt)
        if len(self.pool.free) >= own:
            pages = self.pool.share(prefix.pages[:shared]) + [self.pool.take() for _ in range(own)]
            if partial:
                to, source = pages[shared], partial[0]
                self.keys[:, to], self.values[:, to] = self.keys[:, source], self.values[:, source]
        elif len(self.pool.free) >= own - len(partial):
            # The row takes the prompt's pages over; the next sample has to wait for new ones.
            del self.prompts[row.prompt]
            pages = prefix.pages + [self.pool.take() for _ in range(own - len(partial))]
        else:
            return False
        self._newest, self._pages[row] = row.prompt, pages
        self.states.add(row, prefix.state)
        if len(tokens) > len(prefix.tokens):
            self.returning[row] = Prefix(tokens, pages, len(prefix.tokens))
        else:
            self._go_on(row)
        return True

    def take_behind(self, most: int) -> list[tuple[Prefix, range]]:
        """Up to `most` of the tokens that are behind, first come, first served, to be computed by the next step: places in
        their prefix. What is then whole can go on after it."""
        found = []
        for prefix in self._prefixes():
            part = range(prefix.done, min(len(prefix.tokens), prefix.done + most))
            if part:
                found.append((prefix, part))
                prefix.done, most = part.stop, most - len(part)
        for row in [row for row, prefix in self.returning.items() if not prefix.behind]:
            del self.returning[row]
            self._go_on(row)
        return found

    def make_room(self) -> list[Row]:
        """A page for the next token of every row. Returns the rows that had to leave for it, oldest first: they go on later,
        those of a hybrid from their start, as its steps would give other bits in chunks."""
        restarted: list[Row] = []
        places = {row: i for i, row in enumerate(self._rows)}
        for row in list(self._pages):
            if row.restarted or row.length < PAGE_TOKENS * len(self._pages[row]):
                continue
            self._leave_for(1)
            while not self.pool.free:
                newest = next(r for r in reversed(self._pages) if not r.restarted)
                newest.restarted = self._crowded = True
                restarted.append(newest)
                self.pool.give_back(self._pages[newest])
                self._pages[newest] = []
                if self.states.index:
                    newest.ids, newest.logprobs, newest.routes = [], [], []
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

    def _go_on(self, row: Row) -> None:
        """A row that is decoded from the next step on."""
        pages = self._pages[row]
        self.table[len(self._rows), : len(pages)] = pages
        self._rows.append(row)

    def _drop(self, is_live: Callable[[Row], bool]) -> bool:
        """Drop rows, the last one taking the place of each; whether there was one to drop."""
        before = len(self._pages)
        for row in [row for row in self._pages if not is_live(row)]:
            self.pool.give_back(self._pages.pop(row))
            self.returning.pop(row, None)
            self.states.drop(row)
        for i in reversed(range(len(self._rows))):
            if self._rows[i] not in self._pages:
                self._rows[i] = self._rows[-1]
                self.table[i] = self.table[len(self._rows) - 1]
                self._rows.pop()
        return len(self._pages) < before

    def _leave(self, prompt: int | None) -> None:
        """Give back what a prompt still owns."""
        if prompt in self.prompts:
            self.pool.give_back(self.prompts.pop(prompt).pages)

    def _leave_for(self, pages: int, but: int | None = None) -> None:
        """Give prompts' pages back, the newest first, until so many are free: they can be computed again."""
        for prompt in reversed(list(self.prompts)):
            if len(self.pool.free) < pages and prompt != but:
                self._leave(prompt)


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
        self.by_itself = (
            config.delta is not None
        )  # how a prompt is computed: a token at a time would take as many steps
        captures = device.type == "cuda" and self.triton
        if config.experts is not None:
            captures = captures and stays_on_device(device, model.embed.dtype)
        self.assumed = self.assumptions(params)
        rows = (-(-len(cache.table) // batches.base) + 1) * batches.base  # and one for tokens that are behind
        self.decoded = 0  # rows of the step whose next token is sampled
        self._places: dict[Row, int] = {}  # of the rows of the step before
        with torch.inference_mode():
            self.sent = torch.zeros(len(FIELDS), rows, dtype=torch.int64, device=device)
            self.table = torch.zeros(rows, cache.table.shape[1], dtype=torch.int32, device=device)
            self.tokens, self.ids = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
            self.lengths, self.flags = (torch.zeros(rows, dtype=torch.int32, device=device) for _ in range(2))
            self.logprobs = torch.zeros(rows, dtype=torch.float32, device=device)
            self.routes = empty_routes(config, rows, device)
        self.graphs = Captured(self.sent[5]) if captures else None

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
        self.head, self.batches, self.params, self.decoded, self._places = head, batches, params, 0, {}

    def admit(self, row: Row, prompt: list[int]) -> bool:
        """Take a row, or its prompt's tokens (ids) to be computed with the next steps; whether the row was taken."""
        prefix = self.cache.begin(row.prompt, prompt[:-1])
        if prefix is None:
            return False
        if self.by_itself and prefix.state is None:
            self.cache.fill(prefix, *prefill(self.model, prefix.tokens))
        return self.cache.add(row, (prompt + row.ids)[:-1])

    def look_ahead(self, prompts: Iterable[tuple[int, list[int]]]) -> None:
        """Begin with a batch of tokens of the prompts after the first, computed or not, where rows have pages to spare."""
        begun, first = 0, True
        for index, prompt in prompts:
            enough = self.by_itself or begun >= self.batches.base
            if enough or self.cache.begin(index, prompt[:-1], ahead=True) is None:
                return
            begun, first = begun + (0 if first else len(prompt)), False

    @torch.inference_mode()
    def launch(self, rows: list[Row]) -> Read:
        """Start one step for all rows of the cache, which have room for a token, and for tokens that are behind: as many as
        there are places left, and a batch more where a slot waits. Returns what reads the rows' ids and log-probs."""
        cache, base = self.cache, self.batches.base
        waits = not cache.full or bool(cache.returning)
        behind = cache.take_behind(-len(rows) % base + waits * base)
        live = self._send(rows, behind)
        sizes = self.batches.cut(live) if self.ids.device.type == "cpu" else [base] * -(-live // base)
        lengths = [row.length + 1 for row in rows] + [at + 1 for _, part in behind for at in part]
        first = 0
        for size in sizes:
            longest = max(lengths[first : first + size], default=1)
            numbers = first, size, rounded_splits(longest, SPLIT_TOKENS, cache.splits)
            if self.graphs is None:
                self._compute(*numbers)
            else:
                self.graphs(self._compute, *numbers)
            first += size
        share_tokens(self.ids, self.team)
        self._places = {row: i for i, row in enumerate(rows)}
        return self._results(len(rows))

    def _send(self, rows: list[Row], behind: list[tuple[Prefix, range]]) -> int:
        """What the step needs to know, and the tokens that it is fed: first the rows', then those that are behind. Returns how
        many there are."""
        self.decoded = len(rows)
        place = self.cache.states.place
        columns = [(row.length + 1, row.steps, self._places.get(row, -1), row.token, place(row)) for row in rows]
        columns += [(at + 1, 0, -1, prefix.tokens[at], 0) for prefix, part in behind for at in part]
        live = len(columns)
        facts = np.zeros(self.sent.shape, dtype=np.int64)
        facts[1:, :live] = np.array(columns, dtype=np.int64).T
        facts[0, : self.decoded] = np.array([row.key for row in rows], dtype=np.uint64).view(np.int64)
        table = np.zeros((live, self.table.shape[1]), dtype=np.int32)
        table[: self.decoded] = self.cache.table[: self.decoded]
        first = self.decoded
        for prefix, part in behind:
            table[first : first + len(part), : len(prefix.pages)] = prefix.pages
            first += len(part)
        device = self.ids.device
        self.sent.copy_(to_device(torch.from_numpy(facts), device))
        self.table[:live] = to_device(torch.from_numpy(table), device)
        _, lengths, _, places, tokens, _ = self.sent
        self.lengths.copy_(lengths)
        torch.where(places < 0, tokens, self.ids[places.clamp(min=0)], out=self.tokens)
        return live

    def _compute(self, first: int, rows: int, splits: int) -> None:
        """The step of a batch: hidden states, logits, random numbers, tokens. Of what it reads it writes pages and states."""
        part = slice(first, first + rows)
        attend = self.cache.decode_attention(self.model, self.table[part], self.lengths[part], splits * SPLIT_TOKENS)
        recur = self.cache.states.recur(self.sent[5, part])
        choose = noted(None if self.routes is None else self.routes[part], self.model.config)
        logits = self.head(self.model(self.tokens[part], None, attend, recur=recur, choose=choose))
        u = device_uniforms(self.sent[0, part], self.sent[2, part])
        if self.triton:
            p = self.params
            found = sample_tokens(logits, u, temperature=p.temperature, top_k=p.top_k, top_p=p.top_p)
            self.ids[part], self.logprobs[part], self.flags[part] = found
        elif first < self.decoded:
            count = min(rows, self.decoded - first)
            part = slice(first, first + count)
            self.ids[part], self.logprobs[part] = sample(logits[:count], u[:count], self.params)

    def _results(self, count: int) -> Read:
        """A copy of the results on its way to the host, and what waits for it."""
        on_gpu = self.ids.device.type == "cuda"
        sources = [self.ids, self.logprobs, self.flags] + ([] if self.routes is None else [self.routes])
        copies = [torch.empty(count, *t.shape[1:], dtype=t.dtype, pin_memory=on_gpu) for t in sources]
        for copy, source in zip(copies, sources):
            copy.copy_(source[:count], non_blocking=on_gpu)
        done = torch.cuda.Event() if on_gpu else None
        if done is not None:
            done.record()

        def read() -> tuple[list[int], list[float], Tensor | None]:
            if done is not None:
                done.synchronize()
            ids, logprobs, flags = (copy.tolist() for copy in copies[:3])
            if any(flags):
                raise UserError(NOT_FINITE)
            return ids, logprobs, copies[3] if len(copies) > 3 else None

        return read


class Captured:
    """Decode steps as CUDA graphs, in which hundreds of launches become one.

    A step is captured the first time that its numbers are seen, and replayed from then on: it must read and write the same
    tensors every time, wait for nothing and ask the host for nothing (tests/rollout/test_page_decoder.py holds it to that
    on a CPU). All graphs share one pool of memory. They live as long as their decoder, which the engine keeps until the cache
    is given back or something moves (PageDecoder.assumptions).

    The step is handed over with each call and not kept: a step that its owner keeps would keep the owner, and with it the
    cache, past its time. places: where the rows' states lie, which the step moves on in place.
    """

    def __init__(self, places: Tensor) -> None:
        self.places = places
        self.graphs: dict[tuple[int, int, int], torch.cuda.CUDAGraph] = {}

    def __call__(self, step: Step, first: int, rows: int, splits: int) -> None:
        """Replay the step of these numbers; `step` itself is called where there is no graph of it yet."""
        numbers = first, rows, splits
        if numbers not in self.graphs:
            self.graphs[numbers] = self._capture(step, numbers)
        self.graphs[numbers].replay()

    def _capture(self, step: Step, numbers: tuple[int, int, int]) -> torch.cuda.CUDAGraph:
        """A graph of the step."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            self._rehearse(step, numbers)
        torch.cuda.current_stream().wait_stream(beside)
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: one writes a training state, NCCL's looks after its collectives.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step(*numbers)
        return graph

    def _rehearse(self, step: Step, numbers: tuple[int, int, int]) -> None:
        """Run a step before it is captured: kernels are compiled then, and libraries take their workspaces. It does no harm,
        for what a step writes does not change what it reads; but for states, so those are nobody's meanwhile."""
        of_rows = self.places.clone()
        self.places.zero_()
        step(*numbers)
        self.places.copy_(of_rows)


def rounded_splits(longest: int, split: int, most: int) -> int:
    """Splits of `split` tokens in attention that a step for rows of up to `longest` tokens is made for: a power of two, or
    `most`, so that few graphs serve all lengths."""
    needed = max(1, -(-longest // split))
    return min(most, 1 << (needed - 1).bit_length())


def pages_of(tokens: int) -> int:
    """Pages that so many tokens of one row take."""
    return math.ceil(tokens / PAGE_TOKENS)


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one page: keys and values of 64 tokens in all layers."""
    return 2 * len(config.attention_layers) * config.num_kv_heads * PAGE_TOKENS * config.head_dim * dtype.itemsize
