"""RMSNorm, the rotary embedding and SwiGLU in Triton, forward and backward: one kernel a pass.

Each number is read once and written once, computed in ACC and rounded at the end; what the backward pass needs beside the
inputs (a row's norm, the sigmoid of a gate) is computed again on the way. The gradient of the norm's weight is a sum over
rows: each program adds up the rows it walks over, and torch adds up the programs, in an order that the number of rows alone
decides. No atomic: two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .numbers import accumulator

NORM_PROGRAMS = 512  # of the norm's backward pass, at most: each leaves a sum [H] behind


@triton.jit
def _normed(x: tl.tensor, eps: tl.tensor, width: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """x [R, BLOCK_H], zero past its width, over its root mean square; and one over that [R, 1]."""
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 1) / width + eps)[:, None]
    return x * scale, scale


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    eps: tl.float64,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """BLOCK_R rows of x [N, H] -> out [N, H]."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = tl.arange(0, BLOCK_H)[None, :]
    inside = (row < rows) & (column < width)
    at = row.to(tl.int64) * width + column
    normed, _ = _normed(tl.load(x + at, mask=inside, other=0.0).to(ACC), tl.full((), eps, ACC), width)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(ACC)
    tl.store(out + at, (normed * w).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_backward_kernel(
    inputs: tl.tuple,
    gradients: tl.tuple,
    rows: tl.tensor,
    width: tl.tensor,
    eps: tl.float64,
    NEED_WEIGHT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """Every num_programs-th block of rows of x and grad [N, H] -> d_x [N, H], and the program's own sum over them ->
    d_weight [programs, H]. With n the normed row and s one over its norm: d_x = s (w g - n mean(n w g)), d_weight = sum of
    g n."""
    x, weight, grad = inputs
    d_x, d_weight = gradients
    column = tl.arange(0, BLOCK_H)[None, :]
    eps = tl.full((), eps, ACC)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(ACC)
    total = tl.zeros((BLOCK_R, BLOCK_H), ACC)
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), tl.num_programs(0)):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
        inside = (row < rows) & (column < width)
        at = row.to(tl.int64) * width + column
        normed, scale = _normed(tl.load(x + at, mask=inside, other=0.0).to(ACC), eps, width)
        g = tl.load(grad + at, mask=inside, other=0.0).to(ACC)
        wg = w * g
        shared = tl.sum(normed * wg, 1)[:, None] / width
        tl.store(d_x + at, (scale * (wg - normed * shared)).to(d_x.dtype.element_ty), mask=inside)
        if NEED_WEIGHT:
            total += g * normed
    if NEED_WEIGHT:
        lane = tl.arange(0, BLOCK_H)
        tl.store(d_weight + tl.program_id(0) * width + lane, tl.sum(total, 0), mask=lane < width)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    width = weight.shape[0]
    table = x.reshape(-1, width).contiguous()
    out = torch.empty_like(table)
    if rows := len(table):
        launch = configs.norm(x.device, x.dtype, width)
        grid = (triton.cdiv(rows, launch.constants["BLOCK_R"]),)
        acc = configs.accumulator(x.dtype)
        rms_norm_kernel[grid](table, weight.contiguous(), out, rows, width, eps, ACC=acc, **launch.options())
    return out.view(x.shape)


def rms_norm_backward(
    x: Tensor, weight: Tensor, eps: float, grad: Tensor, need_weight: bool
) -> tuple[Tensor, Tensor | None]:
    width = weight.shape[0]
    table = x.reshape(-1, width).contiguous()
    d_x = torch.empty_like(table)
    launch = configs.norm(x.device, x.dtype, width)
    programs = min(NORM_PROGRAMS, triton.cdiv(len(table), launch.constants["BLOCK_R"]))
    sums = x.new_empty(programs if need_weight else 0, width, dtype=accumulator(x.dtype))
    if programs:
        rms_norm_backward_kernel[(programs,)](
            (table, weight.contiguous(), grad.reshape(-1, width).contiguous()),
            (d_x, sums),
            len(table),
            width,
            eps,
            NEED_WEIGHT=need_weight,
            ACC=configs.accumulator(x.dtype),
            **launch.options(),
        )
    return d_x.view(x.shape), sums.sum(0).to(weight.dtype) if need_weight else None


@triton.jit(do_not_specialize=["heads", "angles"])
def rotate_kernel(
    x: tl.tensor,
    strides: tl.tuple,
    rotation: tl.tuple,
    out: tl.tensor,
    heads: tl.tensor,
    angles: tl.tensor,
    half: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """One token's heads: x [N, heads, 2 half], whose tokens and heads lie strides apart, turned by row n % angles of the
    rotation -> out [N, heads, 2 half]."""
    token_stride, head_stride = strides
    cos, sin = rotation
    token = tl.program_id(0)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    dim = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < heads) & (dim < half)
    angle = (token % angles).to(tl.int64) * half + dim
    c = tl.load(cos + angle, mask=dim < half, other=0.0).to(ACC)
    s = tl.load(sin + angle, mask=dim < half, other=0.0).to(ACC)
    at = x + token.to(tl.int64) * token_stride + head * head_stride + dim
    first = tl.load(at, mask=inside, other=0.0).to(ACC)
    second = tl.load(at + half, mask=inside, other=0.0).to(ACC)
    to = out + (token.to(tl.int64) * heads + head) * (2 * half) + dim
    tl.store(to, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(to + half, (second * c + first * s).to(out.dtype.element_ty), mask=inside)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads, size = x.shape[-2:]
    table = x.reshape(-1, heads, size)
    if table.stride(2) != 1:
        table = table.contiguous()
    out = torch.empty(table.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        rotate_kernel[(len(table),)](
            table,
            table.stride()[:2],
            (cos.contiguous(), sin.contiguous()),
            out,
            heads,
            cos.numel() // (size // 2),
            size // 2,
            ACC=configs.accumulator(x.dtype),
            **configs.rotation(x.device, heads, size // 2).options(),
        )
    return out.view(x.shape)


@triton.jit(do_not_specialize=["blocks"])
def swiglu_kernel(
    gate_up: tl.tensor, out: tl.tensor, width: tl.tensor, blocks: tl.tensor, ACC: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """One of the `blocks` of a row of gate_up [N, 2 F] -> out [N, F]."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = gate_up + row * (2 * width) + column
    gate = tl.load(at, mask=inside, other=0.0).to(ACC)
    up = tl.load(at + width, mask=inside, other=0.0).to(ACC)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["blocks"])
def swiglu_backward_kernel(
    gate_up: tl.tensor,
    grad: tl.tensor,
    d_gate_up: tl.tensor,
    width: tl.tensor,
    blocks: tl.tensor,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One of the `blocks` of a row: with s the gate's sigmoid, d_gate = g up s (1 + gate (1 - s)) and d_up = g gate s."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = row * (2 * width) + column
    gate = tl.load(gate_up + at, mask=inside, other=0.0).to(ACC)
    up = tl.load(gate_up + at + width, mask=inside, other=0.0).to(ACC)
    g = tl.load(grad + row * width + column, mask=inside, other=0.0).to(ACC)
    s = tl.sigmoid(gate)
    d_gate = g * up * s * (1.0 + gate * (1.0 - s))
    tl.store(d_gate_up + at, d_gate.to(d_gate_up.dtype.element_ty), mask=inside)
    tl.store(d_gate_up + at + width, (g * gate * s).to(d_gate_up.dtype.element_ty), mask=inside)


def swiglu(gate_up: Tensor) -> Tensor:
    table = gate_up.reshape(-1, gate_up.shape[-1]).contiguous()
    rows, width = len(table), gate_up.shape[-1] // 2
    out = table.new_empty(rows, width)
    if out.numel():
        launch = configs.elementwise(configs.SWIGLU, gate_up.device)
        blocks = triton.cdiv(width, launch.constants["BLOCK"])
        acc = configs.accumulator(gate_up.dtype)
        swiglu_kernel[(rows * blocks,)](table, out, width, blocks, ACC=acc, **launch.options())
    return out.view(*gate_up.shape[:-1], width)


def swiglu_backward(gate_up: Tensor, grad: Tensor) -> Tensor:
    table = gate_up.reshape(-1, gate_up.shape[-1]).contiguous()
    rows, width = len(table), gate_up.shape[-1] // 2
    d_gate_up = torch.empty_like(table)
    if table.numel():
        launch = configs.elementwise(configs.SWIGLU, gate_up.device)
        blocks = triton.cdiv(width, launch.constants["BLOCK"])
        acc, of_out = configs.accumulator(gate_up.dtype), grad.reshape(rows, width).contiguous()
        swiglu_backward_kernel[(rows * blocks,)](table, of_out, d_gate_up, width, blocks, ACC=acc, **launch.options())
    return d_gate_up.view(gate_up.shape)
