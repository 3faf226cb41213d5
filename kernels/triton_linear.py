"""log p(target) of a linear head in Triton: logits of 150k-entry vocabularies that never leave the tile.

    z = inv_temperature * hidden weight^T          p = exp(z - lse)          lse = log sum_j exp z_j
    logp = z_target - lse                          entropy = lse - sum_j p_j z_j

Forward, 2NVH FLOPs: one program a tile [BLOCK_N, BLOCK_V] of logits, which it holds in registers in fp32 and folds to
three numbers a row (maximum, sum of exponentials, and for the entropy their first moment). They go to partial sums
[ceil(V / BLOCK_V), N] with plain stores; a second kernel merges them. The program whose tile holds a row's target is
the only one to store that row's target logit. No lock, no atomic: two runs give the same bits.

Backward, 6NVH: the vocabulary is walked in chunks. A kernel recomputes the tile and writes dZ [N, chunk] in the dtype
of the inputs (where a product with stored logits would have rounded it too); then dX += dZ W and dW = dZ^T X, plain
products that the vendor's library does best. dX is summed in fp32 and rounded once; each row of dW is written once.

Kept, 6NVH in all, for a loss that needs each row's log-prob alone: the forward keeps exp(z - tile maximum), the caller
turns log-probs into d loss / d logp, and kept_gradient (triton_backward.py) writes dZ over what was kept. That is
in the dtype of the inputs, as dZ would be: 2 bytes a logit in bf16, where stored fp32 logits and dZ take 6. Log-probs
come from fp32 logits all the same. The target's own entry, 1 - p of a likely token, is not taken from the rounded number
but from logp. The price is memory: [rows, V] a wave, and an fp32 sum of dW if there are two waves.

Left out on purpose: skipping small blocks of dZ, which is lossy.
"""

import torch
import triton
from torch import Tensor

from . import configs
from .numbers import (
    Kept,
    Needs,
    OnePassBudget,
    RowNumbers,
    Softmax,
    Upstream,
    accumulator,
    add_product,
    row_coefficients,
)
from .triton_backward import kept_gradient, logit_gradient
from .triton_forward import merge, partial_sums
from .triton_tiles import ROW_PADDING, loadable, padded

__all__ = ["BUDGET", "backward", "forward", "kept_forward", "kept_gradient"]  # a backend's primitives

# The most that a pass holds beside its arguments and results, for any N, but on a large card (scratch_bytes): the partial
# sums; or dZ, with the sums of one chunk of dW. dX in fp32 [N, H] is not counted: it is the result before its one rounding.
SCRATCH_BYTES = 512 * 2**20
# Columns a chunk below which reading and writing dX would cost more than a tenth of the products.
CHUNK = 4096
BUDGET = OnePassBudget(limit=4 * 2**30, wide=False)


def forward(hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax, want_entropy: bool) -> RowNumbers:
    """hidden [N, H], weight [V, H], targets [N] -> float32 (float64) numbers a row."""
    hidden, targets = loadable(hidden), targets.contiguous()
    rows = len(hidden)
    acc = accumulator(hidden.dtype)
    blocks = configs.linear(hidden.device, hidden.dtype, hidden.shape[1]).constants
    logp, top, log_total, target_logits = (hidden.new_empty(rows, dtype=acc) for _ in range(4))
    found = RowNumbers(logp, top, log_total, hidden.new_empty(rows, dtype=acc) if want_entropy else None)
    tiles = triton.cdiv(softmax.vocab_size, blocks["BLOCK_V"])
    sums = 3 if want_entropy else 2
    wave = max(SCRATCH_BYTES // (sums * tiles * acc.itemsize) // blocks["BLOCK_N"], 1) * blocks["BLOCK_N"]
    parts = hidden.new_empty(sums, padded(tiles * min(wave, rows)), dtype=acc)
    for start in range(0, rows, wave):
        part = slice(start, min(start + wave, rows))
        partial_sums(hidden[part], weight, targets[part], softmax, parts, target_logits[part])
        merge(parts, tiles, target_logits[part], found.of(part))
    return found


def kept_forward(hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax) -> Kept:
    """hidden [N, H], weight [V, H], targets [N] -> numbers [N, vocab_size] in the dtype of hidden, and as state (maxima
    [ceil(vocab_size / BLOCK_V), N], top [N], log_total [N]) in float32 (float64)."""
    hidden, columns = loadable(hidden), softmax.vocab_size
    rows = len(hidden)
    acc = accumulator(hidden.dtype)
    block = configs.linear(hidden.device, hidden.dtype, hidden.shape[1]).constants["BLOCK_V"]
    tiles = triton.cdiv(columns, block)
    logp, top, log_total, target_logits = (hidden.new_empty(rows, dtype=acc) for _ in range(4))
    parts = hidden.new_empty(2, padded(tiles * rows), dtype=acc)
    numbers = hidden.new_empty(rows, padded(columns))[:, :columns]
    if rows:
        partial_sums(hidden, weight, targets.contiguous(), softmax, parts, target_logits, numbers)
        merge(parts, tiles, target_logits, RowNumbers(logp, top, log_total))
    return Kept(logp, numbers, (parts[0, : tiles * rows].view(tiles, rows), top, log_total), block)


def backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softmax: Softmax,
    known: RowNumbers,
    upstream: Upstream,
    needs: Needs,
) -> tuple[Tensor | None, Tensor | None]:
    """-> d_hidden [N, H] or None, d_weight [V, H] or None, in the dtypes of hidden and weight."""
    hidden = loadable(hidden)
    inv_temperature, vocab_size = softmax
    rows, width = hidden.shape
    acc = accumulator(hidden.dtype)
    row = row_coefficients(known, upstream, inv_temperature)
    wave, chunk = split(rows, vocab_size, width, hidden.dtype.itemsize, scratch_bytes(hidden.device))
    d_hidden = hidden.new_zeros(rows, width, dtype=acc) if needs.hidden else None
    d_weight = torch.empty_like(weight) if needs.weight else None
    if d_weight is not None:
        d_weight[vocab_size if rows else 0 :].zero_()
    scratch = hidden.new_empty(wave, padded(chunk))
    for first in range(0, vocab_size if rows else 0, chunk):
        w = weight[first : min(first + chunk, vocab_size)]
        d_w = torch.zeros_like(w, dtype=acc) if needs.weight and wave < rows else None
        for start in range(0, rows, wave):
            part = slice(start, min(start + wave, rows))
            d_logits = scratch[: part.stop - start, : len(w)]
            logit_gradient(
                hidden[part], w, targets[part], known.top[part], row.of(part), first, inv_temperature, d_logits
            )
            if d_hidden is not None:
                add_product(d_hidden[part], d_logits, w)
            if d_w is not None:
                add_product(d_w, d_logits.T, hidden[part])
            elif d_weight is not None:
                torch.mm(d_logits.T, hidden, out=d_weight[first : first + len(w)])
        if d_weight is not None and d_w is not None:
            d_weight[first : first + len(w)] = d_w
    return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight


def scratch_bytes(device: torch.device) -> int:
    """SCRATCH_BYTES, and four times that on a card of 64 GiB or more: fewer chunks, which each read and write dX."""
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= 64 * 2**30
    return 4 * SCRATCH_BYTES if large else SCRATCH_BYTES


def split(rows: int, columns: int, width: int, itemsize: int, scratch: int) -> tuple[int, int]:
    """-> rows a wave, columns a chunk, such that dZ [wave, chunk] and, where several waves add to one chunk of dW, its
    sum in fp32 (float64 for float64) stay within `scratch` bytes."""
    fit = scratch // (max(rows, 1) * itemsize) // ROW_PADDING * ROW_PADDING
    if fit >= min(CHUNK, columns):
        return rows, min(fit, columns)
    sum_of_row = width * max(itemsize, 4)
    quarter = scratch // 4 // sum_of_row // ROW_PADDING * ROW_PADDING
    chunk = min(CHUNK, columns, max(quarter, ROW_PADDING))
    wave = (scratch - chunk * sum_of_row) // (padded(chunk) * itemsize)
    return min(max(wave // 128, 1) * 128, rows), chunk
