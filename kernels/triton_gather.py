"""log p(target) from stored logits in Triton: one read of them, and a gradient in their place where asked for.

    z = inv_temperature * logits                   p = exp(z - lse)          lse = log sum_j exp z_j
    logp = z_target - lse                          entropy = lse - sum_j p_j z_j
    d logits_j = inv_temperature (logp_grad ([j = target] - p_j) - entropy_grad p_j (z_j - lse + entropy))

Bound by memory: forward reads V numbers a row, backward reads and writes V. Forward is one program a row with an online
log-sum-exp; backward is one program a row and block of columns.
"""

import torch
import triton
import triton.language as tl

from . import configs

# Stands for minus infinity in the running maximum: (-inf) - (-inf) is NaN. Logits themselves may be -inf.
FLOOR: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def forward_kernel(
    logits,
    targets,
    logp,
    lse,
    entropy,
    vocab_size,
    columns,
    row_stride,
    inv_temperature,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One row: logits [V] -> logp, lse, entropy. Offsets are int64: 14,123 rows of 152,064 numbers pass 2^31. Loads are
    masked by the row's columns, which allows 16 bytes a load, and ids from vocab_size on are dropped afterwards."""
    row = tl.program_id(0).to(tl.int64)
    at = logits + row * row_stride
    top = tl.full((), FLOOR, ACC)
    total = tl.full((), 0.0, ACC)
    moment = tl.full((), 0.0, ACC)
    for start in range(0, vocab_size, BLOCK_V):
        column = start + tl.arange(0, BLOCK_V)
        z = tl.load(at + column, mask=column < columns, other=0.0).to(ACC) * inv_temperature
        z = tl.where(column < vocab_size, z, float("-inf"))
        new_top = tl.maximum(top, tl.max(z, 0))
        fall = top - new_top
        z -= new_top
        e = tl.exp(z)
        if ENTROPY:
            moment = tl.exp(fall) * (moment + fall * total) + tl.sum(e * tl.maximum(z, FLOOR), 0)
        total = tl.exp(fall) * total + tl.sum(e, 0)
        top = new_top
    target = tl.load(targets + row)
    target_logit = tl.load(at + target).to(ACC) * inv_temperature
    log_total = tl.log(total)
    tl.store(lse + row, top + log_total)
    # top first: where it is large, top + log_total has lost the digits that a log-prob near zero is made of.
    tl.store(logp + row, (target_logit - top) - log_total)
    if ENTROPY:
        tl.store(entropy + row, log_total - moment / total)


@triton.jit
def backward_kernel(
    logits,
    targets,
    lse,
    logp_grad,
    entropy_grad,
    entropy,
    d_logits,
    vocab_size,
    columns,
    blocks,
    row_stride,
    d_row_stride,
    inv_temperature,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One block of one row: logits -> d_logits, zero from vocab_size on. Both may be the same memory."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK_V + tl.arange(0, BLOCK_V)
    z = tl.load(logits + row * row_stride + column, mask=column < columns, other=0.0).to(ACC) * inv_temperature
    log_p = tl.where(column < vocab_size, z, float("-inf")) - tl.load(lse + row)
    slope = tl.load(logp_grad + row)
    pull = slope
    if ENTROPY:
        pull += tl.load(entropy_grad + row) * (tl.maximum(log_p, FLOOR) + tl.load(entropy + row))
    dz = tl.where(column == tl.load(targets + row), slope, 0.0) - tl.exp(log_p) * pull
    dz = (dz * inv_temperature).to(d_logits.dtype.element_ty)
    tl.store(d_logits + row * d_row_stride + column, dz, mask=column < columns)


def forward(logits, targets, inv_temperature, vocab_size, want_entropy):
    """logits [N, V] of any row stride, targets [N] -> logp, lse, entropy or None, all [N] float32 (float64)."""
    rows = len(logits)
    acc, acc_tl = configs.accumulator(logits.dtype)
    launch = configs.elementwise(configs.GATHER, logits.device)
    logp, lse = (logits.new_empty(rows, dtype=acc) for _ in range(2))
    entropy = logits.new_empty(rows, dtype=acc) if want_entropy else None
    if rows:
        forward_kernel[(rows,)](
            logits,
            targets.contiguous(),
            logp,
            lse,
            entropy if want_entropy else lse,
            vocab_size,
            logits.shape[1],
            logits.stride(0),
            inv_temperature,
            ENTROPY=want_entropy,
            ACC=acc_tl,
            **launch.options(),
        )
    return logp, lse, entropy


def backward(logits, targets, lse, logp_grad, entropy_grad, entropy, inv_temperature, vocab_size, inplace):
    """-> d_logits [N, V] in the dtype of logits; with inplace it is logits, written over."""
    rows, columns = logits.shape
    acc, acc_tl = configs.accumulator(logits.dtype)
    launch = configs.elementwise(configs.GATHER, logits.device)
    d_logits = logits if inplace else torch.empty_like(logits, memory_format=torch.contiguous_format)
    with_entropy = entropy_grad is not None
    logp_grad = logp_grad.to(acc).contiguous()
    entropy_grad = entropy_grad.to(acc).contiguous() if with_entropy else logp_grad
    blocks = triton.cdiv(columns, launch.constants["BLOCK_V"])
    if rows:
        backward_kernel[(rows * blocks,)](
            logits,
            targets.contiguous(),
            lse,
            logp_grad,
            entropy_grad,
            entropy if with_entropy else lse,
            d_logits,
            vocab_size,
            columns,
            blocks,
            logits.stride(0),
            d_logits.stride(0),
            inv_temperature,
            ENTROPY=with_entropy,
            ACC=acc_tl,
            **launch.options(),
        )
    return d_logits
