"""The rollout engine: prompts in, completions out, tokens all the way.

Continuous batching over a fixed number of slots: a row that ends leaves at once and a waiting one takes its slot. The
prompt of K samples is prefilled once, without its last token, and its cache given to each of them; that last token is
the first one decoded, so every new token comes from the same step. One loop serves both caches (caches.py): with pages a
row may have to start again, and on a GPU the host reads a step's tokens while the next one runs. Left out on purpose:
prompts prefilled together (it would change their shapes for a hundredth of the time) and speculative decoding.

A completion depends on (seed, prompt, sample index) alone: not on the number of slots, the order of arrival or what is
decoded beside it. This holds to the bit for one machine, cache and number of threads, by the shapes that a row is computed
in: its prompt is prefilled alone, its attention has a shape by its own length, and products have blocks of a fixed number of
rows (blocks.py). Where a library treats the rows of a block differently, the engine warns that the last bits may differ.
Nothing here ran on a GPU: there the code is that of a CPU with other kernels, and graphs around them.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..distributed import ALONE, Team
from ..errors import UserError
from ..model import Tokenizer, Transformer
from ..types import Completion
from .blocks import Blocks, model_blocks
from .caches import cache_kind
from .decoder import Decoder, LaneDecoder, Read, prefill
from .lanes import LaneCache
from .memory import free_memory
from .packing import Product, packed_model
from .page_decoder import PageDecoder
from .pages import PagedCache, page_bytes, pages_of
from .row import Row
from .sampling import SamplingParams, stream_key

log = logging.getLogger(__name__)


@dataclass
class Queue:
    """The completions that are still to start, as (prompt, sample): first those that start again."""

    prompts: list[list[int]]
    pairs: Iterator[tuple[int, int]]
    again: deque[tuple[int, int]] = field(default_factory=deque)
    prefilled: tuple[int, Tensor, Tensor] | None = (
        None  # the prompt whose samples are being admitted, its keys and values
    )

    def next(self) -> tuple[int, int] | None:
        return self.again.popleft() if self.again else next(self.pairs, None)


class Engine:
    """Samples completions of a Transformer.

    slots: rows decoded at once, at most; pages: of the paged cache, all rows together (None: as many as the rows may need,
    in half of the free memory); team: the ranks that hold parts of the model. Raises UserError where O1CORE_CACHE names
    no cache.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, slots: int = 64, team: Team = ALONE, pages: int | None = None
    ) -> None:
        if slots < 1:
            raise UserError(f"slots: {slots}; at least 1 is needed")
        self.model, self.slots, self.team, self.pages = model, slots, team, pages
        self.kind = cache_kind(model.config, model.embed.device)
        self.eos = frozenset(tokenizer.eos_ids)
        self.vocab = min(tokenizer.size, model.config.vocab_size)
        self.restarts = 0  # rows that started again because pages ran out
        self._cache: LaneCache | PagedCache | None = None
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
        cache = self._reserve(min(max(map(len, prompts), default=0) + params.max_new_tokens, context))
        blocks = self._blocks()
        pairs = ((i, k) for i in (range(len(prompts)) if order is None else order) for k in range(params.n))
        with packed_model(self.model, self.vocab) as head:
            yield from self._serve(Queue(prompts, pairs), params, cache, self._decoder(cache, head, blocks, params))

    def release(self) -> None:
        """Give the cache's memory back, for an update to use. The next call takes it again."""
        self._cache = None
        if self.model.embed.is_cuda:
            torch.cuda.empty_cache()

    def _serve(
        self, queue: Queue, params: SamplingParams, cache: LaneCache | PagedCache, decoder: Decoder
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Admit, decode and hand over until nobody waits."""
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
            ended = self._take(*under_way.popleft()) if len(under_way) > decoder.behind or not rows else []
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
        for _ in range(self.slots - len(cache.rows())):
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

    def _blocks(self) -> Blocks:
        """How the rows of a step are cut. Warns once where the promise of the module's docstring cannot be kept."""
        blocks = model_blocks(self.model, self.vocab)
        if not blocks.holds and not self._warned:
            self._warned = True
            log.warning(
                "matrix products on this machine (%s, %d threads) round a row by its place in the batch: completions may "
                "differ in their last bits with --slots and after an interruption",
                self.model.embed.dtype,
                torch.get_num_threads(),
            )
        return blocks

    def _reserve(self, longest: int) -> LaneCache | PagedCache:
        """An empty cache for rows of up to `longest` tokens; one that is large enough is used again."""
        config, dtype, device = self.model.config, self.model.embed.dtype, self.model.embed.device
        held, self._cache = self._cache, None
        if self.kind == "lanes":
            if not isinstance(held, LaneCache) or held.max_length < longest:
                held = None
                held = LaneCache(config, self.slots, longest, dtype, device)
        else:
            pages = self.slots * pages_of(longest)
            if self.pages is not None:
                pages = min(pages, self.pages)
            if not isinstance(held, PagedCache) or not held.holds(pages, longest):
                held = None
                if (
                    self.pages is None and self.team.members == 1
                ):  # ranks of a team must agree, and their memory need not
                    pages = min(pages, free_memory(device) // 2 // page_bytes(config, dtype))
                held = PagedCache(config, self.slots, pages, longest, dtype, device)
        self._cache = held
        held.clear()
        return held

    def _decoder(self, cache: LaneCache | PagedCache, head: Product, blocks: Blocks, params: SamplingParams) -> Decoder:
        if isinstance(cache, LaneCache):
            return LaneDecoder(self.model, head, cache, blocks, params, self.team)
        return PageDecoder(self.model, head, cache, blocks, params, self.team)

    def _prefill(self, ids: list[int]) -> tuple[Tensor, Tensor]:
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
