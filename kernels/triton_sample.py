"""From logits to tokens: temperature, top-k, top-p and the log-prob, one program a row, nothing read back.

A token is found by inverting the cumulative distribution with one uniform number a row. Without a filter the ids are in
the order of the vocabulary. With top-k or top-p they are in falling order of their logits, as if they were sorted, but
nothing is: a logit that is the k-th largest, that closes the nucleus, or at which the sum passes the uniform number is
found by bisection on the bits of the logit. Of equal logits the lowest id comes first.

A bisection of the whole row would read it 32 times. So one pass first gathers the candidates, which a filter can keep:

    top-p   z / temperature >= top / temperature - (ln V - ln(1 - p)): what lies below weighs less than 1 - p together
    top-k   z >= the k-th largest of the lanes' maxima, which is not above the k-th largest of all

and the bisections run on these few numbers in registers. A row with more candidates than there is room for (nearly uniform
logits) is done by a second kernel, which reads the whole row at each step; for other rows it ends at once. Weights are fp32,
sums float64. Logits that are not finite raise a flag, which the host reads when it reads the tokens.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs

LOWEST: tl.constexpr = tl.constexpr(-(2**31))  # below every key
LOWEST_FINITE: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
IMPOSSIBLE: tl.constexpr = tl.constexpr(-(2**31) + 2**23 - 1)  # the key of minus infinity


class Logits(NamedTuple):
    """Logits [R, columns] of which the vocabulary counts. A multiple of 16 columns allows 16 bytes a load."""

    at: Any
    row_stride: Any
    columns: Any


class Drawn(NamedTuple):
    """What a kernel writes of each row [R]."""

    ids: Any
    logp: Any
    flags: Any


@triton.jit
def _block(
    logits: Logits, row: tl.tensor, start: tl.tensor, rows: tl.tensor, vocab: tl.tensor, BLOCK_V: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Columns and fp32 logits [R, BLOCK_V]; -inf past the end."""
    column = start + tl.arange(0, BLOCK_V)[None, :]
    inside = (row < rows) & (column < logits.columns)
    z = tl.load(logits.at + row * logits.row_stride + column, mask=inside, other=float("-inf")).to(tl.float32)
    return column, tl.where(column < vocab, z, float("-inf"))


@triton.jit
def _key(z: tl.tensor) -> tl.tensor:
    """int32 in the order of fp32 z."""
    bits = z.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _any(rows: tl.tensor) -> tl.tensor:
    """Whether it is so for any row [R, 1]."""
    return tl.max(tl.max(rows.to(tl.int32), 1), 0) > 0


@triton.jit
def _totals(
    logits: Logits,
    row: tl.tensor,
    rows: tl.tensor,
    vocab: tl.tensor,
    top: tl.tensor,
    temperature: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The sums of exp(z - top) and of exp((z - top) / temperature) [R, 1], a sum a lane until the end."""
    own = tl.zeros((BLOCK_R, BLOCK_V), tl.float64)
    whole = tl.zeros((BLOCK_R, BLOCK_V), tl.float64)
    for start in range(0, logits.columns, BLOCK_V):
        _, z = _block(logits, row, start, rows, vocab, BLOCK_V)
        own += tl.exp(z - top).to(tl.float64)
        whole += tl.exp((z - top) / temperature).to(tl.float64)
    return tl.sum(own, 1)[:, None], tl.sum(whole, 1)[:, None]


@triton.jit
def _store(
    drawn: Drawn,
    row: tl.tensor,
    here: tl.tensor,
    chosen: tl.tensor,
    own: tl.tensor,
    top: tl.tensor,
    own_total: tl.tensor,
) -> None:
    """The id, the model's own log-prob of it, and whether the row is not finite."""
    broken = (own_total != own_total) | (tl.abs(top) == float("inf")) | (own_total == float("inf"))
    tl.store(drawn.ids + row, chosen.to(tl.int64), mask=here)
    tl.store(drawn.logp + row, ((own - top).to(tl.float64) - tl.log(own_total)).to(tl.float32), mask=here)
    tl.store(drawn.flags + row, broken.to(tl.int32), mask=here)


@triton.jit(do_not_specialize=["rows", "vocab"])
def sample_kernel(
    logits: Logits,
    uniforms: tl.tensor,
    drawn: Drawn,
    rows: tl.tensor,
    vocab: tl.tensor,
    temperature: tl.float64,
    GREEDY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Without a filter: BLOCK_R rows, in the order of the vocabulary."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    temperature = tl.full((), temperature, tl.float32)
    top = tl.full((BLOCK_R, 1), float("-inf"), tl.float32)
    for start in range(0, logits.columns, BLOCK_V):
        _, z = _block(logits, row, start, rows, vocab, BLOCK_V)
        top = tl.maximum(top, tl.max(z, 1)[:, None])
    own_total, total = _totals(logits, row, rows, vocab, top, temperature, BLOCK_R, BLOCK_V)
    if GREEDY:
        chosen = tl.zeros((BLOCK_R, 1), tl.int32) + vocab
        for start in range(0, logits.columns, BLOCK_V):
            column, z = _block(logits, row, start, rows, vocab, BLOCK_V)
            chosen = tl.minimum(chosen, tl.min(tl.where(z == top, column, vocab), 1)[:, None])
    else:
        target = tl.load(uniforms + row, mask=row < rows, other=0.0) * total
        before = tl.zeros((BLOCK_R, 1), tl.float64)
        chosen = tl.zeros((BLOCK_R, 1), tl.int32)
        found = tl.zeros((BLOCK_R, 1), tl.int32)
        for start in range(0, logits.columns, BLOCK_V):
            column, z = _block(logits, row, start, rows, vocab, BLOCK_V)
            weight = tl.exp((z - top) / temperature).to(tl.float64)
            after = before + tl.sum(weight, 1)[:, None]
            # Until the sum has passed the uniform number, the last id with a weight: rounding may never let it pass.
            last = tl.max(tl.where(weight > 0, column, 0), 1)[:, None]
            passes = (found == 0) & (after > target)
            if _any(passes):
                place = start + tl.sum((before + tl.cumsum(weight, 1) <= target).to(tl.int32), 1)[:, None]
                last = tl.where(passes, tl.minimum(place, last), last)
            chosen = tl.where(found == 0, tl.maximum(chosen, last), chosen)
            found = tl.where(passes, 1, found)
            before = after
    chosen = tl.minimum(chosen, vocab - 1)
    own = tl.load(logits.at + row * logits.row_stride + chosen, mask=row < rows, other=0.0).to(tl.float32)
    _store(drawn, row, row < rows, chosen, own, top, own_total)


@triton.jit
def _at_least(key: tl.tensor, weight: tl.tensor, bound: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """How many keys reach the bound, and the sum of their weights [R, 1]."""
    here = key >= bound
    return tl.sum(here.to(tl.int32), 1)[:, None], tl.sum(tl.where(here, weight, 0.0), 1)[:, None]


@triton.jit
def _largest_of_count(key: tl.tensor, high: tl.tensor, least: tl.tensor, STEPS: tl.constexpr) -> tl.tensor:
    """The largest key [R, 1] that at least `least` keys reach: of an interval (low, high] of 2^32 keys at most, 32 steps. Fewer
    find one that is not above it."""
    low = tl.zeros_like(high) + LOWEST
    for _ in range(0, STEPS):
        middle = (low + high) >> 1
        enough = tl.sum((key >= middle.to(tl.int32)).to(tl.int32), 1)[:, None] >= least
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low.to(tl.int32)


@triton.jit
def _largest_of_mass(key: tl.tensor, weight: tl.tensor, high: tl.tensor, least: tl.tensor) -> tl.tensor:
    """The largest key [R, 1] from which on the weights add up to `least`."""
    low = tl.zeros_like(high) + LOWEST
    for _ in range(0, 32):
        middle = (low + high) >> 1
        enough = tl.sum(tl.where(key >= middle.to(tl.int32), weight, 0.0), 1)[:, None] >= least
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low.to(tl.int32)


@triton.jit
def _close(
    whole: tl.tensor, limit: tl.tensor, count: tl.tensor, mass: tl.tensor, more: tl.tensor, above: tl.tensor
) -> tl.tensor:
    """The mass of the nucleus that closes within `count` - `more` equal logits; of them as many as are needed."""
    each = (mass - above) / (count - more).to(tl.float64)
    needed = tl.minimum(tl.maximum(tl.ceil((limit - above) / each), 1.0), (count - more).to(tl.float64))
    return tl.minimum(above + needed * each, whole)


@triton.jit
def _place(target: tl.tensor, count: tl.tensor, mass: tl.tensor, more: tl.tensor, above: tl.tensor) -> tl.tensor:
    """On which of `count` - `more` equal logits the target falls."""
    each = (mass - above) / (count - more).to(tl.float64)
    return tl.maximum(tl.minimum(((target - above) / each).to(tl.int32), count - more - 1), 0)


@triton.jit(do_not_specialize=["rows", "vocab", "top_k"])
def sample_candidates_kernel(
    logits: Logits,
    uniforms: tl.tensor,
    drawn: Drawn,
    candidates: tl.tuple,
    rows: tl.tensor,
    vocab: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.float64,
    temperature: tl.float64,
    spread: tl.float64,
    TOP_K: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """With a filter: BLOCK_R rows. candidates: their ids [R, ROOM], and how many there are [R]."""
    of_row, counts = candidates
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    temperature, spread = tl.full((), temperature, tl.float32), tl.full((), spread, tl.float32)
    lanes = tl.full((BLOCK_R, BLOCK_V), float("-inf"), tl.float32)
    for start in range(0, logits.columns, BLOCK_V):
        _, z = _block(logits, row, start, rows, vocab, BLOCK_V)
        lanes = tl.maximum(lanes, z)
    top = tl.max(lanes, 1)[:, None]
    high = _key(top).to(tl.int64) + 1
    if TOP_K:
        bits = tl.maximum(_largest_of_count(_key(lanes), high, top_k, 24), IMPOSSIBLE)  # fewer lanes than k: every id
        cut = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)
    else:
        cut = top - spread * temperature
    cut = tl.maximum(cut, LOWEST_FINITE)  # an impossible id, as those past the vocabulary are here, is no candidate
    own_total, whole = _totals(logits, row, rows, vocab, top, temperature, BLOCK_R, BLOCK_V)
    found = tl.zeros((BLOCK_R, 1), tl.int32)
    for start in range(0, logits.columns, BLOCK_V):
        column, z = _block(logits, row, start, rows, vocab, BLOCK_V)
        take = (z >= cut).to(tl.int32)
        many = tl.sum(take, 1)[:, None]
        if _any(many > 0):
            place = found + tl.cumsum(take, 1) - 1
            here = (take > 0) & (place < ROOM) & (row < rows)
            tl.store(of_row + row * ROOM + place, column, mask=here)
            found += many
    tl.debug_barrier()  # what the other threads have stored is read next
    slot = tl.arange(0, ROOM)[None, :]
    taken = (slot < found) & (row < rows)
    token = tl.load(of_row + row * ROOM + slot, mask=taken, other=0)
    z = tl.load(logits.at + row * logits.row_stride + token, mask=taken, other=float("-inf")).to(tl.float32)
    key, weight = _key(z), tl.exp((z - top) / temperature).to(tl.float64)
    last = tl.zeros((BLOCK_R, 1), tl.int32) + LOWEST
    if TOP_K:  # the k-th largest logit; of equal ones as many as there is room for
        last = _largest_of_count(key, high, top_k, 32)
        count, mass = _at_least(key, weight, last)
        more, above = _at_least(key, weight, last + 1)
        whole = above + (mass - above) / (count - more).to(tl.float64) * (top_k - more).to(tl.float64)
    limit = whole * tl.full((), top_p, tl.float64)
    nucleus = tl.maximum(_largest_of_mass(key, weight, high, limit), last)
    count, mass = _at_least(key, weight, nucleus)
    more, above = _at_least(key, weight, nucleus + 1)
    kept = _close(whole, limit, count, mass, more, above)
    target = tl.load(uniforms + row, mask=row < rows, other=0.0) * kept
    past = tl.maximum(_largest_of_mass(key, weight, high, target + kept * 1e-17), nucleus)
    count, mass = _at_least(key, weight, past)
    more, above = _at_least(key, weight, past + 1)
    equal = ((key == past) & taken).to(tl.int32)
    mine = (equal > 0) & (tl.cumsum(equal, 1) == _place(target, count, mass, more, above) + 1)
    chosen = tl.sum(tl.where(mine, token, 0), 1)[:, None]
    own = tl.sum(tl.where(mine, z, 0.0), 1)[:, None]
    _store(drawn, row, row < rows, chosen, own, top, own_total)
    tl.store(counts + row, found, mask=row < rows)


@triton.jit
def _row_at_least(
    logits: Logits,
    row: tl.tensor,
    rows: tl.tensor,
    vocab: tl.tensor,
    top: tl.tensor,
    temperature: tl.tensor,
    bound: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """_at_least over the whole row."""
    count = tl.zeros((BLOCK_R, 1), tl.int32)
    mass = tl.zeros((BLOCK_R, 1), tl.float64)
    for start in range(0, logits.columns, BLOCK_V):
        column, z = _block(logits, row, start, rows, vocab, BLOCK_V)
        weight = tl.exp((z - top) / temperature).to(tl.float64)
        here = (_key(z) >= bound) & (column < vocab)
        count += tl.sum(here.to(tl.int32), 1)[:, None]
        mass += tl.sum(tl.where(here, weight, 0.0), 1)[:, None]
    return count, mass


@triton.jit
def _row_bisect(
    logits: Logits,
    row: tl.tensor,
    rows: tl.tensor,
    vocab: tl.tensor,
    top: tl.tensor,
    temperature: tl.tensor,
    least_count: tl.tensor,
    least_mass: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> tl.tensor:
    """The largest key [R, 1] from which on there are at least least_count logits of a mass of at least least_mass."""
    low = tl.zeros((BLOCK_R, 1), tl.int64) + LOWEST
    high = _key(top).to(tl.int64) + 1
    for _ in range(0, 32):
        middle = (low + high) >> 1
        bound = middle.to(tl.int32)
        count, mass = _row_at_least(logits, row, rows, vocab, top, temperature, bound, BLOCK_R, BLOCK_V)
        enough = (count >= least_count) & (mass >= least_mass)
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low.to(tl.int32)


@triton.jit(do_not_specialize=["rows", "vocab", "top_k"])
def sample_row_kernel(
    logits: Logits,
    uniforms: tl.tensor,
    drawn: Drawn,
    counts: tl.tensor,
    rows: tl.tensor,
    vocab: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.float64,
    temperature: tl.float64,
    TOP_K: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """With a filter, for the rows that have more candidates [R] than there is room for: from whole rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    mine = tl.load(counts + row, mask=row < rows, other=0) > ROOM
    if not _any(mine):
        return
    temperature = tl.full((), temperature, tl.float32)
    top = tl.full((BLOCK_R, 1), float("-inf"), tl.float32)
    for start in range(0, logits.columns, BLOCK_V):
        _, z = _block(logits, row, start, rows, vocab, BLOCK_V)
        top = tl.maximum(top, tl.max(z, 1)[:, None])
    own_total, whole = _totals(logits, row, rows, vocab, top, temperature, BLOCK_R, BLOCK_V)
    last = tl.zeros((BLOCK_R, 1), tl.int32) + LOWEST
    if TOP_K:
        last = _row_bisect(logits, row, rows, vocab, top, temperature, top_k, 0.0, BLOCK_R, BLOCK_V)
        count, mass = _row_at_least(logits, row, rows, vocab, top, temperature, last, BLOCK_R, BLOCK_V)
        more, above = _row_at_least(logits, row, rows, vocab, top, temperature, last + 1, BLOCK_R, BLOCK_V)
        whole = above + (mass - above) / (count - more).to(tl.float64) * (top_k - more).to(tl.float64)
    limit = whole * tl.full((), top_p, tl.float64)
    nucleus = _row_bisect(logits, row, rows, vocab, top, temperature, 1, limit, BLOCK_R, BLOCK_V)
    nucleus = tl.maximum(nucleus, last)
    count, mass = _row_at_least(logits, row, rows, vocab, top, temperature, nucleus, BLOCK_R, BLOCK_V)
    more, above = _row_at_least(logits, row, rows, vocab, top, temperature, nucleus + 1, BLOCK_R, BLOCK_V)
    kept = _close(whole, limit, count, mass, more, above)
    target = tl.load(uniforms + row, mask=row < rows, other=0.0) * kept
    past = _row_bisect(logits, row, rows, vocab, top, temperature, 1, target + kept * 1e-17, BLOCK_R, BLOCK_V)
    past = tl.maximum(past, nucleus)
    count, mass = _row_at_least(logits, row, rows, vocab, top, temperature, past, BLOCK_R, BLOCK_V)
    more, above = _row_at_least(logits, row, rows, vocab, top, temperature, past + 1, BLOCK_R, BLOCK_V)
    place = _place(target, count, mass, more, above)
    seen = tl.zeros((BLOCK_R, 1), tl.int32)
    chosen = tl.zeros((BLOCK_R, 1), tl.int32)
    for start in range(0, logits.columns, BLOCK_V):
        column, z = _block(logits, row, start, rows, vocab, BLOCK_V)
        equal = ((_key(z) == past) & (column < vocab)).to(tl.int32)
        chosen += tl.sum(tl.where((equal > 0) & (seen + tl.cumsum(equal, 1) == place + 1), column, 0), 1)[:, None]
        seen += tl.sum(equal, 1)[:, None]
    chosen = tl.minimum(chosen, vocab - 1)
    own = tl.load(logits.at + row * logits.row_stride + chosen, mask=mine & (row < rows), other=0.0).to(tl.float32)
    _store(drawn, row, mine & (row < rows), chosen, own, top, own_total)


def readable_columns(logits: Tensor) -> int:
    """Columns that a kernel may read of every row: the next multiple of 16, where rows lie so far apart. Who cuts a table of
    logits to a vocabulary leaves that room behind."""
    rows, vocab = logits.shape
    columns = triton.cdiv(vocab, 16) * 16
    end = logits.storage_offset() + (rows - 1) * logits.stride(0) + columns
    inside = columns <= logits.stride(0) and end * logits.itemsize <= logits.untyped_storage().nbytes()
    return columns if inside else vocab


def sample(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """logits [R, V] of any row stride, uniforms float64 [R] -> ids int64, log-probs float32, flags int32, all [R]."""
    (rows, vocab), device = logits.shape, logits.device
    wide = configs.elementwise(configs.SAMPLE_ROW, device).options()
    options = configs.elementwise(configs.SAMPLE, device).options()
    room = int(options.pop("ROOM"))
    ids = torch.empty(rows, dtype=torch.int64, device=device)
    logp = torch.empty(rows, dtype=torch.float32, device=device)
    flags = torch.empty(rows, dtype=torch.int32, device=device)
    top_k = top_k if top_k < vocab else 0
    if rows:
        grid = (triton.cdiv(rows, options["BLOCK_R"]),)
        inputs = Logits(logits, logits.stride(0), readable_columns(logits)), uniforms, Drawn(ids, logp, flags)
        if temperature == 0 or not (top_k or top_p < 1):
            greedy = temperature == 0
            plain = options if logits.itemsize == 2 else wide
            sample_kernel[grid](*inputs, rows, vocab, temperature or 1.0, GREEDY=greedy, **plain)
        else:
            of_row = torch.empty(rows, room, dtype=torch.int32, device=device)
            counts = torch.empty(rows, dtype=torch.int32, device=device)
            spread = math.log(vocab) - math.log(max(1 - top_p, 1e-300)) + 1e-3
            settings = rows, vocab, top_k, top_p, temperature
            flags_of_both = {"TOP_K": top_k > 0, "ROOM": room}
            sample_candidates_kernel[grid](*inputs, (of_row, counts), *settings, spread, **flags_of_both, **options)
            sample_row_kernel[grid](*inputs, counts, *settings, **flags_of_both, **wide)
    return ids, logp, flags
