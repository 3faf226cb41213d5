"""The rollout engine: prompts in, completions out, tokens all the way.

Continuous batching over a fixed number of slots: a row that ends leaves at once and a waiting one takes its slot. The
prompt of K samples is prefilled once, without its last token, and its cache given to each of them; that last token is
the first one decoded, so every new token comes from the same step. One loop serves both caches: lanes (lanes.py), which a
CPU's products read in place, and pages (pages.py), which hold as many rows as their tokens fit, as a GPU needs. With pages
a row may have to start again, and on a GPU the host reads a step's tokens while the next one runs. Left out on purpose:
prompts prefilled together (it would change their shapes for a hundredth of the time) and speculative decoding.

A completion depends on (seed, prompt, sample index) alone: not on the number of slots, the order of arrival or what is
decoded beside it. This holds to the bit for one machine, cache and number of threads, by the shapes that a row is computed
in: its prompt is prefilled alone, its attention has a shape by its own length, and products run on batches of fixed sizes
(row_bits.py). Where a library treats the rows of a batch differently, the engine warns that the last bits may differ.
Nothing here ran on a GPU: there the code is that of a CPU with other kernels, and graphs around them.
"""

import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from ..distributed import ALONE, Team, deal
from ..errors import UserError
from ..kernels import refused_heads, runs_triton
from ..model import (
    DeltaInputs,
    DeltaState,
    ModelConfig,
    Tokenizer,
    Transformer,
    causal_attention,
    empty_state,
    run_sequence,
)
from ..types import Completion
from .lanes import LaneCache, LaneDecoder, cache_bytes
from .memory import free_memory
from .pages import PagedCache, PageDecoder, page_bytes, pages_of, to_device
from .row import Read, Row
from .row_bits import GPU_ROWS, BatchSizes, Product, expert_sizes, model_sizes, packed_model
from .sampling import SamplingParams, stream_key
from .states import DeltaStates, state_bytes

log = logging.getLogger(__name__)

MOST_SLOTS = 256  # more lanes gain little
MOST_PAGED_SLOTS = 512  # a GPU computes GPU_ROWS at once, so that these read the weights twice
MEAN_SHARE = (
    4  # rows are taken to be a quarter as long as they may be; Marco-o1's are an eighth (1,200 of 9,216 tokens)
)

CacheKind = Literal["lanes", "pages"]
Decoder = LaneDecoder | PageDecoder


@dataclass
class Queue:
    """The completions that are still to start, as (prompt, sample): first those that start again."""

    prompts: list[list[int]]
    pairs: Iterator[tuple[int, int]]
    again: deque[tuple[int, int]] = field(default_factory=deque)
    # The prompt being admitted, its keys, values and state.
    prefilled: tuple[int, Tensor, Tensor, DeltaState | None] | None = None

    def next(self) -> tuple[int, int] | None:
        return self.again.popleft() if self.again else next(self.pairs, None)


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
        pairs = ((i, k) for i in (range(len(prompts)) if order is None else order) for k in range(params.n))
        with packed_model(self.model, self.vocab) as head:
            yield from self._serve(Queue(prompts, pairs), params, self._decoder(cache, head, batches, params))

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

    def _serve(self, queue: Queue, params: SamplingParams, decoder: Decoder) -> Iterator[tuple[int, list[Completion]]]:
        """Admit, decode and hand over until nobody waits."""
        cache = decoder.cache
        finished: dict[int, dict[int, Completion]] = {}
        under_way: deque[tuple[list[Row], Read]] = deque()
        while True:
            self._admit(queue, params, cache)
            restarted = cache.make_room()
            self.restarts += len(restarted)
            queue.again.extendleft((row.prompt, row.sample) for row in reversed(restarted))
            rows = cache.rows()
            if rows:
                under_way.append((rows, self._step(decoder, rows)))
            elif not under_way:
                cache.clear()
                return
            ended = self._take(*under_way.popleft()) if len(under_way) > decoder.lookahead or not rows else []
            cache.keep(lambda row: row.open and row.steps < row.limit)
            for row in ended:
                of_prompt = finished.setdefault(row.prompt, {})
                of_prompt[row.sample] = row.completion()
                if len(of_prompt) == params.n:
                    yield row.prompt, [of_prompt[k] for k in range(params.n)]
                    del finished[row.prompt]

    def _admit(self, queue: Queue, params: SamplingParams, cache: LaneCache | PagedCache) -> None:
        """Rows for all slots, as far as completions wait and the cache has room for them."""
        context = self.model.config.max_positions
        for _ in range(cache.slots - len(cache.rows())):
            pair = queue.next()
            if pair is None:
                return
            i, k = pair
            prompt = queue.prompts[i]
            if queue.prefilled is None or queue.prefilled[0] != i:
                queue.prefilled = (i, *self._prefill(prompt[:-1]))
            limit = min(params.max_new_tokens, context - len(prompt))
            row = Row(i, k, stream_key(params.seed, prompt, k), len(prompt) - 1, prompt[-1], limit)
            if not cache.add(row, *queue.prefilled[1:]):
                queue.again.appendleft(pair)
                return

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
            most = slots * pages_of(longest)
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

    def _prefill(self, ids: list[int]) -> tuple[Tensor, Tensor, DeltaState | None]:
        return prefill(self.model, ids)

    def _step(self, decoder: Decoder, rows: list[Row]) -> Read:
        """Launch a decode step for every row."""
        read = decoder.launch(rows)
        for row in rows:
            row.launched()
        return read

    def _take(self, rows: list[Row], read: Read) -> list[Row]:
        """Give the rows of a step the tokens that it sampled. Returns those that ended; what came after an end is dropped."""
        taken = [row for row in rows if row.open]
        for row, token, logprob in zip(rows, *read()):
            if row.open:
                row.append(token, logprob, self.eos)
        return [row for row in taken if not row.open]


@torch.inference_mode()
def prefill(model: Transformer, ids: list[int]) -> tuple[Tensor, Tensor, DeltaState | None]:
    """Keys and values [L, Hkv, T, D] of a prompt, and the state that it leaves in the layers of the delta rule: tail
    [L, C, kernel - 1], memory [L, Hv, K, V]."""
    config, weight = model.config, model.embed
    attention = {layer: i for i, layer in enumerate(config.attention_layers)}
    shape = (len(attention), config.num_kv_heads, len(ids), config.head_dim)
    keys, values = (torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
    states = DeltaStates(config, 0, weight.dtype, weight.device) if config.delta else None
    if ids:

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            i = attention[layer]
            keys[i], values[i] = k[0].transpose(0, 1), v[0].transpose(0, 1)
            return causal_attention(layer, q, k, v)

        def recur(layer: int, inputs: DeltaInputs) -> Tensor:
            assert states is not None
            i = states.index[layer]
            out, (states.tails[i], states.memories[i]) = run_sequence(inputs, empty_state(inputs))
            return out

        tokens = to_device(torch.tensor([ids]), weight.device)
        model(tokens, torch.arange(len(ids), device=weight.device), attend, recur=recur)
    return keys, values, DeltaState(states.tails[:, 0], states.memories[:, 0]) if states else None


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
    return slots, max(pages_of(longest), min(pages, slots * pages_of(longest)))


@cache
def _warn_once(reason: str) -> None:
    log.warning("KV cache: %s, which the Triton kernels take; lanes run instead of pages, with fewer slots", reason)
