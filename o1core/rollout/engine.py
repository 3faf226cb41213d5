"""The rollout engine: prompts in, completions out, tokens all the way.

Continuous batching over a fixed number of slots: a row that ends leaves at once and a waiting one takes its slot. The
prompt of K samples is prefilled once, without its last token, and its cache copied to each of them; that last token is
the first one decoded, so every new token comes from the same step. Left out on purpose: paging and preemption (a row's
cache is bounded by its own length, see cache.py) and speculative decoding.

A completion depends on (seed, prompt, sample index) alone. On a CPU this holds to the bit for any number of slots and
any order of arrival: no product sees a shape that depends on other rows, but for their count, which is rounded up to 8.
(Seen to fail only where the number of threads is no power of two: torch's SiLU rounds differently at a seam between two
threads, and such a seam can fall inside a row.)
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..model.tokenizer import Tokenizer
from ..model.transformer import Transformer, causal_attention
from .lanes import KVCache
from .packing import packed_model
from .sampling import SamplingParams, sample, stream_key, uniforms

ROW_QUANTUM = 8  # fp32 products of MKL give a row the same bits in any batch of a multiple of 4 rows, not below


@dataclass(frozen=True)
class Completion:
    """What was sampled. ids include the end-of-text token; logprobs, in nats, are the sampler's, one a token.

    finish_reason: "stop" after an end-of-text token, "length" where max_new_tokens or the context ran out.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: str


@dataclass(eq=False)
class Row:
    """A completion being decoded. length: tokens in its cache; token: the next one to feed."""

    prompt: int
    sample: int
    key: int
    length: int
    token: int
    limit: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None


class Engine:
    """Samples completions of a Transformer. slots: rows decoded at once, the one knob between memory and speed."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, slots: int = 64):
        if slots < 1:
            raise UserError(f"slots: {slots}; at least 1 is needed")
        self.model, self.slots = model, slots
        self.eos = frozenset(tokenizer.eos_ids)
        self.vocab = min(tokenizer.size, model.config.vocab_size)
        self.cache: KVCache | None = None

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[list[Completion]]:
        """params.n completions for each prompt (ids), in the order of the prompts. Raises UserError as stream does."""
        done = dict(self.stream(prompts, params))
        return [done[i] for i in range(len(prompts))]

    def stream(self, prompts: list[list[int]], params: SamplingParams) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the prompt, its params.n completions) as soon as all of them are finished.

        Raises UserError where a prompt is empty or fills the model's context.
        """
        context = self.model.config.max_positions
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) < context:
                raise UserError(f"prompt {i}: {len(prompt)} tokens; the model's context allows 1 to {context - 1}")
        self._reserve(min(max(map(len, prompts), default=0) + params.max_new_tokens, context))
        with packed_model(self.model, self.vocab) as head:
            yield from self._serve(prompts, params, head)

    def _serve(self, prompts: list[list[int]], params: SamplingParams, head) -> Iterator[tuple[int, list[Completion]]]:
        """Admit, decode and hand over until nobody waits. head: hidden states -> logits."""
        context = self.model.config.max_positions
        waiting = deque((i, k) for i in range(len(prompts)) for k in range(params.n))
        finished: dict[int, dict[int, Completion]] = {}
        prefilled: tuple[int, Tensor, Tensor] | None = None  # the prompt whose samples are being admitted
        active = 0
        while waiting or active:
            while waiting and active < self.slots:
                i, k = waiting.popleft()
                if prefilled is None or prefilled[0] != i:
                    prefilled = (i, *self._prefill(prompts[i][:-1]))
                limit = min(params.max_new_tokens, context - len(prompts[i]))
                key = stream_key(params.seed, prompts[i], k)
                row = Row(i, k, key, len(prompts[i]) - 1, prompts[i][-1], limit)
                self._admit(row, *prefilled[1:])
                active += 1
            for row in self._step(params, head):
                active -= 1
                of_prompt = finished.setdefault(row.prompt, {})
                of_prompt[row.sample] = Completion(row.ids, row.logprobs, row.finish_reason)
                if len(of_prompt) == params.n:
                    yield row.prompt, [of_prompt[k] for k in range(params.n)]
                    del finished[row.prompt]

    def _reserve(self, max_length: int) -> None:
        """Have a cache for rows of max_length tokens; one that is large enough is used again."""
        if self.cache is None or self.cache.spans[-1] < max_length:
            weight = self.model.embed
            self.cache = KVCache(self.model.config, self.slots, max_length, weight.dtype, weight.device)
        self.cache.clear()

    @torch.inference_mode()
    def _prefill(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values [L, Hkv, T, D] of a prompt."""
        config, weight = self.model.config, self.model.embed
        shape = (config.num_layers, config.num_kv_heads, len(ids), config.head_dim)
        keys, values = (torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        if ids:

            def attend(layer, q, k, v):
                keys[layer], values[layer] = k[0].transpose(0, 1), v[0].transpose(0, 1)
                return causal_attention(layer, q, k, v)

            tokens = torch.tensor([ids], device=weight.device)
            self.model(tokens, torch.arange(len(ids), device=weight.device), attend)
        return keys, values

    @torch.inference_mode()
    def _admit(self, row: Row, keys: Tensor, values: Tensor) -> None:
        self.cache.add(row, keys, values)

    @torch.inference_mode()
    def _step(self, params: SamplingParams, head) -> list[Row]:
        """Decode one token for every row. Returns the rows that it finished, which have left the cache."""
        rows, weight = self.cache.rows(), self.model.embed
        pad = -len(rows) % ROW_QUANTUM
        feed = torch.tensor([[row.token for row in rows], [row.length for row in rows]], device=weight.device)
        tokens, positions = F.pad(feed, (0, pad))
        hidden = self.model(tokens, positions, self.cache.decode_attention())
        logits = head(hidden)[: len(rows)]
        u = uniforms([row.key for row in rows], [len(row.ids) for row in rows])
        ids, logprobs = sample(logits, torch.from_numpy(u).to(logits.device), params)
        over = []
        for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist()):
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.token = token
            row.length += 1
            if token in self.eos or len(row.ids) == row.limit:
                row.finish_reason = "stop" if token in self.eos else "length"
                over.append(row)
        self.cache.keep(lambda row: row.finish_reason is None)
        return over
