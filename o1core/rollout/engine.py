"""The rollout engine: prompts in, completions out, tokens all the way.

Continuous batching over a fixed number of slots: a row that ends leaves at once and a waiting one takes its slot. The
prompt of K samples is prefilled once, without its last token, and its cache given to each of them; that last token is
the first one decoded, so every new token comes from the same step. One loop serves both caches: lanes (lanes.py), which a
CPU's products read in place, and pages (pages.py), which hold as many rows as their tokens fit, as a GPU needs. With pages
prompts go through the steps that decode, a row may have to start again, and on a GPU the host reads a step's tokens while
the next one runs. Left out on purpose: speculative decoding.

A completion depends on (seed, prompt, sample index) alone: not on the number of slots, the order of arrival or what is
decoded beside it. This holds to the bit for one machine, cache and number of threads, by the shapes that a row is computed
in: its prompt is prefilled alone (with pages each token is a row of its own), its attention has a shape by its own length,
and products run on batches of fixed sizes (row_bits.py). Where a library treats the rows of a batch differently, the engine
warns that the last bits may differ. Nothing here ran on a GPU: there the code is that of a CPU with other kernels, and graphs
around them.
"""

import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from functools import cache
from typing import Literal

import torch

from ..distributed import ALONE, Team, deal
from ..errors import UserError
from ..kernels import refused_heads, runs_triton
from ..model import ModelConfig, Tokenizer, Transformer
from ..types import Completion
from .lanes import LaneCache, LaneDecoder, cache_bytes
from .memory import free_memory
from .pages import PagedCache, PageDecoder, page_bytes, pages_of
from .row import Read, Row
from .row_bits import GPU_ROWS, BatchSizes, Product, expert_sizes, model_sizes, packed_model
from .sampling import SamplingParams, stream_key
from .states import state_bytes

log = logging.getLogger(__name__)

MOST_SLOTS = 256  # more lanes gain little
MOST_PAGED_SLOTS = 512  # a GPU computes GPU_ROWS at once, so that these read the weights twice
MEAN_SHARE = (
    4  # rows are taken to be a quarter as long as they may be; Marco-o1's are an eighth (1,200 of 9,216 tokens)
)

CacheKind = Literal["lanes", "pages"]
Decoder = LaneDecoder | PageDecoder


class Queue:
    """The completions that are still to start, first those that start again. order: indices of prompts, asked for as they are
    needed."""

    def __init__(self, prompts: list[list[int]], order: Iterable[int], params: SamplingParams, context: int) -> None:
        self.prompts, self.order, self.params, self.context = prompts, iter(order), params, context
        self.rows: deque[Row] = deque()

    def first(self) -> Row | None:
        """The next row; None where nobody waits."""
        return self.rows[0] if self.rows or self._more() else None

    def ahead(self) -> Iterator[tuple[int, list[int]]]:
        """The prompts of the rows in their order, each once where its samples stand together: (index, ids)."""
        last, seen = None, 0
        while seen < len(self.rows) or self._more():
            prompt, seen = self.rows[seen].prompt, seen + 1
            if prompt != last:
                yield prompt, self.prompts[prompt]
            last = prompt

    def again(self, rows: list[Row]) -> None:
        """Rows that lost their place, with what is known of them."""
        self.rows.extendleft(row.again(self.prompts[row.prompt]) for row in reversed(rows))

    def _more(self) -> bool:
        """Ask for another prompt; whether there is one."""
        i = next(self.order, None)
        if i is None:
            return False
        prompt = self.prompts[i]
        limit = min(self.params.max_new_tokens, self.context - len(prompt))
        keys = (stream_key(self.params.seed, prompt, k) for k in range(self.params.n))
        self.rows.extend(Row(i, k, key, len(prompt) - 1, prompt[-1], limit) for k, key in enumerate(keys))
        return True


class Engine:
    """Samples completions of a Transformer.

    slots: rows decoded at once, at most; pages: of the paged cache, all rows together (None of either: as many as half of
    the free memory holds); team: the ranks that hold parts of the model, which are told both, as they must agree and the
    memory that each has free need not. Raises UserError where O1CORE_CACHE names no cache.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        slots: int | None = None,
        team: Team = ALONE,
        pages: int | None = None,
    ) -> None:
        if slots is not None and slots < 1:
            raise UserError(f"slots: {slots}; at least 1 is needed")
        self.model, self.slots, self.team, self.pages = model, slots, team, pages
        self.kind = cache_kind(model.config, model.embed.device)
        self.eos = frozenset(tokenizer.eos_ids)
        self.vocab = min(tokenizer.size, model.config.vocab_size)
        self.restarts = 0  # rows that started again because pages ran out
        self._cache: LaneCache | PagedCache | None = None
        self._held: PageDecoder | None = None  # the last call's, if it has graphs: they may serve again
        self._warned = False

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[list[Completion]]:
        """params.n completions for each prompt (ids), in the order of the prompts. Raises UserError as stream does."""
        done = dict(self.stream(prompts, params))
        return [done[i] for i in range(len(prompts))]

    def stream(
        self, prompts: list[list[int]], params: SamplingParams, order: Iterable[int] | None = None
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the prompt, its params.n completions) as soon as all of them are finished.

        order: indices of prompts, asked for when there is a free slot (None: all, in order). Raises UserError where a
        prompt is empty or fills the model's context, or one row may need more pages than there are.
        """
        context = self.model.config.max_positions
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) < context:
                raise UserError(f"prompt {i}: {len(prompt)} tokens; the model's context allows 1 to {context - 1}")
        longest = min(max(map(len, prompts), default=0) + params.max_new_tokens, context)
        cache = self._reserve(longest, len(prompts) * params.n)
        batches = self._batches()
        queue = Queue(prompts, range(len(prompts)) if order is None else order, params, context)
        with packed_model(self.model, self.vocab) as head:
            yield from self._serve(queue, self._decoder(cache, head, batches, params))

    def stream_dealt(
        self, prompts: list[list[int]], params: SamplingParams
    ) -> Generator[tuple[int, list[Completion]], None, None]:
        """The same for the prompts that are dealt to this process. All ranks ask for the same ones and share them; of a
        team's ranks the first one yields."""
        for found in self.stream(prompts, params, deal(len(prompts), self.team)):
            if self.team.is_lead:
                yield found

    def release(self) -> None:
        """Give the cache's memory back, for an update to use. The next call takes it again."""
        self._cache = self._held = None
        if self.model.embed.is_cuda:
            torch.cuda.empty_cache()

    def _serve(self, queue: Queue, decoder: Decoder) -> Iterator[tuple[int, list[Completion]]]:
        """Admit, decode and hand over until nobody waits."""
        cache, samples = decoder.cache, queue.params.n
        finished: dict[int, dict[int, Completion]] = {}
        under_way: deque[tuple[list[Row], Read]] = deque()
        while True:
            self._admit(queue, decoder)
            restarted = cache.make_room()
            self.restarts += len(restarted)
            queue.again(restarted)
            rows = cache.rows()
            if rows or cache.behind:
                under_way.append((rows, self._step(decoder, rows)))
            elif not under_way:
                cache.clear()
                return
            ended = self._take(*under_way.popleft()) if len(under_way) > decoder.lookahead or not rows else []
            cache.keep(lambda row: row.open and row.steps < row.limit)
            for row in ended:
                of_prompt = finished.setdefault(row.prompt, {})
                of_prompt[row.sample] = row.completion()
                if len(of_prompt) == samples:
                    yield row.prompt, [of_prompt[k] for k in range(samples)]
                    del finished[row.prompt]

    def _admit(self, queue: Queue, decoder: Decoder) -> None:
        """Rows for all slots, as far as completions wait and the cache has room for them."""
        while not decoder.cache.full and (row := queue.first()) is not None:
            if not decoder.admit(row, queue.prompts[row.prompt]):
                break
            queue.rows.popleft()
        decoder.look_ahead(queue.ahead())

    def _batches(self) -> BatchSizes:
        """How a step's rows are cut into batches. Warns once where the module's promise cannot be kept."""
        batches = model_sizes(self.model, self.vocab)
        experts = expert_sizes(self.model)
        holds = batches.holds and (experts is None or experts.holds)
        if not holds and not self._warned:
            self._warned = True
            log.warning(
                "matrix products on this machine (%s, %d threads) round a row by its place in the batch: completions may "
                "differ in their last bits with --slots and after an interruption",
                self.model.embed.dtype,
                torch.get_num_threads(),
            )
        return batches

    def _reserve(self, longest: int, completions: int) -> LaneCache | PagedCache:
        """An empty cache for so many completions of up to `longest` tokens; one that is large enough is used again."""
        config, dtype, device = self.model.config, self.model.embed.dtype, self.model.embed.device
        held, self._cache = self._cache, None
        slots, pages = self.slots, self.pages
        assert slots is not None or self.team.members == 1
        if slots is None or (self.kind == "pages" and pages is None and self.team.members == 1):
            room = free_memory(device) // 2
            slots, fitting = fit_cache(self.kind, config, longest, dtype, room, completions, slots)
            pages = fitting if pages is None else pages
        slots = max(1, min(slots, completions))
        if self.kind == "lanes":
            if not isinstance(held, LaneCache) or held.max_length < longest or held.slots < slots:
                held = None
                held = LaneCache(config, slots, longest, dtype, device)
        else:
            most = most_pages(slots, longest)
            pages = most if pages is None else min(pages, most)
            if not isinstance(held, PagedCache) or not held.holds(pages, longest) or held.slots < slots:
                held = self._held = None
                held = PagedCache(config, slots, pages, longest, dtype, device)
        self._cache = held
        held.clear()
        return held

    def _decoder(
        self, cache: LaneCache | PagedCache, head: Product, batches: BatchSizes, params: SamplingParams
    ) -> Decoder:
        if isinstance(cache, LaneCache):
            return LaneDecoder(self.model, head, cache, batches, params, self.team)
        decoder, self._held = self._held, None
        if decoder is None or not decoder.serves(cache, batches, params):
            decoder = None  # its graphs' memory goes before the next ones take theirs
            decoder = PageDecoder(self.model, head, cache, batches, params, self.team)
        decoder.begin(head, batches, params)
        self._held = decoder if decoder.graphs else None
        return decoder

    def _step(self, decoder: Decoder, rows: list[Row]) -> Read:
        """Launch a decode step for every row."""
        read = decoder.launch(rows)
        for row in rows:
            row.launched()
        return read

    def _take(self, rows: list[Row], read: Read) -> list[Row]:
        """Give the rows of a step the tokens that it sampled. Returns those that ended; what came after an end is dropped."""
        taken = [row for row in rows if row.open]
        ids, logprobs, routes = read()
        of_rows = [None] * len(rows) if routes is None else routes.unbind()
        for row, token, logprob, route in zip(rows, ids, logprobs, of_rows):
            if row.open:
                row.append(token, logprob, route, self.eos)
        return [row for row in taken if not row.open]


def cache_kind(config: ModelConfig, device: torch.device) -> CacheKind:
    """The cache for a model on a device, which need not be there. Raises UserError where O1CORE_CACHE names none.

    A GPU whose pages the Triton kernels do not take has lanes, with one line that says so: the torch twins of the kernels
    wait for the device in every layer.
    """
    asked = os.environ.get("O1CORE_CACHE") or None
    if asked == "lanes":
        return "lanes"
    if asked == "pages":
        return "pages"
    if asked is not None:
        raise UserError(f"O1CORE_CACHE: {asked!r} is no KV cache; use lanes or pages, or unset it")
    if device.type != "cuda" or (torch.cuda.is_available() and not runs_triton(device)):
        return "lanes"
    reason = refused_heads(config.num_heads, config.num_kv_heads, config.head_dim)
    if reason is None:
        return "pages"
    _warn_once(reason)
    return "lanes"


def fit_cache(
    kind: CacheKind,
    config: ModelConfig,
    longest: int,
    dtype: torch.dtype,
    room: int,
    completions: int,
    slots: int | None = None,
) -> tuple[int, int | None]:
    """(slots, pages) of a KV cache of `room` bytes for `completions` rows of up to `longest` tokens; no pages for lanes.

    Slots, where they are not given: lanes hold every row at its longest. Pages hold more rows, by their mean length, in
    whole batches of a GPU where there is more than one; pages for all of them at their longest where there is room, and never
    fewer than one row may need.
    """
    if kind == "lanes":
        return slots or max(1, min(MOST_SLOTS, completions, room // cache_bytes(config, longest, dtype))), None
    page, state = page_bytes(config, dtype), state_bytes(config, dtype)
    if slots is None:
        of_row = pages_of(-(-longest // MEAN_SHARE)) * page + state
        slots = max(1, min(MOST_PAGED_SLOTS, completions, room // of_row))
        if slots > GPU_ROWS:
            slots -= slots % GPU_ROWS
    pages = max(0, room - slots * state) // page
    return slots, max(pages_of(longest), min(pages, most_pages(slots, longest)))


def most_pages(slots: int, longest: int) -> int:
    """Pages that so many rows can have, and the prompt whose samples come."""
    return (slots + 1) * pages_of(longest)


@cache
def _warn_once(reason: str) -> None:
    log.warning("KV cache: %s, which the Triton kernels take; lanes run instead of pages, with fewer slots", reason)
