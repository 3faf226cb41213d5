"""A prompt by itself through the whole model: how lanes begin, and what a hybrid's pages begin with, whose delta rule goes over
a prompt in chunks. Other pages are filled as rows of the steps that decode (pages.py)."""

import torch
from torch import Tensor

from ..model import DeltaInputs, DeltaState, Transformer, causal_attention, empty_state, run_sequence
from .memory import to_device
from .states import DeltaStates


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
