"""The model's two calls of a rollout: the prefill of a prompt, and one decode step for all rows.

A prompt is prefilled alone, so the shapes depend on its own length and nothing else. A decode step computes its rows in
blocks of a fixed number of rows (blocks.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Transformer, causal_attention
from .blocks import Blocks
from .lanes import KVCache
from .packing import Product
from .sampling import SamplingParams, sample, uniforms


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

        tokens = torch.tensor([ids], device=weight.device)
        model(tokens, torch.arange(len(ids), device=weight.device), attend)
    return keys, values


@torch.inference_mode()
def decode(
    model: Transformer, head: Product, cache: KVCache, blocks: Blocks, params: SamplingParams
) -> tuple[list[int], list[float]]:
    """One new token and its log-prob for every row, in the order of cache.rows(). head: hidden states -> logits."""
    rows, weight = cache.rows(), model.embed
    u = torch.from_numpy(uniforms([row.key for row in rows], [len(row.ids) for row in rows])).to(weight.device)
    feed = torch.tensor([[row.token for row in rows], [row.length for row in rows]], device=weight.device)
    ids, logprobs, first = [], [], 0
    for size in blocks.cut(len(rows)):
        last = min(first + size, len(rows))
        tokens, positions = F.pad(feed[:, first:last], (0, first + size - last))
        hidden = model(tokens, positions, cache.decode_attention(first, last))
        found = sample(head(hidden)[: last - first], u[first:last], params)
        ids += found[0].tolist()
        logprobs += found[1].tolist()
        first = last
    return ids, logprobs
