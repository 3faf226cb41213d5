"""The model's two calls of a rollout: the prefill of a prompt, and one decode step for all rows.

A prompt is prefilled alone, so the shapes depend on its own length and nothing else. A decode step computes its rows in
blocks of a fixed number of rows (blocks.py). The step here is that of lanes; page_decoder.py has the one of pages.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import ALONE, Team, share_tokens
from ..model import Transformer, causal_attention
from .blocks import Blocks
from .lanes import LaneCache
from .packing import Product
from .row import Row
from .sampling import SamplingParams, sample, uniforms

Read = Callable[[], tuple[list[int], list[float]]]  # waits for a step and returns its ids and log-probs, one a row


class Decoder(Protocol):
    """Decode steps for the rows of a cache."""

    @property
    def behind(self) -> int:
        """How many more steps may be launched before the results of one are read."""
        ...

    def launch(self, rows: list[Row]) -> Read:
        """Start one step for all rows of the cache, which has made room for it."""
        ...


@torch.inference_mode()
def prefill(model: Transformer, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Keys and values [L, Hkv, T, D] of a prompt."""
    config, weight = model.config, model.embed
    shape = (config.num_layers, config.num_kv_heads, len(ids), config.head_dim)
    keys, values = (torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
    if ids:

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[layer], values[layer] = k[0].transpose(0, 1), v[0].transpose(0, 1)
            return causal_attention(layer, q, k, v)

        tokens = sent(torch.tensor([ids]), weight.device)
        model(tokens, torch.arange(len(ids), device=weight.device), attend)
    return keys, values


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers of the host on their way to the device, which they reach before what is launched next. A GPU's host does not
    wait for that."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)


class LaneDecoder:
    """Decode steps of `model` for the rows of `cache`. head: hidden states -> logits; team: the ranks that hold the model.

    A step's results are there when it returns: the host is never behind.
    """

    behind = 0

    def __init__(
        self,
        model: Transformer,
        head: Product,
        cache: LaneCache,
        blocks: Blocks,
        params: SamplingParams,
        team: Team = ALONE,
    ) -> None:
        self.model, self.head, self.cache, self.blocks, self.params = model, head, cache, blocks, params
        self.team = team

    @torch.inference_mode()
    def launch(self, rows: list[Row]) -> Read:
        """One new token for every row of the cache. Returns what reads the ids and log-probs."""
        device = self.model.embed.device
        u = torch.from_numpy(uniforms([row.key for row in rows], [row.steps for row in rows])).to(device)
        feed = torch.tensor([[row.token for row in rows], [row.length for row in rows]], device=device)
        ids: list[int] = []
        logprobs: list[float] = []
        first = 0
        for size in self.blocks.cut(len(rows)):
            last = min(first + size, len(rows))
            tokens, positions = F.pad(feed[:, first:last], (0, first + size - last))
            hidden = self.model(tokens, positions, self.cache.decode_attention(first, last))
            found = sample(self.head(hidden)[: last - first], u[first:last], self.params)
            share_tokens(found[0], self.team)
            ids += found[0].tolist()
            logprobs += found[1].tolist()
            first = last
        return lambda: (ids, logprobs)
