"""The gated delta rule within a chunk, in Triton: one program a chunk of a head, which takes K and V a few columns at a time.

solve makes of a chunk's keys and values what the walk from chunk to chunk needs, read the outputs of what the walk has left;
both as torch_delta has them, with their gradients. The chunk's [C, C] matrices lie in memory, or registers would spill; what
one thread has stored others read behind a barrier.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .checks import require


@triton.jit
def _tile(of: tl.tensor, row: tl.tensor, lane: tl.tensor, width: tl.tensor) -> tl.tensor:
    """Columns `lane` of these rows of a matrix of `width` columns."""
    return tl.load(of + row[:, None] * width + lane[None, :], mask=(lane < width)[None, :], other=0.0)


@triton.jit
def _put(of: tl.tensor, row: tl.tensor, lane: tl.tensor, width: tl.tensor, tile: tl.tensor) -> None:
    tl.store(of + row[:, None] * width + lane[None, :], tile, mask=(lane < width)[None, :])


@triton.jit
def _fading(total: tl.tensor, here: tl.tensor) -> tl.tensor:
    """exp(G_i - G_j) where `here`, 0 elsewhere, where it could overflow."""
    return tl.exp(tl.where(here, total[:, None] - total[None, :], float("-inf")))


@triton.jit
def _apply(
    square: tl.tensor,
    of: tl.tensor,
    rows: tl.tensor,
    step: tl.tensor,
    lane: tl.tensor,
    width: tl.tensor,
    weight: tl.tensor | None,
    found: tl.tensor,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TRANSPOSED: tl.constexpr,
) -> tl.tensor:
    """found + X Y (X^T Y): X [C, C] is `square`, Y columns of the rows rows, rows + step, ... of a matrix, each times its
    weight. A few tokens at a time, or their numbers would not fit into the registers."""
    t = tl.arange(0, TOKENS)
    for first in range(0, TOKENS, BLOCK_T):
        u = first + tl.arange(0, BLOCK_T)
        y = _tile(of, rows + u * step, lane, width)
        if weight is not None:
            y *= tl.load(weight + u)[:, None]
        if TRANSPOSED:
            x = tl.trans(tl.load(square + u[:, None] * TOKENS + t[None, :]))
        else:
            x = tl.load(square + t[:, None] * TOKENS + u[None, :])
        found = tl.dot(x, y, found, input_precision=PRECISION, out_dtype=found.dtype)
    return found


@triton.jit
def _products(
    a: tl.tensor,
    a_row: tl.tensor,
    b: tl.tensor,
    b_row: tl.tensor,
    width: tl.tensor,
    found: tl.tensor,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """found + A B^T, of these rows of two matrices of `width` columns."""
    for first in range(0, width, BLOCK):
        lane = first + tl.arange(0, BLOCK)
        x, y = _tile(a, a_row, lane, width), tl.trans(_tile(b, b_row, lane, width))
        found = tl.dot(x, y, found, input_precision=PRECISION, out_dtype=found.dtype)
    return found


@triton.jit
def _invert(square: tl.tensor, TOKENS: tl.constexpr) -> None:
    """(1 + A)^-1 in the place of A [C, C], which is strictly lower triangular and was just stored. The blocks of 16 on the
    diagonal by substitution, all at a time; then blocks twice as large of two each, and so on."""
    block = tl.arange(0, TOKENS // 16)[:, None, None] * (16 * TOKENS + 16)
    i = tl.arange(0, 16)[None, :, None]
    j = tl.arange(0, 16)[None, None, :]
    at = square + block + i * TOKENS + j
    tl.debug_barrier()
    x = -tl.load(at)
    for r in range(1, 16):
        row = tl.sum(tl.where(i == r, x, 0.0), 1)
        row += tl.sum(row[:, :, None] * x, 1)
        x = tl.where(i == r, row[:, None, :], x)
    tl.store(at, tl.where(i == j, 1.0, x))
    if TOKENS > 16:
        _join(square, TOKENS, 16)
    if TOKENS > 32:
        _join(square, TOKENS, 32)
    tl.debug_barrier()


@triton.jit
def _join(square: tl.tensor, TOKENS: tl.constexpr, HALF: tl.constexpr) -> None:
    """Of [[X, 0], [A, Y]] with X and Y inverted: A becomes -Y A X."""
    i = tl.arange(0, HALF)[:, None]
    j = tl.arange(0, HALF)[None, :]
    kind: tl.constexpr = square.dtype.element_ty
    for first in range(0, TOKENS, 2 * HALF):
        x = square + first * (TOKENS + 1) + i * TOKENS + j
        a = x + HALF * TOKENS
        tl.debug_barrier()
        found = tl.dot(tl.load(a), tl.load(x), input_precision="ieee", out_dtype=kind)
        found = tl.dot(tl.load(a + HALF), found, input_precision="ieee", out_dtype=kind)
        tl.debug_barrier()
        tl.store(a, -found)


@triton.jit(do_not_specialize=["heads"])
def delta_solve_kernel(
    inputs: tl.tuple,
    outputs: tl.tuple,
    heads: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    k, v, total, beta, weight = inputs
    values, keys, kept, inverse = outputs
    chunk = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, TOKENS)
    row = chunk * TOKENS + t
    first_token = chunk // heads * TOKENS * heads + chunk % heads
    token = first_token + t * heads
    square = inverse + chunk * TOKENS * TOKENS
    g = tl.load(total + row)
    system = _products(k, token, k, token, size, tl.zeros((TOKENS, TOKENS), ACC), PRECISION, BLOCK)
    system *= tl.load(beta + row)[:, None] * _fading(g, t[:, None] > t[None, :])
    tl.store(square + t[:, None] * TOKENS + t[None, :], system)
    _invert(square, TOKENS)
    for first in range(0, width, BLOCK):
        lane = first + tl.arange(0, BLOCK)
        found = tl.zeros((TOKENS, BLOCK), ACC)
        by = beta + chunk * TOKENS
        found = _apply(square, v, first_token, heads, lane, width, by, found, PRECISION, TOKENS, BLOCK_T, False)
        _put(values, row, lane, width, found)
    rest = tl.exp(tl.load(total + chunk * TOKENS + TOKENS - 1) - g)[:, None]
    for first in range(0, size, BLOCK):
        lane = first + tl.arange(0, BLOCK)
        found = tl.zeros((TOKENS, BLOCK), ACC)
        by = weight + chunk * TOKENS
        found = _apply(square, k, first_token, heads, lane, size, by, found, PRECISION, TOKENS, BLOCK_T, False)
        _put(keys, row, lane, size, found)
        _put(kept, row, lane, size, _tile(k, token, lane, size) * rest)


@triton.jit(do_not_specialize=["heads"])
def delta_solve_backward_kernel(
    inputs: tl.tuple,
    outputs: tl.tuple,
    heads: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    k, v, total, beta, weight, values, keys, inverse, d_values, d_keys, d_kept = inputs
    d_k, d_v, d_total, d_beta, scratch = outputs
    chunk = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, TOKENS)
    row = chunk * TOKENS + t
    token = (chunk // heads * TOKENS + t) * heads + chunk % heads
    first_row = chunk * TOKENS
    inverse += first_row * TOKENS
    square = scratch + first_row * TOKENS
    of_square = t[:, None] * TOKENS + t[None, :]
    g = tl.load(total + row)
    b = tl.load(beta + row)
    db = tl.zeros((TOKENS,), ACC)
    ds = tl.zeros((TOKENS, TOKENS), ACC)  # of the system, with the other sign
    for first in range(0, width, BLOCK):
        lane = first + tl.arange(0, BLOCK)
        d = tl.zeros((TOKENS, BLOCK), ACC)
        d = _apply(inverse, d_values, first_row, 1, lane, width, None, d, PRECISION, TOKENS, BLOCK_T, True)
        u = tl.trans(_tile(values, row, lane, width))
        ds = tl.dot(d, u, ds, input_precision=PRECISION, out_dtype=ACC)
        db += tl.sum(d * _tile(v, token, lane, width), 1)
        _put(d_v, token, lane, width, d * b[:, None])
    w = tl.load(weight + row)
    rest = tl.exp(tl.load(total + first_row + TOKENS - 1) - g)[:, None]
    of_w = tl.zeros((TOKENS,), ACC)
    of_kept = tl.zeros((TOKENS,), ACC)
    for first in range(0, size, BLOCK):
        lane = first + tl.arange(0, BLOCK)
        d = tl.zeros((TOKENS, BLOCK), ACC)
        d = _apply(inverse, d_keys, first_row, 1, lane, size, None, d, PRECISION, TOKENS, BLOCK_T, True)
        u = tl.trans(_tile(keys, row, lane, size))
        ds = tl.dot(d, u, ds, input_precision=PRECISION, out_dtype=ACC)
        x = _tile(k, token, lane, size)
        y = _tile(d_kept, row, lane, size) * rest
        of_w += tl.sum(d * x, 1)
        of_kept += tl.sum(y * x, 1)
        _put(d_k, token, lane, size, d * w[:, None] + y)
    ds = -ds * _fading(g, t[:, None] > t[None, :])
    of_beta = ds * _products(k, token, k, token, size, tl.zeros((TOKENS, TOKENS), ACC), PRECISION, BLOCK)
    of_total = of_beta * b[:, None]
    dg = tl.sum(of_total, 1) - tl.sum(of_total, 0) + w * of_w - of_kept
    tl.store(d_total + row, dg + tl.where(t == TOKENS - 1, tl.sum(of_kept, 0), 0.0))
    tl.store(d_beta + row, db + tl.sum(of_beta, 1) + tl.exp(g) * of_w)
    ds *= b[:, None]
    tl.store(square + of_square, ds + tl.trans(ds))
    tl.debug_barrier()  # what other threads have stored is read next
    first_token = chunk // heads * TOKENS * heads + chunk % heads
    for first in range(0, size, BLOCK):
        lane = first + tl.arange(0, BLOCK)
        d = _tile(d_k, token, lane, size)
        d = _apply(square, k, first_token, heads, lane, size, None, d, PRECISION, TOKENS, BLOCK_T, False)
        _put(d_k, token, lane, size, d)


@triton.jit(do_not_specialize=["heads"])
def delta_read_kernel(
    inputs: tl.tuple,
    outputs: tl.tuple,
    heads: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    q, k, total, corrections, memories = inputs
    out, scores = outputs
    chunk = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, TOKENS)
    row = chunk * TOKENS + t
    token = (chunk // heads * TOKENS + t) * heads + chunk % heads
    square = scores + chunk * TOKENS * TOKENS
    g = tl.load(total + row)
    product = _products(q, token, k, token, size, tl.zeros((TOKENS, TOKENS), ACC), PRECISION, BLOCK)
    product *= _fading(g, t[:, None] >= t[None, :])
    tl.store(square + t[:, None] * TOKENS + t[None, :], product)
    tl.debug_barrier()
    memory = chunk * size
    for first in range(0, width, BLOCK):
        lane = first + tl.arange(0, BLOCK)
        found = tl.zeros((TOKENS, BLOCK), ACC)
        for key in range(0, size, BLOCK):
            of_keys = key + tl.arange(0, BLOCK)
            inside = (of_keys < size)[:, None] & (lane < width)[None, :]
            m = tl.load(memories + (memory + of_keys[:, None]) * width + lane[None, :], mask=inside, other=0.0)
            found = tl.dot(_tile(q, token, of_keys, size), m, found, input_precision=PRECISION, out_dtype=ACC)
        found *= tl.exp(g)[:, None]
        of = corrections
        found = _apply(square, of, chunk * TOKENS, 1, lane, width, None, found, PRECISION, TOKENS, BLOCK_T, False)
        _put(out, token, lane, width, found)


@triton.jit(do_not_specialize=["heads"])
def delta_read_backward_kernel(
    inputs: tl.tuple,
    outputs: tl.tuple,
    heads: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    q, k, total, corrections, memories, scores, above = inputs
    d_q, d_k, d_total, d_corrections, d_memories, scratch = outputs
    chunk = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, TOKENS)
    row = chunk * TOKENS + t
    first_token = chunk // heads * TOKENS * heads + chunk % heads
    token = first_token + t * heads
    scores += chunk * TOKENS * TOKENS
    square = scratch + chunk * TOKENS * TOKENS
    of_square = t[:, None] * TOKENS + t[None, :]
    g = tl.load(total + row)
    ds = _products(above, token, corrections, row, width, tl.zeros((TOKENS, TOKENS), ACC), PRECISION, BLOCK)
    of_total = ds * tl.load(scores + of_square)
    dg = tl.sum(of_total, 1) - tl.sum(of_total, 0)
    tl.store(square + of_square, ds * _fading(g, t[:, None] >= t[None, :]))
    tl.debug_barrier()
    for first in range(0, width, BLOCK):
        lane = first + tl.arange(0, BLOCK)
        d = tl.zeros((TOKENS, BLOCK), ACC)
        d = _apply(scores, above, first_token, heads, lane, width, None, d, PRECISION, TOKENS, BLOCK_T, True)
        _put(d_corrections, row, lane, width, d)
    memory = chunk * size
    for key in range(0, size, BLOCK):
        of_keys = key + tl.arange(0, BLOCK)
        d = tl.zeros((TOKENS, BLOCK), ACC)
        d = _apply(square, q, first_token, heads, of_keys, size, None, d, PRECISION, TOKENS, BLOCK_T, True)
        _put(d_k, token, of_keys, size, d)
        d = tl.zeros((TOKENS, BLOCK), ACC)
        for first in range(0, width, BLOCK):
            lane = first + tl.arange(0, BLOCK)
            inside = (of_keys < size)[:, None] & (lane < width)[None, :]
            at = (memory + of_keys[:, None]) * width + lane[None, :]
            m = tl.trans(tl.load(memories + at, mask=inside, other=0.0))
            d = tl.dot(_tile(above, token, lane, width), m, d, input_precision=PRECISION, out_dtype=ACC)
            dm = tl.zeros((BLOCK, BLOCK), ACC)
            for part in range(0, TOKENS, BLOCK_T):
                u = part + tl.arange(0, BLOCK_T)
                x = _tile(q, first_token + u * heads, of_keys, size)
                x *= tl.exp(tl.load(total + chunk * TOKENS + u))[:, None]
                y = _tile(above, first_token + u * heads, lane, width)
                dm = tl.dot(tl.trans(x), y, dm, input_precision=PRECISION, out_dtype=ACC)
            tl.store(d_memories + at, dm, mask=inside)
        d *= tl.exp(g)[:, None]
        dg += tl.sum(d * _tile(q, token, of_keys, size), 1)
        d = _apply(square, k, first_token, heads, of_keys, size, None, d, PRECISION, TOKENS, BLOCK_T, False)
        _put(d_q, token, of_keys, size, d)
    tl.store(d_total + row, dg)


def solve(k: Tensor, v: Tensor, total: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, chunks, tokens, heads, size), width = k.shape, v.shape[-1]
    values, keys, kept, inverse = (k.new_empty(batch, chunks, heads, tokens, n) for n in (width, size, size, tokens))
    weight = beta * total.exp()
    inputs = tuple(t.contiguous() for t in (k, v, total, beta, weight))
    _launch(delta_solve_kernel, inputs, (values, keys, kept, inverse), k, width)
    return values, keys, kept, inverse


def solve_backward(
    k: Tensor,
    v: Tensor,
    total: Tensor,
    beta: Tensor,
    values: Tensor,
    keys: Tensor,
    inverse: Tensor,
    d_values: Tensor,
    d_keys: Tensor,
    d_kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = beta * total.exp()
    d_k, d_v = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (k, v))
    d_total, d_beta = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (total, beta))
    given = (k, v, total, beta, weight, values, keys, inverse, d_values, d_keys, d_kept)
    inputs = tuple(t.contiguous() for t in given)
    outputs = (d_k, d_v, d_total, d_beta, torch.empty_like(inverse))
    _launch(delta_solve_backward_kernel, inputs, outputs, k, v.shape[-1])
    return d_k, d_v, d_total, d_beta


def read(q: Tensor, k: Tensor, total: Tensor, corrections: Tensor, memories: Tensor) -> tuple[Tensor, Tensor]:
    (batch, chunks, tokens, heads, _), width = q.shape, corrections.shape[-1]
    out = q.new_empty(batch, chunks, tokens, heads, width)
    scores = q.new_empty(batch, chunks, heads, tokens, tokens)
    inputs = tuple(t.contiguous() for t in (q, k, total, corrections, memories))
    _launch(delta_read_kernel, inputs, (out, scores), q, width)
    return out, scores


def read_backward(
    q: Tensor, k: Tensor, total: Tensor, corrections: Tensor, memories: Tensor, scores: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = tuple(t.contiguous() for t in (q, k, total, corrections, memories, scores, d_out))
    found = tuple(torch.empty_like(t) for t in inputs[:6])
    _launch(delta_read_backward_kernel, inputs, found, q, corrections.shape[-1])
    d_q, d_k, d_total, d_corrections, d_memories, _ = found
    return d_q, d_k, d_total, d_corrections, d_memories


def _launch(kernel: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], x: Tensor, width: int) -> None:
    """A program a chunk of a head; x: q or k."""
    batch, chunks, tokens, heads, size = x.shape
    require(tokens in (16, 32, 64), f"k: chunks of {tokens} tokens, expected 16, 32 or 64")
    if batch * chunks * heads:
        launch = configs.delta_chunk(x.device, x.dtype, tokens)
        kernel[(batch * chunks * heads,)](
            inputs, outputs, heads, size, width, ACC=configs.accumulator(x.dtype), TOKENS=tokens, **launch.options()
        )
