"""The gated delta rule in Triton: a decode step that moves its states on in place, and the walk over chunks.

A step is one program a row and key head. It does the convolution of its channels, scales q and k to length 1, and takes the
memory of each of its value heads through registers, a few columns at a time: read once, written once. No program touches what
another one reads, so nothing is atomic and a row's bits depend on itself alone.

A walk is one program a head of a sequence and a few columns of V, which hold the memory from the first chunk to the last.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .checks import require
from .torch_delta import LENGTH_EPS

EPS: tl.constexpr = tl.constexpr(LENGTH_EPS)


@triton.jit
def _convolved(
    new: tl.tensor,
    tail: tl.tensor,
    weight: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    TAPS: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tensor:
    """SiLU of the convolution of a row's channels with what came before, which moves up by one place.

    Where there are fewer channels than threads, several warps hold the same ones: each loads, one stores. So all have read
    before anything moves.
    """
    total = tl.zeros(channel.shape, ACC)
    fed = tl.tuple(())
    for tap in tl.static_range(TAPS):
        at = new + channel if tap == TAPS - 1 else tail + channel * (TAPS - 1) + tap
        x = tl.load(at, mask=inside, other=0.0)
        total += x.to(ACC) * tl.load(weight + channel * TAPS + tap, mask=inside, other=0.0).to(ACC)
        fed += (x,)
    tl.debug_barrier()
    for tap in tl.static_range(TAPS - 1):
        tl.store(tail + channel * (TAPS - 1) + tap, fed[tap + 1], mask=inside)
    return total * tl.sigmoid(total)


@triton.jit(do_not_specialize=["key_heads"])
def delta_step_kernel(
    inputs: tl.tuple,
    row_stride: tl.tensor,
    states: tl.tuple,
    out: tl.tensor,
    key_heads: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    REPEATS: tl.constexpr,
    TAPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """One row's key head, of which there are key_heads, and its REPEATS value heads."""
    mixed, decay, beta, weight = inputs
    tails, memories, places = states
    row = tl.program_id(0).to(tl.int64)
    key_head = tl.program_id(1)
    heads = key_heads * REPEATS
    channels = 2 * key_heads * size + heads * width
    place = tl.load(places + row)
    tail = tails + place * channels * (TAPS - 1)
    new = mixed + row * row_stride
    k_lane = tl.arange(0, BLOCK_K)
    in_k = k_lane < size
    q = _convolved(new, tail, weight, key_head * size + k_lane, in_k, TAPS, ACC)
    k = _convolved(new, tail, weight, (key_heads + key_head) * size + k_lane, in_k, TAPS, ACC)
    q *= tl.rsqrt(tl.sum(q * q, 0) + EPS) * tl.rsqrt(tl.full((), size, ACC))
    k *= tl.rsqrt(tl.sum(k * k, 0) + EPS)
    for repeat in tl.static_range(REPEATS):
        head = key_head * REPEATS + repeat
        fade = tl.exp(tl.load(decay + row * heads + head).to(ACC))
        strength = tl.load(beta + row * heads + head).to(ACC)
        memory = memories + (place * heads + head) * size * width
        for first in range(0, width, BLOCK_V):
            v_lane = first + tl.arange(0, BLOCK_V)
            in_v = v_lane < width
            v = _convolved(new, tail, weight, 2 * key_heads * size + head * width + v_lane, in_v, TAPS, ACC)
            at = memory + k_lane[:, None] * width + v_lane[None, :]
            inside = in_k[:, None] & in_v[None, :]
            m = tl.load(at, mask=inside, other=0.0) * fade
            correction = (v - tl.sum(m * k[:, None], 0)) * strength
            m += k[:, None] * correction[None, :]
            tl.store(at, m, mask=inside)
            tl.store(out + (row * heads + head) * width + v_lane, tl.sum(m * q[:, None], 0), mask=in_v)


def step(
    mixed: Tensor, decay: Tensor, beta: Tensor, kernel: Tensor, tails: Tensor, memories: Tensor, places: Tensor
) -> Tensor:
    (rows, channels), (_, heads, size, width) = mixed.shape, memories.shape
    key_heads = (channels - heads * width) // (2 * size)
    out = memories.new_empty(rows, heads, width)
    if rows:
        launch = configs.delta_step(memories.device, size)
        delta_step_kernel[(rows, key_heads)](
            (mixed, decay.contiguous(), beta.contiguous(), kernel.contiguous()),
            mixed.stride(0),
            (tails, memories, places),
            out,
            key_heads,
            size,
            width,
            REPEATS=heads // key_heads,
            TAPS=kernel.shape[1],
            ACC=configs.accumulator(memories.dtype),
            **launch.options(),
        )
    return out


@triton.jit(do_not_specialize=["chunks", "heads"])
def delta_walk_kernel(
    inputs: tl.tuple,
    outputs: tl.tuple,
    chunks: tl.tensor,
    heads: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """torch_delta.walk of one head of a sequence, BLOCK_V columns of V. A chunk's TOKENS are taken BLOCK_T at a time: their
    keys would not fit into the registers beside the memory."""
    added, read, written, fade, start, more = inputs
    corrections, memories, end = outputs
    head = tl.program_id(0)
    k_lane = tl.arange(0, BLOCK_K)
    v_lane = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_k = k_lane < size
    in_v = v_lane < width
    in_memory = in_k[:, None] & in_v[None, :]
    of_memory = k_lane[:, None] * width + v_lane[None, :]
    m = tl.load(start + head.to(tl.int64) * size * width + of_memory, mask=in_memory, other=0.0)
    for turn in range(chunks):
        n = turn
        if BACKWARD:
            n = chunks - 1 - turn
        at = (head // heads * chunks + n).to(tl.int64) * heads + head % heads
        tl.store(memories + at * size * width + of_memory, m, mask=in_memory)
        moved = m * tl.load(fade + at)
        if BACKWARD:
            moved += tl.load(more + at * size * width + of_memory, mask=in_memory, other=0.0)
        for first in range(0, TOKENS, BLOCK_T):
            token = at * TOKENS + first + tl.arange(0, BLOCK_T)
            of_keys = token[:, None] * size + k_lane[None, :]
            of_values = token[:, None] * width + v_lane[None, :]
            r = tl.load(read + of_keys, mask=in_k[None, :], other=0.0)
            d = tl.load(added + of_values, mask=in_v[None, :], other=0.0)
            found = tl.dot(r, m, input_precision=PRECISION, out_dtype=ACC)
            d = d + found if BACKWARD else d - found
            tl.store(corrections + of_values, d, mask=in_v[None, :])
            w = tl.trans(tl.load(written + of_keys, mask=in_k[None, :], other=0.0))
            moved = tl.dot(w, -d if BACKWARD else d, moved, input_precision=PRECISION, out_dtype=ACC)
        m = moved
    tl.store(end + head.to(tl.int64) * size * width + of_memory, m, mask=in_memory)


def walk(
    added: Tensor, read: Tensor, written: Tensor, fade: Tensor, memory: Tensor, more: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, chunks, heads, tokens, width = added.shape
    size = memory.shape[-2]
    require(tokens % 16 == 0, f"values: chunks of {tokens} tokens, expected a multiple of 16")
    corrections = torch.empty_like(added, memory_format=torch.contiguous_format)
    memories = memory.new_empty(batch, chunks, heads, size, width)
    end = memory.new_empty(memory.shape)
    if batch * heads:
        launch = configs.delta_walk(memory.device, memory.dtype, size, tokens)
        inputs = (added, read, written, fade, memory, memory if more is None else more)
        delta_walk_kernel[(batch * heads, triton.cdiv(width, launch.constants["BLOCK_V"]))](
            tuple(t.contiguous() for t in inputs),
            (corrections, memories, end),
            chunks,
            heads,
            size,
            width,
            BACKWARD=more is not None,
            ACC=configs.accumulator(memory.dtype),
            TOKENS=tokens,
            **launch.options(),
        )
    return corrections, memories, end
