"""log p(target) from stored logits: one program a row with an online log-sum-exp, one read of V numbers; and the gradient of
the logits, one program a row and block of columns, in place of the logits where asked for."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .configs import FLOOR
from .numbers import RowNumbers, Softmax, Upstream, accumulator, row_coefficients
from .triton_backward import Rows, Table


@triton.jit(do_not_specialize=["vocab_size"])
def gather_forward_kernel(
    logits: tl.tensor,
    targets: tl.tensor,
    found: tl.tuple,
    vocab_size: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    inv_temperature: tl.float64,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """One row: logits [V] -> its four numbers. Offsets are int64: 14,123 rows of 152,064 numbers pass 2^31. Loads are
    masked by the row's columns, which allows 16 bytes a load, and ids from vocab_size on are dropped afterwards."""
    logp, row_top, row_log_total, entropy = found
    row = tl.program_id(0).to(tl.int64)
    at = logits + row * row_stride
    inv_temperature = tl.full((), inv_temperature, ACC)
    top = tl.full((), FLOOR, ACC)
    # A sum a lane, added up at the end: next to a likely token's 1, what is added one block at a time is rounded away.
    totals = tl.zeros((BLOCK_V,), ACC)
    moments = tl.zeros((BLOCK_V,), ACC)
    for start in range(0, vocab_size, BLOCK_V):
        column = start + tl.arange(0, BLOCK_V)
        z = tl.load(at + column, mask=column < columns, other=0.0).to(ACC) * inv_temperature
        z = tl.where(column < vocab_size, z, float("-inf"))
        new_top = tl.maximum(top, tl.max(z, 0))
        fall = top - new_top
        z -= new_top
        e = tl.exp(z)
        if ENTROPY:
            moments = tl.exp(fall) * (moments + fall * totals) + e * tl.maximum(z, FLOOR)
        totals = tl.exp(fall) * totals + e
        top = new_top
    total = tl.sum(totals, 0)
    target = tl.load(targets + row)
    target_logit = tl.load(at + target).to(ACC) * inv_temperature
    log_total = tl.log(total)
    # top and log_total stay apart: their sum has lost the digits that a log-prob near zero is made of.
    tl.store(row_top + row, top)
    tl.store(row_log_total + row, log_total)
    tl.store(logp + row, (target_logit - top) - log_total)
    if ENTROPY:
        tl.store(entropy + row, log_total - tl.sum(moments, 0) / total)


def gather_forward(logits: Tensor, targets: Tensor, softmax: Softmax, want_entropy: bool) -> RowNumbers:
    """logits [N, V] of any row stride, targets [N] -> float32 (float64) numbers a row."""
    rows = len(logits)
    acc = accumulator(logits.dtype)
    logp, top, log_total = (logits.new_empty(rows, dtype=acc) for _ in range(3))
    entropy = logits.new_empty(rows, dtype=acc) if want_entropy else None
    if rows:
        gather_forward_kernel[(rows,)](
            logits,
            targets.contiguous(),
            (logp, top, log_total, logp if entropy is None else entropy),
            softmax.vocab_size,
            logits.shape[1],
            logits.stride(0),
            softmax.inv_temperature,
            ENTROPY=want_entropy,
            ACC=configs.accumulator(logits.dtype),
            **configs.elementwise(configs.GATHER, logits.device).options(),
        )
    return RowNumbers(logp, top, log_total, entropy)


@triton.jit(do_not_specialize=["vocab_size", "blocks"])
def gather_backward_kernel(
    logits: Table,
    per_row: Rows,
    d_logits: Table,
    vocab_size: tl.tensor,
    columns: tl.tensor,
    blocks: tl.tensor,
    inv_temperature: tl.float64,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """One block of one row: logits -> d_logits, zero from vocab_size on. Both may be the same memory."""
    targets, top, at_target, constant, linear = per_row
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK_V + tl.arange(0, BLOCK_V)
    inv_temperature = tl.full((), inv_temperature, ACC)
    z = (
        tl.load(logits.numbers + row * logits.stride + column, mask=column < columns, other=0.0).to(ACC)
        * inv_temperature
    )
    z = tl.where(column < vocab_size, z - tl.load(top + row), float("-inf"))
    factor = tl.load(constant + row)
    if ENTROPY:
        factor += tl.load(linear + row) * tl.maximum(z, FLOOR)
    dz = tl.where(column == tl.load(targets + row), tl.load(at_target + row), tl.exp(z) * factor)
    dz = dz.to(d_logits.numbers.dtype.element_ty)
    tl.store(d_logits.numbers + row * d_logits.stride + column, dz, mask=column < columns)


def gather_backward(
    logits: Tensor, targets: Tensor, softmax: Softmax, known: RowNumbers, upstream: Upstream, inplace: bool
) -> Tensor:
    """-> d_logits [N, V] in the dtype of logits; with inplace it is logits, written over."""
    rows, columns = logits.shape
    at_target, constant, linear = row_coefficients(known, upstream, softmax.inv_temperature)
    launch = configs.elementwise(configs.GATHER, logits.device)
    d_logits = logits if inplace else torch.empty_like(logits, memory_format=torch.contiguous_format)
    blocks = triton.cdiv(columns, launch.constants["BLOCK_V"])
    if rows:
        gather_backward_kernel[(rows * blocks,)](
            Table(logits, logits.stride(0)),
            Rows(targets.contiguous(), known.top, at_target, constant, constant if linear is None else linear),
            Table(d_logits, d_logits.stride(0)),
            softmax.vocab_size,
            columns,
            blocks,
            softmax.inv_temperature,
            ENTROPY=linear is not None,
            ACC=configs.accumulator(logits.dtype),
            **launch.options(),
        )
    return d_logits
