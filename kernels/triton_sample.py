"""From logits to tokens: temperature, top-k, top-p and the log-prob, one program a row, nothing read back.

A token is found by inverting the cumulative distribution with one uniform number a row. Without a filter the ids are in
the order of the vocabulary. With top-k or top-p they are in falling order of their logits, as if they were sorted, but
nothing is: a logit that is the k-th largest, that closes the nucleus, or at which the sum passes the uniform number is
found by bisection on the bits of the logit, each step one read of the row (from L2). Weights are fp32, sums float64.

Logits that are not finite raise a flag, which the host reads when it reads the tokens.
"""

import torch
import triton
import triton.language as tl

from . import configs


@triton.jit
def _block(
    logits: tl.tensor,
    row: tl.tensor,
    start: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Columns and fp32 logits [R, BLOCK_V]; -inf past the end."""
    column = start + tl.arange(0, BLOCK_V)[None, :]
    inside = (row < rows) & (column < columns)
    return column, tl.load(logits + row * row_stride + column, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def _key(z: tl.tensor) -> tl.tensor:
    """int64 in the order of fp32 z."""
    bits = z.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _from(
    logits: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    top: tl.tensor,
    temperature: tl.tensor,
    key: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """How many logits have at least this key, and the sum of their weights [R, 1]."""
    count = tl.zeros((BLOCK_R, 1), tl.int64)
    mass = tl.zeros((BLOCK_R, 1), tl.float64)
    for start in range(0, columns, BLOCK_V):
        _, z = _block(logits, row, start, rows, columns, row_stride, BLOCK_V)
        here = _key(z) >= key
        count += tl.sum(here.to(tl.int64), 1)[:, None]
        mass += tl.sum(tl.where(here, tl.exp((z - top) / temperature), 0.0).to(tl.float64), 1)[:, None]
    return count, mass


@triton.jit
def _bisect(
    logits: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    top: tl.tensor,
    temperature: tl.tensor,
    least_count: tl.tensor,
    least_mass: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> tl.tensor:
    """The largest key [R, 1] from which on there are at least least_count logits of a mass of at least least_mass."""
    low = tl.zeros((BLOCK_R, 1), tl.int64) - 2147483648
    high = _key(top) + 1
    for _ in range(0, 32):
        middle = (low + high) >> 1
        count, mass = _from(logits, row, rows, columns, row_stride, top, temperature, middle, BLOCK_R, BLOCK_V)
        enough = (count >= least_count) & (mass >= least_mass)
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low


@triton.jit
def sample_kernel(
    logits: tl.tensor,
    uniforms: tl.tensor,
    ids: tl.tensor,
    logp: tl.tensor,
    flags: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.float64,
    temperature: tl.float64,
    GREEDY: tl.constexpr,
    FILTER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """BLOCK_R rows -> ids, log-probs and flags [N]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    temperature = tl.full((), temperature, tl.float32)
    top_p = tl.full((), top_p, tl.float64)
    top = tl.full((BLOCK_R, 1), float("-inf"), tl.float32)
    for start in range(0, columns, BLOCK_V):
        _, z = _block(logits, row, start, rows, columns, row_stride, BLOCK_V)
        top = tl.maximum(top, tl.max(z, 1)[:, None])
    own_total = tl.zeros((BLOCK_R, 1), tl.float64)
    total = tl.zeros((BLOCK_R, 1), tl.float64)
    chosen = tl.zeros((BLOCK_R, 1), tl.int64)  # greedy: the first of the largest; else the last with a weight
    first_best = tl.zeros((BLOCK_R, 1), tl.int64) + columns
    for start in range(0, columns, BLOCK_V):
        column, z = _block(logits, row, start, rows, columns, row_stride, BLOCK_V)
        own_total += tl.sum(tl.exp(z - top).to(tl.float64), 1)[:, None]
        weight = tl.exp((z - top) / temperature)
        total += tl.sum(weight.to(tl.float64), 1)[:, None]
        chosen = tl.maximum(chosen, tl.max(tl.where(weight > 0, column, 0), 1)[:, None].to(tl.int64))
        first_best = tl.minimum(first_best, tl.min(tl.where(z == top, column, columns), 1)[:, None].to(tl.int64))
    uniform = tl.load(uniforms + row, mask=row < rows, other=0.0)
    if GREEDY:
        chosen = first_best
    elif FILTER:
        everything = tl.zeros((BLOCK_R, 1), tl.int64) + 1
        # The k-th largest logit; of equal ones as many as there is room for.
        last_key = tl.zeros((BLOCK_R, 1), tl.int64) - 2147483648
        whole = total
        if top_k > 0:
            last_key = _bisect(
                logits,
                row,
                rows,
                columns,
                row_stride,
                top,
                temperature,
                everything * top_k,
                total * 0,
                BLOCK_R,
                BLOCK_V,
            )
            count, mass = _from(logits, row, rows, columns, row_stride, top, temperature, last_key, BLOCK_R, BLOCK_V)
            more, above = _from(
                logits, row, rows, columns, row_stride, top, temperature, last_key + 1, BLOCK_R, BLOCK_V
            )
            whole = above + (mass - above) / (count - more).to(tl.float64) * (top_k - more).to(tl.float64)
        # The logit that closes the nucleus, and the mass with it.
        limit = whole * top_p
        nucleus = _bisect(logits, row, rows, columns, row_stride, top, temperature, everything, limit, BLOCK_R, BLOCK_V)
        nucleus = tl.maximum(nucleus, last_key)
        count, mass = _from(logits, row, rows, columns, row_stride, top, temperature, nucleus, BLOCK_R, BLOCK_V)
        more, above = _from(logits, row, rows, columns, row_stride, top, temperature, nucleus + 1, BLOCK_R, BLOCK_V)
        each = (mass - above) / (count - more).to(tl.float64)
        needed = tl.minimum(tl.maximum(tl.ceil((limit - above) / each), 1.0), (count - more).to(tl.float64))
        kept = tl.minimum(above + needed * each, whole)
        # The logit at which the sum passes the uniform number; of equal ones the one it falls on.
        target = uniform * kept
        past = _bisect(
            logits,
            row,
            rows,
            columns,
            row_stride,
            top,
            temperature,
            everything,
            target + kept * 1e-17,
            BLOCK_R,
            BLOCK_V,
        )
        past = tl.maximum(past, nucleus)
        count, mass = _from(logits, row, rows, columns, row_stride, top, temperature, past, BLOCK_R, BLOCK_V)
        more, above = _from(logits, row, rows, columns, row_stride, top, temperature, past + 1, BLOCK_R, BLOCK_V)
        each = (mass - above) / (count - more).to(tl.float64)
        place = tl.minimum(((target - above) / each).to(tl.int64), count - more - 1)
        place = tl.maximum(place, 0)
        seen = tl.zeros((BLOCK_R, 1), tl.int64)
        for start in range(0, columns, BLOCK_V):
            column, z = _block(logits, row, start, rows, columns, row_stride, BLOCK_V)
            equal = (_key(z) == past).to(tl.int64)
            number = seen + tl.cumsum(equal, 1)
            mine = (equal > 0) & (number == place + 1)
            chosen = tl.where(
                tl.max(mine.to(tl.int32), 1)[:, None] > 0, tl.sum(tl.where(mine, column, 0), 1)[:, None], chosen
            )
            seen += tl.sum(equal, 1)[:, None]
    else:
        target = uniform * total
        before = tl.zeros((BLOCK_R, 1), tl.float64)
        for start in range(0, columns, BLOCK_V):
            _, z = _block(logits, row, start, rows, columns, row_stride, BLOCK_V)
            weight = tl.exp((z - top) / temperature).to(tl.float64)
            sums = before + tl.cumsum(weight, 1)
            after = before + tl.sum(weight, 1)[:, None]
            place = start + tl.sum((sums <= target).to(tl.int64), 1)[:, None]
            chosen = tl.where((before <= target) & (after > target), tl.minimum(place, chosen), chosen)
            before = after
    chosen = tl.minimum(chosen, columns - 1)
    own = tl.load(logits + row * row_stride + chosen, mask=row < rows, other=0.0).to(tl.float32)
    log_total = tl.log(own_total)
    broken = (own_total != own_total) | (tl.abs(top) == float("inf")) | (own_total == float("inf"))
    tl.store(ids + row, chosen, mask=row < rows)
    tl.store(logp + row, ((own - top).to(tl.float64) - log_total).to(tl.float32), mask=row < rows)
    tl.store(flags + row, broken.to(tl.int32), mask=row < rows)


def sample(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits [R, V] of any row stride, uniforms float64 [R] -> ids int64, log-probs float32, flags int32, all [R]."""
    rows, columns = logits.shape
    launch = configs.elementwise(configs.SAMPLE, logits.device)
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logp = torch.empty(rows, dtype=torch.float32, device=logits.device)
    flags = torch.empty(rows, dtype=torch.int32, device=logits.device)
    top_k = top_k if top_k < columns else 0
    if rows:
        sample_kernel[(triton.cdiv(rows, launch.constants["BLOCK_R"]),)](
            logits,
            uniforms,
            ids,
            logp,
            flags,
            rows,
            columns,
            logits.stride(0),
            top_k,
            top_p,
            temperature or 1.0,
            GREEDY=temperature == 0,
            FILTER=top_k > 0 or top_p < 1,
            **launch.options(),
        )
    return ids, logp, flags
