"""The gated delta rule (arXiv 2412.06464): a step of decoding, and chunks of tokens in training and prefill.

A head's memory M [K, V] maps keys to values. A token lets it fade, corrects what it holds for the token's key, and reads it:

    M <- exp(g) M;   M <- M + beta k (v - k^T M)^T;   o = M^T q / sqrt(K)

Decoding reads and writes every row's memory once a step and does little else with it, so that all else is in one kernel with
it. Training and prefill take 64 tokens at a time (arXiv 2406.06484, section 3, with the decays of 2412.06464), in three
kernels. Token i's correction u_i = beta_i (v_i - k_i^T M_i) depends on those before it: M_i is the memory M at the chunk's
start, faded, and what tokens j < i have added. That is a triangular system,

    (1 + L) D = beta (V - exp(G) K M),     L_ij = beta_i exp(G_i - G_j) k_i k_j for j < i,

G the sum of decays since the start. It is solved for every chunk at once (delta_solve), which leaves a walk from chunk to
chunk (delta_walk),

    D_n = U_n - W_n M_n,     M_{n+1} = f_n M_n + Y_n^T D_n

of which a program does one head and a few columns of V: they do not need each other. Its gradient is the same walk backwards,
with W and Y changing places, and products of what both have left. Then the outputs of all chunks at once (delta_read).
Everything is float32 (float64 where the memory is).

Left out on purpose: all three in one kernel, which would do a head's chunks one after the other; and sequences behind each
other, with their borders: those of about a length stand side by side, and padding has beta 0. No GPU has run these kernels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import require, same_device
from .dispatch import Primitives, primitives

WIDE = (torch.float32, torch.float64)


def delta_step(
    mixed: Tensor, decay: Tensor, beta: Tensor, kernel: Tensor, tails: Tensor, memories: Tensor, places: Tensor
) -> Tensor:
    """A token of each of R rows, whose states lie at `places` of tails and memories and are moved on in place. Returns the
    output [R, Hv, V] in the memories' dtype.

    mixed [R, C], q, k and v of Hk, Hk and Hv heads before the convolution, C = 2 Hk K + Hv V; decay (at most 0) and beta
    [R, Hv]; kernel [C, taps] of the convolution; tails [S, C, taps - 1], the inputs before, of mixed's dtype; memories
    [S, Hv, K, V] float32 or float64, contiguous like tails; places int64 [R], of which rows that do not count may name the
    same. q and k are scaled to length 1. A row's bits depend on itself alone. Raises ValueError naming the wrong argument.
    """
    rows, channels = mixed.shape
    taps = kernel.shape[-1]
    require(
        memories.dim() == 4 and memories.dtype in WIDE, f"memories: {memories.dtype} of {memories.dim()} dimensions"
    )
    slots, heads, size, width = memories.shape
    keys = channels - heads * width
    require(keys > 0 and keys % (2 * size) == 0, f"mixed: {channels} channels, expected 2 Hk {size} + {heads * width}")
    require(heads % (keys // (2 * size)) == 0, f"memories: {heads} heads for {keys // (2 * size)} key heads")
    for name, tensor, expected in (
        ("decay", decay, (rows, heads)),
        ("beta", beta, (rows, heads)),
        ("kernel", kernel, (channels, taps)),
        ("tails", tails, (slots, channels, taps - 1)),
        ("places", places, (rows,)),
    ):
        require(tensor.shape == expected, f"{name}: shape {tuple(tensor.shape)}, expected {expected}")
        same_device(name, tensor, mixed.device)
    require(places.dtype == torch.int64, f"places: dtype {places.dtype}, expected int64")
    require(tails.dtype == mixed.dtype, f"tails: dtype {tails.dtype}, expected {mixed.dtype} like mixed")
    require(tails.is_contiguous() and memories.is_contiguous(), "tails, memories: not contiguous")
    require(mixed.stride(1) == 1, f"mixed: strides {mixed.stride()}, expected (any, 1)")
    step: Tensor = primitives(mixed.device).delta_step(mixed, decay, beta, kernel, tails, memories, places)
    return step


def delta_walk(
    values: Tensor, keys: Tensor, kept: Tensor, fade: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """D [B, N, H, C, V], M_0 to M_{N-1} [B, N, H, K, V] and M_N [B, H, K, V] of N chunks of C tokens, B sequences side by side.

    values U [B, N, H, C, V]; keys W and kept Y [B, N, H, C, K]; fade f [B, N, H]; memory M_0 [B, H, K, V]; all float32 or all
    float64. Differentiable in all. Raises ValueError naming the wrong argument.
    """
    batch, chunks, heads, tokens, width = values.shape
    size = memory.shape[-2]
    for name, tensor, expected in (
        ("keys", keys, (batch, chunks, heads, tokens, size)),
        ("kept", kept, (batch, chunks, heads, tokens, size)),
        ("fade", fade, (batch, chunks, heads)),
        ("memory", memory, (batch, heads, size, width)),
    ):
        require(tensor.shape == expected, f"{name}: shape {tuple(tensor.shape)}, expected {expected}")
    for name, tensor in (("values", values), ("keys", keys), ("kept", kept), ("fade", fade), ("memory", memory)):
        fits = tensor.dtype == values.dtype and tensor.dtype in WIDE
        require(fits, f"{name}: dtype {tensor.dtype}, expected float32 or float64 like the others")
        same_device(name, tensor, values.device)
    found: tuple[Tensor, Tensor, Tensor] = DeltaWalk.apply(values, keys, kept, fade, memory, primitives(values.device))
    return found


def delta_solve(k: Tensor, v: Tensor, total: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [B, N, H, C, V], W and Y [B, N, H, C, K] of N chunks of C tokens: what delta_walk takes.

    k [B, N, C, H, K]; v [B, N, C, H, V]; total, the sum of a chunk's decays up to each token and with its own, and beta
    [B, N, H, C]; all float32 or all float64. Differentiable in all. Raises ValueError naming the wrong argument.
    """
    batch, chunks, tokens, heads, _ = k.shape
    by_head = (batch, chunks, heads, tokens)
    shapes = ((batch, chunks, tokens, heads, v.shape[-1]), by_head, by_head)
    alike("k", k, v=(v, shapes[0]), total=(total, shapes[1]), beta=(beta, shapes[2]))
    found: tuple[Tensor, Tensor, Tensor] = DeltaSolve.apply(k, v, total, beta, primitives(k.device))
    return found


def delta_read(q: Tensor, k: Tensor, total: Tensor, corrections: Tensor, memories: Tensor) -> Tensor:
    """The outputs [B, N, C, H, V] of N chunks of C tokens: what each finds in the memory of its chunk's start, and in what the
    tokens up to it have written.

    q, k [B, N, C, H, K]; total as of delta_solve; corrections D [B, N, H, C, V] and memories M [B, N, H, K, V] of delta_walk;
    all float32 or all float64. Differentiable in all. Raises ValueError naming the wrong argument.
    """
    batch, chunks, tokens, heads, size = q.shape
    by_head, width = (batch, chunks, heads, tokens), corrections.shape[-1]
    of_memories = (batch, chunks, heads, size, width)
    rest = {"corrections": (corrections, (*by_head, width)), "memories": (memories, of_memories)}
    alike("q", q, k=(k, q.shape), total=(total, by_head), **rest)
    found: Tensor = DeltaRead.apply(q, k, total, corrections, memories, primitives(q.device))
    return found


def alike(first: str, of: Tensor, **others: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raises ValueError where a tensor has not its shape, or not the first one's dtype and device."""
    require(of.dtype in WIDE, f"{first}: dtype {of.dtype}, expected float32 or float64")
    for name, (tensor, expected) in others.items():
        require(tensor.shape == expected, f"{name}: shape {tuple(tensor.shape)}, expected {tuple(expected)}")
        require(tensor.dtype == of.dtype, f"{name}: dtype {tensor.dtype}, expected {of.dtype} like {first}")
        same_device(name, tensor, of.device)


class DeltaSolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, total: Tensor, beta: Tensor, run: Primitives) -> Any:
        values, keys, kept, inverse = run.delta_solve(k, v, total, beta)
        ctx.save_for_backward(k, v, total, beta, values, keys, inverse)
        ctx.run = run
        return values, keys, kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_values: Tensor, d_keys: Tensor, d_kept: Tensor) -> Any:
        return *ctx.run.delta_solve_backward(*ctx.saved_tensors, d_values, d_keys, d_kept), None


class DeltaRead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, total: Tensor, corrections: Tensor, memories: Tensor, run: Primitives
    ) -> Any:
        out, scores = run.delta_read(q, k, total, corrections, memories)
        ctx.save_for_backward(q, k, total, corrections, memories, scores)
        ctx.run = run
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:
        return *ctx.run.delta_read_backward(*ctx.saved_tensors, d_out), None


class DeltaWalk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, keys: Tensor, kept: Tensor, fade: Tensor, memory: Tensor, run: Primitives
    ) -> Any:
        corrections, memories, end = run.delta_walk(values, keys, kept, fade, memory, None)
        ctx.save_for_backward(keys, kept, fade, corrections, memories)
        ctx.run = run
        return corrections, memories, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_corrections: Tensor, d_memories: Tensor, d_end: Tensor) -> Any:
        keys, kept, fade, corrections, memories = ctx.saved_tensors
        # d_after: the gradient of the memory after each chunk.
        d_values, d_after, d_memory = ctx.run.delta_walk(d_corrections, kept, keys, fade, d_end, d_memories)
        d_keys = -(d_values @ memories.mT)
        d_kept = corrections @ d_after.mT
        d_fade = (memories * d_after).sum((-2, -1))
        return d_values, d_keys, d_kept, d_fade, d_memory, None
