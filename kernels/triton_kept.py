"""The linear head with its exponentials kept, in Triton: log-probs and gradients in 6NVH, no logit computed twice.

For a loss that needs each row's log-prob alone (the clipped surrogate with a ratio a token), rows can be done in waves:

    1  forward          z = inv_temperature * hidden weight^T in fp32, never stored; exp(z - tile maximum) is kept
    2  (the caller)     log-probs -> d loss / d logp
    3  logit_gradient   kept, tile maxima, lse -> dZ in its place; the caller adds dZ W to dX and dZ^T hidden to dW

What is kept is in the dtype of the inputs, as dZ would be: 2 bytes a logit in bf16, where stored fp32 logits and dZ
take 6. Log-probs come from fp32 logits all the same. The target's own entry, 1 - p of a likely token, is not taken from
the rounded number but from logp. The price is memory: [rows, V] a wave, and an fp32 sum of dW if there are two waves.
"""

import triton
import triton.language as tl

from . import configs
from .triton_linear import FLOOR, _tile_logits, _tile_of, merge_kernel, padded, unit_stride


@triton.jit
def keep_kernel(
    hidden,
    weight,
    targets,
    kept,
    maxima,
    totals,
    target_logits,
    rows,
    columns,
    width,
    hidden_stride,
    weight_stride,
    kept_stride,
    inv_temperature,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One tile of logits -> kept [N, V], maxima, totals [ceil(V / BLOCK_V), N] and, once a row, target_logits [N]."""
    row_tile, column_tile = _tile_of(tl.program_id(0), rows, columns, BLOCK_N, BLOCK_V)
    row = row_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    column = column_tile * BLOCK_V + tl.arange(0, BLOCK_V)
    z = _tile_logits(
        hidden,
        weight,
        row,
        column,
        rows,
        columns,
        width,
        hidden_stride,
        weight_stride,
        ACC,
        PRECISION,
        BLOCK_N,
        BLOCK_V,
        BLOCK_H,
    )
    here = row < rows
    target = tl.load(targets + row, mask=here, other=-1).to(tl.int32)
    local = tl.arange(0, BLOCK_V)
    first_column = column_tile * BLOCK_V
    z = tl.where(local[None, :] < columns - first_column, z * inv_temperature, FLOOR)
    target_logit = tl.sum(tl.where(local[None, :] == (target - first_column)[:, None], z, 0.0), 1)
    top = tl.max(z, 1)
    z = tl.exp(z - top[:, None])
    at = column_tile.to(tl.int64) * rows + row
    tl.store(maxima + at, top, mask=here)
    tl.store(totals + at, tl.sum(z, 1), mask=here)
    inside = (target >= first_column) & (target < first_column + BLOCK_V)
    tl.store(target_logits + row, target_logit, mask=inside)
    at = kept + row.to(tl.int64)[:, None] * kept_stride + column[None, :]
    tl.store(at, z.to(kept.dtype.element_ty), mask=here[:, None])


@triton.jit
def kept_gradient_kernel(
    kept,
    d_logits,
    picked,
    maxima,
    targets,
    logp,
    lse,
    logp_grad,
    rows,
    kept_rows,
    columns,
    room,
    kept_stride,
    d_logits_stride,
    inv_temperature,
    PICK: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One tile of kept exponentials -> d (hidden weight^T) of the picked rows. Both may be the same memory where all are
    picked. BLOCK_V is keep_kernel's, for the maxima are. Up to `room` a row may be read and written: a multiple of 16
    allows 16 bytes a load, which the size of a vocabulary need not be."""
    column_tiles = tl.cdiv(columns, BLOCK_V)
    column_tile = tl.program_id(0) % column_tiles
    row = (tl.program_id(0) // column_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = column_tile * BLOCK_V + tl.arange(0, BLOCK_V)
    here = row < rows
    source = row.to(tl.int64)
    if PICK:
        source = tl.load(picked + row, mask=here, other=0)
    target = tl.load(targets + source, mask=here, other=-1).to(tl.int32)
    slope = tl.load(logp_grad + source, mask=here, other=0.0) * inv_temperature
    top = tl.load(maxima + column_tile.to(tl.int64) * kept_rows + source, mask=here, other=0.0)
    scale = slope * tl.exp(top - tl.load(lse + source, mask=here, other=0.0))
    at_target = slope * (1 - tl.exp(tl.load(logp + source, mask=here, other=0.0)))
    inside = here[:, None] & (column < room)[None, :]
    e = tl.load(kept + source[:, None] * kept_stride + column[None, :], mask=inside, other=0.0).to(ACC)
    dz = tl.where(column[None, :] == target[:, None], at_target[:, None], -scale[:, None] * e)
    at = d_logits + row.to(tl.int64)[:, None] * d_logits_stride + column[None, :]
    tl.store(at, dz.to(d_logits.dtype.element_ty), mask=inside)


def forward(hidden, weight, targets, inv_temperature, vocab_size):
    """hidden [N, H], weight [V, H], targets [N] -> logp, lse [N] float32 (float64); for logit_gradient, kept
    [N, vocab_size] in the dtype of hidden and maxima [ceil(vocab_size / BLOCK_V), N]."""
    hidden = unit_stride(hidden)
    rows, width = hidden.shape
    acc, acc_tl = configs.accumulator(hidden.dtype)
    launch = configs.linear(hidden.device, hidden.dtype)
    merge = configs.elementwise(configs.MERGE, hidden.device)
    tiles = triton.cdiv(vocab_size, launch.constants["BLOCK_V"])
    logp, lse, target_logits = (hidden.new_empty(rows, dtype=acc) for _ in range(3))
    maxima, totals = (hidden.new_empty(tiles, rows, dtype=acc) for _ in range(2))
    kept = hidden.new_empty(rows, padded(vocab_size))[:, :vocab_size]
    if rows:
        keep_kernel[(triton.cdiv(rows, launch.constants["BLOCK_N"]) * tiles,)](
            hidden,
            weight,
            targets.contiguous(),
            kept,
            maxima,
            totals,
            target_logits,
            rows,
            vocab_size,
            width,
            hidden.stride(0),
            weight.stride(0),
            kept.stride(0),
            inv_temperature,
            ACC=acc_tl,
            **launch.options(),
        )
        merge_kernel[(triton.cdiv(rows, merge.constants["BLOCK_N"]),)](
            maxima,
            totals,
            totals,
            target_logits,
            logp,
            lse,
            lse,
            rows,
            tiles,
            ENTROPY=False,
            ACC=acc_tl,
            **merge.options(),
        )
    return logp, lse, kept, maxima


def logit_gradient(kept, maxima, targets, logp, lse, logp_grad, inv_temperature, picked=None):
    """dZ, the gradient of hidden weight^T where d loss / d logp is logp_grad [N]: of all rows, written over kept
    [N, vocab_size]; or of the rows picked [n] int64 alone, in that order, in new memory [n, vocab_size]."""
    columns = kept.shape[1]
    acc, acc_tl = configs.accumulator(kept.dtype)
    block_v = configs.linear(kept.device, kept.dtype).constants["BLOCK_V"]
    launch = configs.elementwise(configs.KEPT, kept.device)
    d_logits = kept if picked is None else kept.new_empty(len(picked), padded(columns))[:, :columns]
    rows = len(d_logits)
    if rows:
        programs = triton.cdiv(rows, launch.constants["BLOCK_N"]) * triton.cdiv(columns, block_v)
        kept_gradient_kernel[(programs,)](
            kept,
            d_logits,
            targets if picked is None else picked,
            maxima,
            targets.contiguous(),
            logp,
            lse,
            logp_grad.to(acc).contiguous(),
            rows,
            len(kept),
            columns,
            min(kept.stride(0), d_logits.stride(0)),
            kept.stride(0),
            d_logits.stride(0),
            inv_temperature,
            PICK=picked is not None,
            ACC=acc_tl,
            BLOCK_V=block_v,
            **launch.options(),
        )
    return d_logits
