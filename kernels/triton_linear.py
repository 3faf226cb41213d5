"""log p(target) of a linear head in Triton: logits of 150k-word vocabularies that never leave the tile.

    z = inv_temperature * hidden weight^T          p = exp(z - lse)          lse = log sum_j exp z_j
    logp = z_target - lse                          entropy = lse - sum_j p_j z_j
    d z_j = logp_grad ([j = target] - p_j) - entropy_grad p_j (z_j - lse + entropy)

Forward, 2NVH FLOPs: one program a tile [BLOCK_N, BLOCK_V] of logits, which it holds in registers in fp32 and folds to
three numbers a row (maximum, sum of exponentials, and for the entropy their first moment). They go to partial sums
[ceil(V / BLOCK_V), N] with plain stores; a second kernel merges them. The program whose tile holds a row's target is
the only one to store that row's target logit. No lock, no atomic: two runs give the same bits.

Backward, 6NVH: the vocabulary is walked in chunks. A kernel recomputes the tile and writes dZ [N, chunk] in the dtype
of the inputs (where a product with stored logits would have rounded it too); then dX += dZ W and dW = dZ^T X, plain
products that the vendor's library does best. dX is summed in fp32 and rounded once; each row of dW is written once.

Left out on purpose: skipping small blocks of dZ, which is lossy. The form that keeps the exponentials instead of
recomputing them (6NVH in all) is in triton_kept.py.
"""

import torch
import triton
import triton.language as tl

from . import configs

# The most that a pass holds beside its arguments and results, for any N: the partial sums; or dZ, with the sums of one
# chunk of dW. dX in fp32 [N, H] is not counted: it is the result before its one rounding.
SCRATCH_BYTES = 512 * 2**20
# Columns a chunk below which reading and writing dX would cost more than a tenth of the products.
CHUNK = 4096
# Rows of dZ are padded to a multiple of this, which every BLOCK_V divides: whole tiles fit, and rows begin on 16 bytes.
ROW_PADDING = 256

# Stands for minus infinity. Finite, because (-inf) - (-inf) and 0 * (-inf) are NaN; no logit comes near it.
FLOOR: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def _tile_of(program, rows, columns, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr):
    """Row tile and column tile of a program: down 8 row tiles, then right, so that neighbours share both operands in
    L2. One grid axis, because the others end at 65,535."""
    row_tiles = tl.cdiv(rows, BLOCK_N)
    column_tiles = tl.cdiv(columns, BLOCK_V)
    band = program // (8 * column_tiles)
    height = min(row_tiles - 8 * band, 8)
    inside = program % (8 * column_tiles)
    return 8 * band + inside % height, inside // height


@triton.jit
def _tile_logits(
    hidden,
    weight,
    row,
    column,
    rows,
    columns,
    width,
    hidden_stride,
    weight_stride,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """hidden[row] weight[column]^T [BLOCK_N, BLOCK_V]. Past the edge the last row is read again, and the caller drops
    what it makes of it. Offsets are int64: 14,123 rows of 152,064 numbers pass 2^31."""
    k = tl.arange(0, BLOCK_H)
    x_at = hidden + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * hidden_stride + k[None, :]
    w_at = weight + tl.minimum(column, columns - 1).to(tl.int64)[None, :] * weight_stride + k[:, None]
    z = tl.zeros((BLOCK_N, BLOCK_V), dtype=ACC)
    for start in range(0, width, BLOCK_H):
        x = tl.load(x_at, mask=k[None, :] < width - start, other=0.0)
        w = tl.load(w_at, mask=k[:, None] < width - start, other=0.0)
        z = tl.dot(x, w, z, input_precision=PRECISION, out_dtype=ACC)
        x_at += BLOCK_H
        w_at += BLOCK_H
    return z


@triton.jit
def partial_sums_kernel(
    hidden,
    weight,
    targets,
    maxima,
    totals,
    moments,
    target_logits,
    rows,
    columns,
    width,
    hidden_stride,
    weight_stride,
    inv_temperature,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One tile of logits -> maxima, totals, moments [ceil(V / BLOCK_V), N] and, once a row, target_logits [N]."""
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
    # Columns are counted within the tile: compared with constants, they take no registers, and there are none to spare.
    local = tl.arange(0, BLOCK_V)
    first_column = column_tile * BLOCK_V
    z = tl.where(local[None, :] < columns - first_column, z * inv_temperature, FLOOR)
    target_logit = tl.sum(tl.where(local[None, :] == (target - first_column)[:, None], z, 0.0), 1)
    top = tl.max(z, 1)
    z -= top[:, None]
    e = tl.exp(z)
    at = column_tile.to(tl.int64) * rows + row
    tl.store(maxima + at, top, mask=here)
    tl.store(totals + at, tl.sum(e, 1), mask=here)
    if ENTROPY:
        tl.store(moments + at, tl.sum(e * z, 1), mask=here)
    inside = (target >= first_column) & (target < first_column + BLOCK_V)
    tl.store(target_logits + row, target_logit, mask=inside)


@triton.jit
def merge_kernel(
    maxima,
    totals,
    moments,
    target_logits,
    logp,
    lse,
    entropy,
    rows,
    tiles,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Partial sums [tiles, N] -> logp, lse, entropy [N]."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    top = tl.full((BLOCK_N,), FLOOR, ACC)
    total = tl.zeros((BLOCK_N,), ACC)
    moment = tl.zeros((BLOCK_N,), ACC)
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        at = tile.to(tl.int64)[:, None] * rows + row[None, :]
        inside = (tile < tiles)[:, None] & (row < rows)[None, :]
        part_top = tl.load(maxima + at, mask=inside, other=FLOOR)
        part_total = tl.load(totals + at, mask=inside, other=0.0)
        new_top = tl.maximum(top, tl.max(part_top, 0))
        fall = top - new_top
        part_fall = part_top - new_top[None, :]
        if ENTROPY:
            part_moment = tl.load(moments + at, mask=inside, other=0.0)
            moment = tl.exp(fall) * (moment + fall * total)
            moment += tl.sum(tl.exp(part_fall) * (part_moment + part_fall * part_total), 0)
        total = tl.exp(fall) * total + tl.sum(tl.exp(part_fall) * part_total, 0)
        top = new_top
    log_total = tl.log(total)
    target_logit = tl.load(target_logits + row, mask=row < rows, other=0.0)
    tl.store(lse + row, top + log_total, mask=row < rows)
    # top first: where it is large, top + log_total has lost the digits that a log-prob near zero is made of.
    tl.store(logp + row, (target_logit - top) - log_total, mask=row < rows)
    if ENTROPY:
        tl.store(entropy + row, log_total - moment / total, mask=row < rows)


@triton.jit
def logit_gradient_kernel(
    hidden,
    weight,
    targets,
    lse,
    logp_grad,
    entropy_grad,
    entropy,
    d_logits,
    rows,
    columns,
    width,
    first_column,
    hidden_stride,
    weight_stride,
    d_logits_stride,
    inv_temperature,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One tile of logits, recomputed -> d (hidden weight^T) [N, chunk]. weight and columns are the chunk's, and
    first_column is its place in the vocabulary. Whole tiles are stored, without a mask that would make the stores
    narrow: the rows of d_logits have room for the last one."""
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
    target = tl.load(targets + row, mask=here, other=-1).to(tl.int32) - first_column
    # The temperature enters twice: in z and in dz.
    slope = tl.load(logp_grad + row, mask=here, other=0.0) * inv_temperature
    log_p = z * inv_temperature - tl.load(lse + row, mask=here, other=0.0)[:, None]
    pull = slope[:, None]
    if ENTROPY:
        entropy_slope = tl.load(entropy_grad + row, mask=here, other=0.0) * inv_temperature
        pull = (slope + entropy_slope * tl.load(entropy + row, mask=here, other=0.0))[:, None]
        pull += entropy_slope[:, None] * log_p
    # The target's share is added afterwards, element by element in place: selecting it first spills registers.
    dz = -tl.exp(log_p) * pull
    dz = tl.where(column[None, :] == target[:, None], dz + slope[:, None], dz)
    at = d_logits + row.to(tl.int64)[:, None] * d_logits_stride + column[None, :]
    tl.store(at, dz.to(d_logits.dtype.element_ty), mask=here[:, None])


def forward(hidden, weight, targets, inv_temperature, vocab_size, want_entropy):
    """hidden [N, H], weight [V, H], targets [N] -> logp, lse, entropy or None: [N] float32 (float64 for float64)."""
    hidden, targets = unit_stride(hidden), targets.contiguous()
    rows, width = hidden.shape
    acc, acc_tl = configs.accumulator(hidden.dtype)
    launch = configs.linear(hidden.device, hidden.dtype)
    merge = configs.elementwise(configs.MERGE, hidden.device)
    block_n, block_v = launch.constants["BLOCK_N"], launch.constants["BLOCK_V"]
    logp, lse, target_logits = (hidden.new_empty(rows, dtype=acc) for _ in range(3))
    entropy = hidden.new_empty(rows, dtype=acc) if want_entropy else None
    tiles = triton.cdiv(vocab_size, block_v)
    sums = 3 if want_entropy else 2
    wave = max(SCRATCH_BYTES // (sums * tiles * acc.itemsize) // block_n, 1) * block_n
    parts = hidden.new_empty(sums, tiles * min(wave, rows), dtype=acc)
    for start in range(0, rows, wave):
        part = slice(start, min(start + wave, rows))
        size = part.stop - start
        partial_sums_kernel[(triton.cdiv(size, block_n) * tiles,)](
            hidden[part],
            weight,
            targets[part],
            parts[0],
            parts[1],
            parts[-1],
            target_logits[part],
            size,
            vocab_size,
            width,
            hidden.stride(0),
            weight.stride(0),
            inv_temperature,
            ENTROPY=want_entropy,
            ACC=acc_tl,
            **launch.options(),
        )
        merge_kernel[(triton.cdiv(size, merge.constants["BLOCK_N"]),)](
            parts[0],
            parts[1],
            parts[-1],
            target_logits[part],
            logp[part],
            lse[part],
            entropy[part] if want_entropy else lse,
            size,
            tiles,
            ENTROPY=want_entropy,
            ACC=acc_tl,
            **merge.options(),
        )
    return logp, lse, entropy


def backward(
    hidden,
    weight,
    targets,
    lse,
    logp_grad,
    entropy_grad,
    entropy,
    inv_temperature,
    vocab_size,
    need_hidden,
    need_weight,
):
    """-> d_hidden [N, H] or None, d_weight [V, H] or None, in the dtypes of hidden and weight."""
    hidden = unit_stride(hidden)
    rows, width = hidden.shape
    acc, _ = configs.accumulator(hidden.dtype)
    wave, chunk = split(rows, vocab_size, width, hidden.dtype.itemsize)
    d_hidden = hidden.new_zeros(rows, width, dtype=acc) if need_hidden else None
    d_weight = torch.empty_like(weight) if need_weight else None
    if need_weight:
        d_weight[vocab_size if rows else 0 :].zero_()
    scratch = hidden.new_empty(wave, padded(chunk))
    for first in range(0, vocab_size if rows else 0, chunk):
        w = weight[first : min(first + chunk, vocab_size)]
        d_w = torch.zeros_like(w, dtype=acc) if need_weight and wave < rows else None
        for start in range(0, rows, wave):
            part = slice(start, min(start + wave, rows))
            d_logits = scratch[: part.stop - start, : len(w)]
            logit_gradient(
                hidden[part],
                w,
                targets[part],
                lse[part],
                logp_grad[part],
                None if entropy_grad is None else entropy_grad[part],
                None if entropy_grad is None else entropy[part],
                first,
                inv_temperature,
                d_logits,
            )
            if need_hidden:
                add_product(d_hidden[part], d_logits, w)
            if d_w is not None:
                add_product(d_w, d_logits.T, hidden[part])
            elif need_weight:
                torch.mm(d_logits.T, hidden, out=d_weight[first : first + len(w)])
        if d_w is not None:
            d_weight[first : first + len(w)] = d_w
    return d_hidden.to(hidden.dtype) if need_hidden else None, d_weight


def logit_gradient(
    hidden, weight, targets, lse, logp_grad, entropy_grad, entropy, first_column, inv_temperature, d_logits
):
    """Fills d_logits [N, chunk]: the gradient of hidden weight^T for the chunk of the vocabulary that begins at
    first_column and whose rows `weight` is. Rows of d_logits have room for padded(chunk) numbers."""
    rows, width = hidden.shape
    columns = len(weight)
    acc, acc_tl = configs.accumulator(hidden.dtype)
    launch = configs.linear(hidden.device, hidden.dtype)
    block_n, block_v = launch.constants["BLOCK_N"], launch.constants["BLOCK_V"]
    with_entropy = entropy_grad is not None
    logp_grad = logp_grad.to(acc).contiguous()
    entropy_grad = entropy_grad.to(acc).contiguous() if with_entropy else logp_grad
    logit_gradient_kernel[(triton.cdiv(rows, block_n) * triton.cdiv(columns, block_v),)](
        hidden,
        weight,
        targets.contiguous(),
        lse,
        logp_grad,
        entropy_grad,
        entropy if with_entropy else lse,
        d_logits,
        rows,
        columns,
        width,
        first_column,
        hidden.stride(0),
        weight.stride(0),
        d_logits.stride(0),
        inv_temperature,
        ENTROPY=with_entropy,
        ACC=acc_tl,
        **launch.options(),
    )


def split(rows, columns, width, itemsize):
    """-> rows a wave, columns a chunk, such that dZ [wave, chunk] and, where several waves add to one chunk of dW, its
    sum in fp32 (float64 for float64) stay within SCRATCH_BYTES."""
    fit = SCRATCH_BYTES // (max(rows, 1) * itemsize) // ROW_PADDING * ROW_PADDING
    if fit >= min(CHUNK, columns):
        return rows, min(fit, columns)
    sum_of_row = width * max(itemsize, 4)
    quarter = SCRATCH_BYTES // 4 // sum_of_row // ROW_PADDING * ROW_PADDING
    chunk = min(CHUNK, columns, max(quarter, ROW_PADDING))
    wave = (SCRATCH_BYTES - chunk * sum_of_row) // (padded(chunk) * itemsize)
    return min(max(wave // 128, 1) * 128, rows), chunk


def padded(columns):
    return triton.cdiv(columns, ROW_PADDING) * ROW_PADDING


def add_product(total, a, b):
    """total += a b, with the sum kept in the dtype of total."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, out=total)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), out=total)


def unit_stride(hidden):
    """Rows may lie anywhere, the numbers of a row must be neighbours: loads of 16 bytes need it."""
    return hidden if hidden.stride(1) == 1 else hidden.contiguous()
