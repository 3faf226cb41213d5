"""The decoder of the Qwen2, Qwen3, Llama and SmolLM3 families in plain torch: token ids in, hidden states out.

One forward for training, prefill and decode. It takes rows of any leading shape and a function `attend` that turns
(layer, q, k, v) into the attention's output. An update runs on packed rows, whose sequences only attention knows (trees.py);
the rollout engine attends over a KV cache; `hidden` takes a padded batch, for parity and tests. Left out on purpose: dropout
and attention masks (a batch is padded on the right, where a causal model does not look), and logits inside the forward
(log-probs come from o1core.kernels, which never holds them).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import ModelConfig
from .rope import rotary, rotate
from .trees import Trees, tree_attention

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (layer, q, k, v) -> the attention's output, shaped as q
Rotation = tuple[Tensor, Tensor]  # cos and sin [..., 1, D/2]
THREAD_GRAIN = 1 << 15  # up to so many numbers are computed by one thread (torch's at::internal::GRAIN_SIZE)


class Block(nn.Module):
    """One decoder layer: attention, then a gated MLP, each behind an RMSNorm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        c = self.config = config
        self.rotates = layer not in config.nope_layers
        self.attention_norm = nn.Parameter(torch.empty(c.hidden_size))
        self.qkv = nn.Linear(c.hidden_size, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, bias=c.qkv_bias)
        if c.qk_norm:
            self.q_norm = nn.Parameter(torch.empty(c.head_dim))
            self.k_norm = nn.Parameter(torch.empty(c.head_dim))
        self.o = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=False)
        self.mlp_norm = nn.Parameter(torch.empty(c.hidden_size))
        self.gate_up = nn.Linear(c.hidden_size, 2 * c.ffn_size, bias=False)
        self.down = nn.Linear(c.ffn_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend, layer: int) -> Tensor:
        c = self.config
        # q, k and v come from one product: a decoded row reads its weights once, and three small launches become one.
        heads = self.qkv(rms_norm(x, self.attention_norm, c)).unflatten(-1, (-1, c.head_dim))  # [..., Hq + 2 Hkv, D]
        qk, v = heads.split([c.num_heads + c.num_kv_heads, c.num_kv_heads], dim=-2)
        if c.qk_norm:
            q, k = qk.split([c.num_heads, c.num_kv_heads], dim=-2)
            qk = torch.cat((rms_norm(q, self.q_norm, c), rms_norm(k, self.k_norm, c)), dim=-2)
        if self.rotates and rotation is not None:  # q and k lie side by side, so one call turns both
            qk = rotate(qk, *rotation)
        q, k = qk.split([c.num_heads, c.num_kv_heads], dim=-2)
        x = x + self.o(attend(layer, q, k, v).flatten(-2))
        gate, up = self.gate_up(rms_norm(x, self.mlp_norm, c)).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)


class Transformer(nn.Module):
    """A causal language model. Weights come from load_weights or initialise; `lm_head` is the embedding where they are tied."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.Parameter(torch.empty(config.hidden_size))
        if not config.tied:
            self.head = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    @property
    def lm_head(self) -> Tensor:
        """[V, H]: the rows that score each token."""
        return self.embed if self.config.tied else self.head

    def forward(self, ids: Tensor, positions: Tensor | None, attend: Attend, recompute: bool = False) -> Tensor:
        """Hidden states after the last norm.

        ids: int64, any shape [...]; positions: int64, broadcastable to it (None: `attend` rotates q and k itself); attend:
        see the module's docstring, q [..., Hq, D], k and v [..., Hkv, D] -> [..., Hq, D]. recompute: gradient
        checkpointing, a block at a time.
        Returns [..., H] in the weights' dtype.
        """
        # The embedding is a plain parameter and no nn.Embedding: where it is tied, it is the head too.
        x = F.embedding(ids, self.embed)
        rotation = None if positions is None else self.rotation(positions, x.dtype)
        for layer, block in enumerate(self.blocks):
            if recompute:  # keep a block's input alone, and run the block again when its gradient is due
                x = checkpoint(block, x, rotation, attend, layer, use_reentrant=False)
            else:
                x = block(x, rotation, attend, layer)
        return rms_norm(x, self.norm, self.config)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """cos and sin [..., 1, D/2] of the rotary embedding at positions [...]."""
        c = self.config
        cos, sin = rotary(positions, c.head_dim, c.rope_theta, c.scaling)
        return cos.to(dtype), sin.to(dtype)

    def packed(self, ids: Tensor, trees: Trees, recompute: bool = False) -> Tensor:
        """Hidden states [N, H] of packed rows ids [N]."""
        return self(ids, trees.positions(ids.device), tree_attention(trees, ids.device), recompute)

    def hidden(self, ids: Tensor, recompute: bool = False) -> Tensor:
        """Hidden states [B, T, H] of a batch ids [B, T], causal, padded on the right with any id."""
        return self(ids, torch.arange(ids.shape[1], device=ids.device), causal_attention, recompute)

    def logits(self, ids: Tensor) -> Tensor:
        """float32 logits [B, T, V] of ids [B, T]. For parity and small models: training never holds them."""
        return F.linear(self.hidden(ids), self.lm_head).float()


def rms_norm(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    """RMSNorm over the last dimension, statistics in float32."""
    return F.rms_norm(x, (x.shape[-1],), weight, config.norm_eps)


def silu(x: Tensor) -> Tensor:
    """SiLU of x [..., F]. On a CPU rows [R, F] that are decoded are taken so few at a time that one thread computes them.

    torch cuts a large tensor into a piece for each thread, and the numbers at a seam round otherwise: where a seam falls
    inside a row, its bits depend on the rows beside it.
    """
    decoded = x.ndim == 2 and x.is_inference()  # the packed rows of an update are alike, and not the engine's
    if x.is_cuda or not decoded or x.numel() <= THREAD_GRAIN or torch.get_num_threads() == 1:
        return F.silu(x)
    return torch.cat([F.silu(part) for part in x.split(max(1, THREAD_GRAIN // x.shape[-1]))])


def causal_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q [B, T, Hq, D] over k, v [B, T, Hkv, D], each position seeing itself and those before it."""
    q, k, v = (t.transpose(-3, -2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[-3] != k.shape[-3])
    return out.transpose(-3, -2)


def initialise(model: Transformer, seed: int, std: float = 0.02) -> None:
    """Fill a new model for training from scratch: norms with one, biases with zero, the rest from a normal of `std`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                nn.init.constant_(p, 0.0 if name.endswith("bias") else 1.0)
            else:
                nn.init.normal_(p, std=std, generator=generator)
