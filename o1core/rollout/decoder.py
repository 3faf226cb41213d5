"""The model's two calls of a rollout: the prefill of a prompt, and one decode step for all rows.

A prompt is prefilled alone, so its keys and values depend on its own length and nothing else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Transformer, causal_attention
from .lanes import KVCache
from .packing import Product
from .sampling import SamplingParams, sample, uniforms

ROW_QUANTUM = 8  # fp32 products of MKL give a row the same bits in any batch of a multiple of 4 rows, not below


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
def decode(model: Transformer, head: Product, cache: KVCache, params: SamplingParams) -> tuple[list[int], list[float]]:
    """One new token and its log-prob for every row, in the order of cache.rows(). head: hidden states -> logits."""
    rows, weight = cache.rows(), model.embed
    pad = -len(rows) % ROW_QUANTUM
    feed = torch.tensor([[row.token for row in rows], [row.length for row in rows]], device=weight.device)
    tokens, positions = F.pad(feed, (0, pad))
    hidden = model(tokens, positions, cache.decode_attention())
    logits = head(hidden)[: len(rows)]
    u = uniforms([row.key for row in rows], [len(row.ids) for row in rows])
    ids, logprobs = sample(logits, torch.from_numpy(u).to(logits.device), params)
    return ids.tolist(), logprobs.tolist()
