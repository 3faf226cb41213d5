"""The rollout engine: prompts in, completions out, tokens all the way.

Continuous batching over a fixed number of slots: a row that ends leaves at once and a waiting one takes its slot. The
prompt of K samples is prefilled once, without its last token, and its cache copied to each of them; that last token is
the first one decoded, so every new token comes from the same step. Left out on purpose: paging and preemption (a row's
cache is bounded by its own length, see lanes.py) and speculative decoding.

A completion depends on (seed, prompt, sample index) alone: not on the number of slots, the order of arrival or what is
decoded beside it. This holds to the bit for one machine and number of threads, by the shapes that a row is computed in:
its prompt is prefilled alone, its attention spans its own lane, and products have blocks of a fixed number of rows
(blocks.py). Where a library treats the rows of a block differently, the engine warns that the last bits may differ.
"""

import logging
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..distributed import ALONE, Team
from ..errors import UserError
from ..model import Tokenizer, Transformer
from .blocks import Blocks, model_blocks
from .completion import Completion, Row
from .decoder import decode, prefill
from .lanes import KVCache
from .packing import Product, packed_model
from .sampling import SamplingParams, stream_key

log = logging.getLogger(__name__)


class Engine:
    """Samples completions of a Transformer.

    slots: rows decoded at once, the one knob between memory and speed; team: the ranks that hold parts of the model.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, slots: int = 64, team: Team = ALONE) -> None:
        if slots < 1:
            raise UserError(f"slots: {slots}; at least 1 is needed")
        self.model, self.slots, self.team = model, slots, team
        self.eos = frozenset(tokenizer.eos_ids)
        self.vocab = min(tokenizer.size, model.config.vocab_size)
        self._cache: KVCache | None = None
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
        prompt is empty or fills the model's context.
        """
        context = self.model.config.max_positions
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) < context:
                raise UserError(f"prompt {i}: {len(prompt)} tokens; the model's context allows 1 to {context - 1}")
        cache = self._reserve(min(max(map(len, prompts), default=0) + params.max_new_tokens, context))
        blocks = self._blocks()
        with packed_model(self.model, self.vocab) as head:
            pairs = ((i, k) for i in (range(len(prompts)) if order is None else order) for k in range(params.n))
            yield from self._serve(prompts, pairs, params, cache, head, blocks)

    def release(self) -> None:
        """Give the cache's memory back, for an update to use. The next call takes it again."""
        self._cache = None

    def _serve(
        self,
        prompts: list[list[int]],
        waiting: Iterator[tuple[int, int]],
        params: SamplingParams,
        cache: KVCache,
        head: Product,
        blocks: Blocks,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Admit, decode and hand over until nobody waits. waiting: (prompt, sample); head: hidden states -> logits."""
        context = self.model.config.max_positions
        finished: dict[int, dict[int, Completion]] = {}
        prefilled: tuple[int, Tensor, Tensor] | None = None  # the prompt whose samples are being admitted
        active = 0
        while True:
            while active < self.slots and (pair := next(waiting, None)) is not None:
                i, k = pair
                if prefilled is None or prefilled[0] != i:
                    prefilled = (i, *self._prefill(prompts[i][:-1]))
                limit = min(params.max_new_tokens, context - len(prompts[i]))
                key = stream_key(params.seed, prompts[i], k)
                row = Row(i, k, key, len(prompts[i]) - 1, prompts[i][-1], limit)
                with torch.inference_mode():
                    cache.add(row, *prefilled[1:])
                active += 1
            if not active:
                return
            for row in self._step(params, cache, head, blocks):
                active -= 1
                of_prompt = finished.setdefault(row.prompt, {})
                of_prompt[row.sample] = row.completion()
                if len(of_prompt) == params.n:
                    yield row.prompt, [of_prompt[k] for k in range(params.n)]
                    del finished[row.prompt]

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

    def _reserve(self, max_length: int) -> KVCache:
        """An empty cache for rows of max_length tokens; one that is large enough is used again."""
        if self._cache is None or self._cache.spans[-1] < max_length:
            weight = self.model.embed
            self._cache = KVCache(self.model.config, self.slots, max_length, weight.dtype, weight.device)
        self._cache.clear()
        return self._cache

    def _prefill(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        return prefill(self.model, ids)

    @torch.inference_mode()
    def _step(self, params: SamplingParams, cache: KVCache, head: Product, blocks: Blocks) -> list[Row]:
        """Decode one token for every row. Returns the rows that it finished, which have left the cache."""
        rows = cache.rows()
        for row, token, logprob in zip(rows, *decode(self.model, head, cache, blocks, params)):
            row.append(token, logprob, self.eos)
        cache.keep(lambda row: row.finish_reason is None)
        return [row for row in rows if row.finish_reason is not None]
