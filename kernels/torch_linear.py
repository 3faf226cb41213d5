"""log p(target) of a linear head and of stored logits in torch, in bounded scratch: on any device, fast on a CPU.

Signatures and meaning of every primitive: the docstring of dispatch.py. The [N, V] logits are walked in blocks that stay in or
near the cache, in buffers that are allocated once a call (fresh pages cost as much as a pass). Scratch is at most 128 MiB
(SCRATCH_BYTES), whatever N and V, beside 12 bytes for each element of hidden. What a loss in one pass keeps has that budget.

How a bf16 head is multiplied on a CPU:
- Forward: torch has no bf16 product with fp32 output on a CPU, and logits rounded to bf16 ruin ratios. bf16 numbers are
  exact in fp32, so both sides are widened and multiplied with oneDNN allowed to use its bf16 units on fp32 tensors:
  exact products, fp32 sums, fp32 logits. (The units are AMX; without it oneDNN multiplies in fp32, at half the rate of
  a bf16 product and still twice that of torch's default library on some chips.)
- Backward: the log-sum-exp is known, so the product subtracts it: hidden gets columns that hold it in bf16 parts,
  weight gets columns of ones, and what is rounded to bf16 is log p, not the logit. Where p matters log p is small, so
  the rounding is relative to log p (at p = 1 it is exact) and p is good to bf16. The row's coefficient is folded into the
  [N, H] operands, so that the only pass over a block is one exp.
- Products of gradients are bf16 with fp32 sums inside; across blocks they are added in fp32, and each row of d_weight is
  written once.

Left out on purpose: torch.compile and compiled C (a start in seconds on a bare machine is worth more here).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .numbers import (
    FLOOR,
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

SCRATCH_BYTES = 128 * 2**20
FORWARD_BLOCK = 8 * 2**20  # bytes of a block of logits, and of as many log-probs
FORWARD_COLUMNS = 2048  # a block is at least this wide where its operands allow: a narrower one makes a slow product
BACKWARD_BLOCK = 16 * 2**20  # bytes of a block of probabilities
BACKWARD_COLUMNS = 1024
KEPT_COLUMNS = 1024  # of a block of the vocabulary: its rows of the weight stay in the cache
ALIGNED = 64  # a row of a block is a multiple of so many numbers: products of odd widths reach two thirds of the speed
BUDGET = OnePassBudget(limit=SCRATCH_BYTES, wide=True)


def _block(rows: int, columns: int, size: int, elements: int, min_columns: int) -> tuple[int, int]:
    """Rows and columns of a block of at most `elements`, all rows before more columns; the operands [rows, size] and
    [columns, size] are not larger than the block."""
    side = max(256, elements // size)
    width = min(side, max(min_columns, elements // max(rows, 1)))
    width = min(columns, max(width // ALIGNED, 1) * ALIGNED)
    return max(1, min(rows, side, elements // width)), width


def aligned(columns: int) -> int:
    """The next multiple of ALIGNED."""
    return -(-columns // ALIGNED) * ALIGNED


@contextmanager
def bf16_units(dtype: torch.dtype) -> Iterator[None]:
    """Inside, fp32 products on a CPU may round their operands to bf16: exact for operands that came from bf16.

    The switch is the process's; another thread that multiplies fp32 matrices meanwhile is affected too."""
    if dtype != torch.bfloat16:
        yield
        return
    switch = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 (a module that sets its attributes at run time)
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


def forward(hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax, want_entropy: bool) -> RowNumbers:
    inv_temperature, vocab_size = softmax
    acc = accumulator(hidden.dtype)
    tokens = hidden.shape[0]
    targets = targets.long()
    rows, columns = _block(tokens, vocab_size, hidden.shape[1], FORWARD_BLOCK // acc.itemsize, FORWARD_COLUMNS)
    starts = range(0, vocab_size, columns)
    scratch = hidden.new_empty(2, rows * columns, dtype=acc)
    # One maximum, log of the sum above it and entropy for each block of the vocabulary, merged at the end.
    tops = hidden.new_empty(len(starts), tokens, dtype=acc)
    log_totals = torch.empty_like(tops)
    entropy_parts = torch.empty_like(tops) if want_entropy else None
    picked = hidden.new_empty(tokens, dtype=acc)
    with bf16_units(hidden.dtype):
        for c, start in enumerate(starts):
            w = weight[start : min(start + columns, vocab_size)].to(acc)
            width = len(w)
            for r in range(0, tokens, rows):
                part = slice(r, min(r + rows, tokens))
                z, log_p = scratch[:, : (part.stop - r) * width].view(2, -1, width)
                torch.mm(hidden[part].to(acc), w.T, out=z)
                if inv_temperature != 1:
                    z *= inv_temperature
                torch.log_softmax(z, 1, out=log_p)
                torch.amax(z, 1, out=tops[c, part])
                log_totals[c, part] = -log_p.amax(1)
                column = targets[part] - start
                inside = (column >= 0) & (column < width)
                here = z.gather(1, column.clamp_(0, width - 1)[:, None])[:, 0]
                picked[part] = torch.where(inside, here, picked[part])
                if entropy_parts is not None:
                    entropy_parts[c, part] = -torch.exp(log_p, out=z).mul_(log_p).sum(1)
    return merge(tops, log_totals, entropy_parts, picked)


def merge(tops: Tensor, log_totals: Tensor, entropies: Tensor | None, target_logits: Tensor) -> RowNumbers:
    """Blocks of the vocabulary [blocks, N] -> a row's numbers [N]. The sums over blocks are made in
    float64: they are few, and a log-prob near zero is their difference."""
    top = tops.amax(0)
    log_parts = (tops - top).double() + log_totals
    log_total = log_parts.logsumexp(0)
    logp = ((target_logits - top) - log_total).to(top.dtype)
    entropy = None
    if entropies is not None:
        # H = sum over blocks of P(block) (H(block) - log P(block))
        log_share = log_parts - log_total
        entropy = (log_share.exp() * (entropies - log_share)).sum(0).to(top.dtype)
    return RowNumbers(logp, top, log_total.to(top.dtype), entropy)


def _gradient_dtype(hidden: Tensor, exact: bool) -> torch.dtype:
    """The dtype of the backward products: bf16 where the chip multiplies it, else the accumulator's."""
    if hidden.dtype != torch.bfloat16 or exact:
        return accumulator(hidden.dtype)
    on_chip = hidden.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if on_chip else torch.float32


def _offsets(top: Tensor, log_total: Tensor, factor: float, dtype: torch.dtype) -> list[Tensor]:
    """factor (top + log_total) as a sum of tensors of dtype: both apart, or three of bf16 that are exact to fp32."""
    if dtype != torch.bfloat16:
        return [top * factor, log_total * factor]
    parts, rest = [], (top + log_total) * factor
    for _ in range(3):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1]
    return parts


def _fill(block: Tensor, column: Tensor, at_target: Tensor, entropies: tuple[Tensor, Tensor, Tensor] | None) -> None:
    """log p [n, columns] -> p - [j = target], or with entropies (entropy, its gradient and that of the log-prob, each [n]) the
    whole gradient but its sign. column [n]: the target's place in the block, perhaps outside it."""
    if entropies is None:
        block.exp_()
    else:
        entropy, entropy_grad, logp_grad = (t[:, None] for t in entropies)
        p = block.exp()
        block.add_(entropy).mul_(entropy_grad).add_(logp_grad).mul_(p)
    inside = (column >= 0) & (column < block.shape[1])
    column = column.clamp(0, block.shape[1] - 1)[:, None]
    value = torch.where(inside[:, None], at_target[:, None].to(block.dtype), block.gather(1, column))
    block.scatter_(1, column, value)


def backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softmax: Softmax,
    known: RowNumbers,
    upstream: Upstream,
    needs: Needs,
) -> tuple[Tensor | None, Tensor | None]:
    # A block B holds p - [j = target], so that d_hidden = -diag(s) B W and d_weight = -B^T diag(s) X with s the upstream
    # gradient over the temperature. With an entropy gradient the factor differs from column to column and goes into B.
    inv_temperature, vocab_size = softmax
    logp, top, log_total, entropy = known
    acc = accumulator(hidden.dtype)
    entropies = None
    if upstream.entropy is not None and entropy is not None:
        entropies = entropy, upstream.entropy.to(acc), upstream.logp.to(acc)
    work = _gradient_dtype(hidden, exact=upstream.entropy is not None)
    tokens, size = hidden.shape
    targets, logp_grad = targets.long(), upstream.logp.to(acc)
    if entropies is None:
        at_target, scale = logp.expm1(), logp_grad * -inv_temperature
    else:
        at_target = logp_grad * logp.expm1() + entropies[1] * logp.exp() * (logp + entropies[0])
        scale = torch.full_like(logp_grad, -inv_temperature)

    x = torch.cat((hidden.to(work), torch.stack(_offsets(top, log_total, -1 / inv_temperature, work), 1)), 1)
    scaled = (hidden * scale[:, None]).to(work)
    d_hidden = hidden.new_zeros(tokens, size, dtype=acc) if needs.hidden else None
    d_weight = torch.empty_like(weight) if needs.weight else None
    if d_weight is not None:
        d_weight[vocab_size:] = 0
    rows, columns = _block(tokens, vocab_size, size, BACKWARD_BLOCK // work.itemsize, BACKWARD_COLUMNS)
    scratch = hidden.new_empty(rows * columns, dtype=work)
    w_buffer = hidden.new_ones(columns, x.shape[1], dtype=work)
    for start in range(0, vocab_size, columns):
        stop = min(start + columns, vocab_size)
        w = w_buffer[: stop - start]
        w[:, :size] = weight[start:stop]
        d_w = weight.new_zeros(stop - start, size, dtype=acc) if needs.weight and rows != tokens else None
        for r in range(0, tokens, rows):
            part = slice(r, min(r + rows, tokens))
            block = scratch[: (part.stop - r) * len(w)].view(-1, len(w))
            torch.mm(x[part], w.T, out=block)
            if inv_temperature != 1:
                block *= inv_temperature
            parts = None if entropies is None else (entropies[0][part], entropies[1][part], entropies[2][part])
            _fill(block, targets[part] - start, at_target[part], parts)
            if d_hidden is not None:
                add_product(d_hidden[part], block, w[:, :size])
            if d_w is not None:
                add_product(d_w, block.T, scaled[part])
            elif d_weight is not None and d_weight.dtype == work:
                torch.mm(block.T, scaled, out=d_weight[start:stop])
            elif d_weight is not None:
                d_weight[start:stop] = block.T @ scaled
        if d_weight is not None and d_w is not None:
            d_weight[start:stop] = d_w
    return None if d_hidden is None else d_hidden.mul_(scale[:, None]).to(hidden.dtype), d_weight


def kept_forward(hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax) -> Kept:
    """What is kept is log p whole, so there is no state beside it."""
    inv_temperature, vocab_size = softmax
    acc = accumulator(hidden.dtype)
    # Padded with logits of minus infinity, so that every row starts at an even address: products are faster there.
    whole = hidden.new_empty(len(hidden), aligned(vocab_size), dtype=acc)
    whole[:, vocab_size:] = -torch.inf
    log_p, x = whole[:, :vocab_size], hidden.to(acc)
    with bf16_units(hidden.dtype):
        for start in range(0, vocab_size, KEPT_COLUMNS):
            stop = min(start + KEPT_COLUMNS, vocab_size)
            # In place, as torch.compile takes no `out` with gaps; beta 0 does not read what stood there.
            log_p[:, start:stop].addmm_(x, weight[start:stop].to(acc).T, beta=0, alpha=inv_temperature)
    torch.log_softmax(whole, 1, out=whole)
    return Kept(log_p.gather(1, targets.long()[:, None])[:, 0], log_p)


def kept_gradient(
    kept: Kept, targets: Tensor, logp_grad: Tensor, inv_temperature: float, picked: Tensor | None
) -> Tensor:
    logp, log_p = kept.logp, kept.numbers
    if picked is not None:
        log_p = pick_rows(log_p, picked)
        targets, logp, logp_grad = targets[picked], logp[picked], logp_grad[picked]
    scale = logp_grad.to(log_p.dtype)[:, None] * -inv_temperature
    log_p.exp_().mul_(scale)
    return log_p.scatter_(1, targets.long()[:, None], logp.expm1()[:, None] * scale)


def pick_rows(table: Tensor, picked: Tensor) -> Tensor:
    """table[picked], picked ascending, moved to the table's own first rows: a row that is still to be read lies at or
    behind the one that is written."""
    at_once = max(1, FORWARD_BLOCK // max(1, table.shape[1] * table.itemsize))
    for start in range(0, len(picked), at_once):
        part = picked[start : start + at_once]
        table[start : start + len(part)] = table[part]
    return table[: len(picked)]


def gather_forward(logits: Tensor, targets: Tensor, softmax: Softmax, want_entropy: bool) -> RowNumbers:
    inv_temperature, vocab_size = softmax
    acc = accumulator(logits.dtype)
    tokens = logits.shape[0]
    logp, top, log_total = (logits.new_empty(tokens, dtype=acc) for _ in range(3))
    entropy = torch.empty_like(logp) if want_entropy else None
    rows = max(1, min(tokens, FORWARD_BLOCK // acc.itemsize // vocab_size))
    scratch = logits.new_empty(2, rows, vocab_size, dtype=acc)
    for r in range(0, tokens, rows):
        part = slice(r, min(r + rows, tokens))
        z, log_p = scratch[:, : part.stop - r]
        z.copy_(logits[part, :vocab_size]).mul_(inv_temperature)  # a bf16 product would be rounded to bf16
        torch.log_softmax(z, 1, out=log_p)
        torch.amax(z, 1, out=top[part])
        log_total[part] = -log_p.amax(1)
        logp[part] = log_p.gather(1, targets[part].long()[:, None])[:, 0]
        if entropy is not None:
            entropy[part] = -torch.exp(log_p, out=z).mul_(log_p.clamp_(min=FLOOR)).sum(1)
    return RowNumbers(logp, top, log_total, entropy)


def gather_backward(
    logits: Tensor, targets: Tensor, softmax: Softmax, known: RowNumbers, upstream: Upstream, inplace: bool
) -> Tensor:
    inv_temperature, vocab_size = softmax
    acc = accumulator(logits.dtype)
    tokens = logits.shape[0]
    row = row_coefficients(known, upstream, inv_temperature)
    d_logits = logits if inplace else torch.empty_like(logits)
    d_logits[:, vocab_size:] = 0
    rows = max(1, min(tokens, FORWARD_BLOCK // acc.itemsize // vocab_size))
    scratch = logits.new_empty(rows, vocab_size, dtype=acc)
    for r in range(0, tokens, rows):
        part = slice(r, min(r + rows, tokens))
        z = scratch[: part.stop - r]
        z.copy_(logits[part, :vocab_size]).mul_(inv_temperature)  # a bf16 product would be rounded to bf16
        z -= known.top[part, None]
        if row.linear is None:
            z.exp_().mul_(row.constant[part, None])
        else:
            e = z.exp()
            z.clamp_(min=FLOOR).mul_(row.linear[part, None]).add_(row.constant[part, None]).mul_(e)
        z.scatter_(1, targets[part].long()[:, None], row.at_target[part, None])
        d_logits[part, :vocab_size] = z
    return d_logits
