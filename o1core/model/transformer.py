"""The decoder of the Qwen2, Qwen3, Qwen3.5, Llama and SmolLM3 families in plain torch: token ids in, hidden states out.

A block mixes tokens by attention or by the gated delta rule (delta_rule.py), then computes each token by an MLP or by
experts (experts.py); the configuration says which. One forward for training, prefill and decode. It takes rows of any
leading shape and a function `attend` that turns (layer, q, k, v) into the attention's output; `recur` is the same for the
delta rule. An update runs on packed rows, whose sequences only these two know (trees.py); the rollout engine attends over a KV
cache; `hidden` takes a padded batch, for parity and tests. Left out on purpose: dropout and attention masks (a batch is
padded on the right, where a causal model does not look), and logits inside the forward (log-probs come from
o1core.kernels, which never holds them).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels import swiglu
from ..kernels.torch_elementwise import by_rows
from .config import ModelConfig
from .delta_rule import DeltaRule, Recur, causal_recurrence, tree_recurrence
from .elementwise import product_of, rms_norm
from .experts import Choose, Experts, keep_choice
from .rope import rotary, rotate
from .trees import Attend, Trees, causal_attention, tree_attention

Rotation = tuple[Tensor, Tensor]  # cos and sin [..., 1, D/2]


class Block(nn.Module):
    """One decoder layer: a mixer of tokens, then an MLP, each behind an RMSNorm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        c = self.config = config
        self.rotates = layer not in c.nope_layers
        self.attention_norm = nn.Parameter(torch.empty(c.hidden_size))
        self.delta = DeltaRule(c) if layer in c.delta_layers else None
        if self.delta is None:
            # In the hybrid families a query head has a gate beside it, of the same size.
            self.query_parts = 2 if c.family.hybrid else 1
            heads = self.query_parts * c.num_heads + 2 * c.num_kv_heads
            self.qkv = nn.Linear(c.hidden_size, heads * c.head_dim, bias=c.qkv_bias)
            if c.qk_norm:
                self.q_norm = nn.Parameter(torch.empty(c.head_dim))
                self.k_norm = nn.Parameter(torch.empty(c.head_dim))
            self.o = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=False)
        self.mlp_norm = nn.Parameter(torch.empty(c.hidden_size))
        self.experts = Experts(c) if layer in c.sparse_layers else None
        if self.experts is None:
            self.gate_up = nn.Linear(c.hidden_size, 2 * c.ffn_size, bias=False)
            self.down = nn.Linear(c.ffn_size, c.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        attend: Attend,
        recur: Recur,
        choose: Choose,
        layer: int,
        lean: bool = False,
    ) -> Tensor:
        """lean: what products multiply is made again in the backward pass (elementwise.product_of)."""
        if self.delta is not None:
            x = x + self.delta(self.normed(x, self.attention_norm), recur, layer)
        else:
            x = x + self.attention(x, rotation, attend, layer, lean)
        if self.experts is not None:
            return x + self.experts(self.normed(x, self.mlp_norm), choose, layer)
        gate_up = product_of(self.gate_up, self.normed, x, self.mlp_norm, lean=lean)
        return x + product_of(self.down, swiglu, gate_up, lean=lean)

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self.config)

    def attention(self, x: Tensor, rotation: Rotation | None, attend: Attend, layer: int, lean: bool) -> Tensor:
        c = self.config
        # q, k and v come from one product: a decoded row reads its weights once, and three small launches become one.
        heads = product_of(self.qkv, self.normed, x, self.attention_norm, lean=lean)
        heads = heads.unflatten(-1, (-1, c.head_dim))  # [..., Hq + 2 Hkv, D], with gates [..., 2 Hq + 2 Hkv, D]
        gate = None
        if self.query_parts == 2:
            q, kv = heads.split([2 * c.num_heads, 2 * c.num_kv_heads], dim=-2)
            q, gate = q.unflatten(-2, (-1, 2)).unbind(-2)
            heads = torch.cat((q, kv), dim=-2)
        qk, v = heads.split([c.num_heads + c.num_kv_heads, c.num_kv_heads], dim=-2)
        if c.qk_norm:
            q, k = qk.split([c.num_heads, c.num_kv_heads], dim=-2)
            qk = torch.cat((rms_norm(q, self.q_norm, c), rms_norm(k, self.k_norm, c)), dim=-2)
        if self.rotates and rotation is not None:  # q and k lie side by side, so one call turns both
            qk = rotate(qk, *rotation)
        q, k = qk.split([c.num_heads, c.num_kv_heads], dim=-2)
        mixed = attend(layer, q, k, v).flatten(-2)
        return self.o(mixed if gate is None else mixed * by_rows(torch.sigmoid, gate.flatten(-2)))


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

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None,
        attend: Attend,
        recompute: bool = False,
        recur: Recur = causal_recurrence,
        choose: Choose = keep_choice,
    ) -> Tensor:
        """Hidden states after the last norm.

        ids: int64, any shape [...]; positions: int64, broadcastable to it (None: `attend` rotates q and k itself); attend:
        see the module's docstring, q [..., Hq, D], k and v [..., Hkv, D] -> [..., Hq, D]. recompute: gradient
        checkpointing, a block at a time. recur: of the delta rule's layers (DeltaInputs); choose: sees and may change which
        experts compute a token.
        Returns [..., H] in the weights' dtype.
        """
        # The embedding is a plain parameter and no nn.Embedding: where it is tied, it is the head too.
        x = F.embedding(ids, self.embed)
        rotation = None if positions is None else self.rotation(positions, x.dtype)
        for layer, block in enumerate(self.blocks):
            if recompute:  # keep a block's input alone, and run the block again when its gradient is due
                x = checkpoint(block, x, rotation, attend, recur, choose, layer, use_reentrant=False)
            else:
                x = block(x, rotation, attend, recur, choose, layer, lean=True)
        return rms_norm(x, self.norm, self.config)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """cos and sin [..., 1, R/2] of the rotary embedding at positions [...], R the numbers of a head that it turns."""
        c = self.config
        cos, sin = rotary(positions, c.rotary_dim, c.rope_theta, c.scaling)
        return cos.to(dtype), sin.to(dtype)

    def packed(self, ids: Tensor, trees: Trees, recompute: bool = False, choose: Choose = keep_choice) -> Tensor:
        """Hidden states [N, H] of packed rows ids [N]."""
        attend, recur = tree_attention(trees, ids.device), tree_recurrence(trees)
        return self(ids, trees.positions(ids.device), attend, recompute, recur, choose)

    def hidden(self, ids: Tensor, recompute: bool = False) -> Tensor:
        """Hidden states [B, T, H] of a batch ids [B, T], causal, padded on the right with any id."""
        return self(ids, torch.arange(ids.shape[1], device=ids.device), causal_attention, recompute)

    def logits(self, ids: Tensor) -> Tensor:
        """float32 logits [B, T, V] of ids [B, T]. For parity and small models: training never holds them."""
        return F.linear(self.hidden(ids), self.lm_head).float()


def initialise(model: Transformer, seed: int, std: float = 0.02) -> None:
    """Fill a new model for training from scratch: norms so that they scale by one, biases with zero, the delta rule's rates
    with 1, the rest from a normal of `std`."""
    generator = torch.Generator().manual_seed(seed)
    zeros = ("bias", "log_rate", *(("_norm",) if model.config.family.hybrid else ()))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                zero = name.endswith(zeros) or (name == "norm" and model.config.family.hybrid)
                nn.init.constant_(p, 0.0 if zero else 1.0)
            else:
                nn.init.normal_(p, std=std, generator=generator)
