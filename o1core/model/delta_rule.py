"""The gated delta rule (arXiv 2412.06464), attention whose memory of the past has one size: a matrix a head.

A head's state S [K, V] maps keys to values. Each token lets it fade, corrects what it holds for the token's key, and reads it
with the token's query:

    S <- exp(g) S;   S <- S + beta k (v - k^T S)^T;   o = S^T q / sqrt(K)

with q and k scaled to length 1, beta in (0, 1) and g <= 0. Decoding runs that, a token at a time (kernels.delta_step).
`chunked` computes 64 tokens at a time with products of matrices, for training and prefill, with its exact gradient. Both
compute in float32 whatever the weights' dtype, and no state crosses from one sequence to the next.

Before it, q, k and v pass through a convolution over the last few tokens, each channel for itself; the last tokens' inputs
are its state, the `tail`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from ..kernels import delta_read, delta_solve, delta_walk
from ..kernels.torch_delta import split_heads
from .config import DeltaConfig, ModelConfig
from .elementwise import at_least_float32, silu
from .trees import Trees

CHUNK = 64


class DeltaState(NamedTuple):
    """What a layer knows of the tokens before: tail [B, C, kernel - 1], inputs of the convolution; memory float32
    [B, Hv, K, V]. B sequences."""

    tail: Tensor
    memory: Tensor


class DeltaInputs(NamedTuple):
    """One layer's tokens [..., T]: mixed [..., C], q, k and v before the convolution; decay g and beta, float32 [..., Hv]; the
    convolution's weight [C, 1, kernel]."""

    mixed: Tensor
    decay: Tensor
    beta: Tensor
    kernel: Tensor
    config: DeltaConfig


Recur = Callable[[int, DeltaInputs], Tensor]  # (layer, inputs) -> the rule's output, float32 [..., Hv, V]


class DeltaRule(nn.Module):
    """One layer's mixer. The inputs' product makes q, k, v, the output's gate z, beta's b and the decay's a, in this order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.delta is not None
        c = self.config = config.delta
        self.norm_eps = config.norm_eps
        self.sizes = (sum(c.widths), c.widths[2], c.value_heads, c.value_heads)
        self.inputs = nn.Linear(config.hidden_size, sum(self.sizes), bias=False)
        self.kernel = nn.Parameter(torch.empty(sum(c.widths), 1, c.kernel))
        self.log_rate = nn.Parameter(torch.empty(c.value_heads))  # A_log
        self.rate_bias = nn.Parameter(torch.empty(c.value_heads))  # dt_bias
        self.norm = nn.Parameter(torch.empty(c.value_dim))
        self.out = nn.Linear(c.widths[2], config.hidden_size, bias=False)

    def forward(self, x: Tensor, recur: Recur, layer: int) -> Tensor:
        """x [..., H] -> [..., H]."""
        mixed, z, b, a = self.inputs(x).split(self.sizes, dim=-1)
        rate = at_least_float32(self.log_rate).exp()
        decay = -rate * F.softplus(at_least_float32(a) + at_least_float32(self.rate_bias))
        beta = at_least_float32(b).sigmoid()
        found = recur(layer, DeltaInputs(mixed, decay, beta, self.kernel, self.config))
        normed = F.rms_norm(found, found.shape[-1:], None, self.norm_eps).to(z.dtype) * self.norm
        return self.out((normed.flatten(-2) * silu(at_least_float32(z))).to(z.dtype))


def causal_recurrence(layer: int, inputs: DeltaInputs) -> Tensor:
    """The rule over sequences side by side, mixed [B, T, C], each from an empty state."""
    return rerun(inputs, empty_state(inputs), None)[0]


def tree_recurrence(trees: Trees) -> Recur:
    """`recur` of Transformer.forward for packed rows, mixed [N, C]: each root from an empty state, each branch from the
    one that its root left, which is computed once. Sequences of about the same length run together."""

    def recur(layer: int, inputs: DeltaInputs) -> Tensor:
        forks = len(trees.branches)
        found, states = run_slices(inputs, trees.of_roots, None, forks)
        branches = [branch for of_root in trees.of_branches for branch in of_root]
        if branches:
            roots = [root for root, of_root in enumerate(trees.branches) for _ in of_root]
            found += run_slices(inputs, branches, [states[root] for root in roots], 0)[0]
        return torch.cat(found)

    return recur


def run_slices(
    inputs: DeltaInputs, rows: list[slice], states: list[DeltaState] | None, kept: int
) -> tuple[list[Tensor], list[DeltaState]]:
    """The sequences that are these rows of `inputs`, from states (of one sequence each; None: empty ones): the output of each,
    and the states after the first `kept`."""
    together: dict[int, list[int]] = {}
    for i, part in enumerate(rows):  # so that at most half of what is computed is padding
        together.setdefault((-(-(part.stop - part.start) // CHUNK) - 1).bit_length(), []).append(i)
    outputs, ends = [Tensor()] * len(rows), [DeltaState(Tensor(), Tensor())] * kept
    for members in together.values():
        lengths = [rows[i].stop - rows[i].start for i in members]
        mixed, decay, beta = (pad_sequence([of[rows[i]] for i in members], batch_first=True) for of in inputs[:3])
        batch = DeltaInputs(mixed, decay, beta, inputs.kernel, inputs.config)
        start = empty_state(batch)
        if states is not None:
            start = DeltaState(*(torch.cat(of) for of in zip(*(states[i] for i in members))))
        out, state = rerun(batch, start, lengths)
        for b, i in enumerate(members):
            outputs[i] = out[b, : lengths[b]]
            if i < kept:
                ends[i] = DeltaState(*(of[b : b + 1] for of in state))
    return outputs, ends


def empty_state(inputs: DeltaInputs) -> DeltaState:
    """The state before the first token of B sequences."""
    c, batch, dtype = inputs.config, len(inputs.mixed), inputs.decay.dtype
    tail = inputs.mixed.new_zeros(batch, inputs.mixed.shape[-1], c.kernel - 1)
    return DeltaState(tail, inputs.decay.new_zeros(batch, c.value_heads, c.key_dim, c.value_dim, dtype=dtype))


def run_sequence(inputs: DeltaInputs, state: DeltaState, lengths: list[int] | None = None) -> tuple[Tensor, DeltaState]:
    """B sequences of T tokens from a state: the output float32 [B, T, Hv, V], and the state after the last. lengths: of the
    sequences, where some are padded on the right with zeros."""
    c, tail = inputs.config, state.tail
    fed = torch.cat((tail, inputs.mixed.transpose(1, 2)), dim=2)  # [B, C, kernel - 1 + T]
    convolved = F.conv1d(at_least_float32(fed), at_least_float32(inputs.kernel), groups=fed.shape[1])
    q, k, v = split_heads(F.silu(convolved).transpose(1, 2), c.value_heads, c.key_dim, c.value_dim)
    # Padding has beta 0 and does not fade, so it leaves the memory as it was.
    out, memory = chunked(q, k, v, inputs.decay, inputs.beta, state.memory)
    ends = lengths or [inputs.mixed.shape[1]] * len(fed)
    tail = torch.stack([of_row[:, end : end + c.kernel - 1] for of_row, end in zip(fed, ends)])
    return out, DeltaState(tail, memory)


def rerun(inputs: DeltaInputs, state: DeltaState, lengths: list[int] | None) -> tuple[Tensor, DeltaState]:
    """run_sequence, whose steps a backward pass makes again: they take 20 times the inputs' memory, and a fifth of its time."""
    out, *after = Rerun.apply(*inputs[:4], *state, inputs.config, lengths)
    return out, DeltaState(*after)


class Rerun(torch.autograd.Function):
    """torch's checkpoint would hold on to its arguments, also inside the checkpoint of a whole block, which is to keep none of
    them; what a Function saves is let go there."""

    @staticmethod
    def forward(
        ctx: Any,
        mixed: Tensor,
        decay: Tensor,
        beta: Tensor,
        kernel: Tensor,
        tail: Tensor,
        memory: Tensor,
        config: DeltaConfig,
        lengths: list[int] | None,
    ) -> Any:
        ctx.save_for_backward(mixed, decay, beta, kernel, tail, memory)
        ctx.config, ctx.lengths = config, lengths
        ctx.set_materialize_grads(False)  # the states after sequences that nothing follows
        inputs = DeltaInputs(mixed, decay, beta, kernel, config)
        out, state = run_sequence(inputs, DeltaState(tail, memory), lengths)
        return out, *state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        needed = ctx.needs_input_grad[:6]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed)]
        with torch.enable_grad():
            mixed, decay, beta, kernel, tail, memory = leaves
            inputs = DeltaInputs(mixed, decay, beta, kernel, ctx.config)
            out, state = run_sequence(inputs, DeltaState(tail, memory), ctx.lengths)
        pairs = [(made, grad) for made, grad in zip((out, *state), gradients) if grad is not None]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        made, given = zip(*pairs)
        found = iter(torch.autograd.grad(made, wanted, given, allow_unused=True))
        return *(next(found) if need else None for need in needed), None, None


def chunked(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, memory: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The rule over q, k [B, T, Hv, K], v [B, T, Hv, V], decay and beta [B, T, Hv] from memory [B, Hv, K, V], `chunk` tokens at
    a time (kernels/delta.py): outputs [B, T, Hv, V] and the last memory."""
    length, padding = q.shape[1], -q.shape[1] % chunk
    # Tokens of padding have beta 0 and do not fade: they change neither the memory nor an output before them.
    q, k, v, decay, beta = (
        F.pad(part, (0, 0) * (part.ndim - 2) + (0, padding)).unflatten(1, (-1, chunk))
        for part in (q, k, v, decay, beta)
    )  # [B, chunks, chunk, Hv, ...]
    total, beta = decay.transpose(2, 3).cumsum(-1), beta.transpose(2, 3)
    values, keys, kept = delta_solve(k, v, total, beta)
    corrections, memories, end = delta_walk(values, keys, kept, total[..., -1].exp(), memory)
    return delta_read(q, k, total, corrections, memories).flatten(1, 2)[:, :length], end
