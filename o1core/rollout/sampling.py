"""From logits to tokens: temperature, top-k, top-p and greedy, with one uniform number a row.

torch.multinomial over 152k tokens costs more than the model that made the logits. Here a token is found by inverting the
cumulative distribution in two levels, tiles of the vocabulary and then the tokens of one tile, which reads the
probabilities once. The uniform number is a hash of (seed, prompt, sample, step), not the state of a generator, so a
sample does not depend on what is decoded beside it. Nor do its bits: see exp_rows.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..kernels.torch_elementwise import THREAD_GRAIN

TILE = 512  # tokens of the vocabulary, in the two-level search
NUCLEUS = 512  # tokens looked at first for top-p; rows whose nucleus is larger are sorted whole
VECTOR = 64  # numbers: the vectorised loops of torch end at a multiple of it on every CPU
NOT_FINITE = "the model's logits are not finite: its weights are broken, or overflow in this dtype"
CHUNK_BYTES = 8 << 20  # rows are sampled a few at a time, so that their probabilities stay in the processor's cache


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. n: completions a prompt. temperature 0 is greedy. top_k 0 and top_p 1 mean no filter.

    max_new_tokens counts the end-of-text token. seed: together with the prompt's ids and the sample's index it decides
    every token. No repetition penalty: it would change the distribution that the ratio is taken under.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"n: {self.n} completions a prompt; at least 1 is needed")
        if not 0 <= self.temperature <= 100:
            raise UserError(f"temperature: {self.temperature} is not between 0 (greedy) and 100")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} is not above 0 and at most 1 (no filter)")
        if self.top_k < 0:
            raise UserError(f"top_k: {self.top_k} is negative; 0 means no filter")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: {self.max_new_tokens}; at least 1 is needed")


def stream_key(seed: int, prompt: list[int], sample: int) -> int:
    """A 64-bit key for the uniforms of one completion."""
    text = f"{seed}/{sample}/" + ",".join(map(str, prompt))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniforms(keys: list[int], steps: list[int]) -> np.ndarray:
    """float64 in [0, 1), one a row: SplitMix64 (Steele et al. 2014) of each key at its step."""
    with np.errstate(over="ignore"):
        z = np.array(keys, dtype=np.uint64) + np.array(steps, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def device_uniforms(keys: Tensor, steps: Tensor) -> Tensor:
    """`uniforms` of int64 keys (their 64 bits) and steps [R] where they are: the same numbers, nothing read back."""

    def shifted(z: Tensor, bits: int) -> Tensor:
        return (z >> bits) & ((1 << 64 - bits) - 1)  # int64 shifts its sign in

    z = keys + steps * signed(0x9E3779B97F4A7C15)
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    return shifted(z ^ shifted(z, 31), 11).double() * 2.0**-53


def signed(bits: int) -> int:
    """The int64 of 64 bits."""
    return bits - (1 << 64) if bits >> 63 else bits


def sample(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Pick a token a row.

    logits [R, V], any float dtype; uniform float64 [R]. Returns (ids int64 [R], log-probs float32 [R]). The log-prob
    is the model's own, before temperature and filters, so that it can be held against the trainer's.
    """
    rows = max(1, CHUNK_BYTES // (4 * logits.shape[1]))
    parts = [sample_rows(z.float(), u, params) for z, u in zip(logits.split(rows), uniform.split(rows))]
    ids, logp = zip(*parts)
    return torch.cat(ids), torch.cat(logp)


def sample_rows(logits: Tensor, uniform: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """`sample` of float32 logits whose probabilities fit the processor's cache."""
    top = logits.amax(dim=-1, keepdim=True)
    weights = tiles(logits, top, 1.0)  # [R, tiles, TILE]
    lse = top + log_rows(weights.sum(-1).sum(-1, dtype=torch.float64, keepdim=True))
    if not lse.isfinite().all():
        raise UserError(NOT_FINITE)
    if params.temperature == 0:
        ids = logits.argmax(dim=-1, keepdim=True)
    else:
        if params.temperature != 1:
            weights = tiles(logits, top, params.temperature)
        if params.top_k or params.top_p < 1:
            ids = sample_filtered(logits, top, weights, uniform, params)
        else:
            ids = invert(weights, uniform)
    return ids[:, 0], (logits.gather(1, ids) - lse)[:, 0].float()


def tiles(logits: Tensor, top: Tensor, temperature: float) -> Tensor:
    """exp((logits - top) / temperature), cut into tiles; the last one is filled up with zeros."""
    rows, vocab = logits.shape
    width = -(-vocab // VECTOR) * VECTOR
    weights = logits.new_zeros(rows, -(-vocab // TILE) * TILE)
    weights[:, vocab:width] = float("-inf")
    inside = torch.sub(logits, top, out=weights[:, :vocab])
    if temperature != 1:
        inside /= temperature
    exp_rows(weights[:, :width])
    return weights.view(rows, -1, TILE)


def exp_rows(x: Tensor) -> Tensor:
    """x [R, W].exp_(), W a multiple of VECTOR, with bits that do not depend on the rows that stand together.

    A vectorised loop leaves its last few numbers to a scalar one, which may round otherwise, and torch gives each thread
    a piece of a large tensor. Here a row ends where a vector ends, and no piece ends inside a row: rows are taken so few
    at a time that one thread computes them, or one by one.
    """
    for rows in x.split(max(1, THREAD_GRAIN // x.shape[1])):
        rows.exp_()
    return x


def log_rows(x: Tensor) -> Tensor:
    """log of x float64 [R, 1], on a CPU one by one, for the reason that exp_rows gives."""
    if x.device.type != "cpu":
        return x.log()
    return torch.tensor([[math.log(value)] for value in x[:, 0].tolist()], dtype=x.dtype)


def invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """ids [R, 1] at which the cumulative sum of weights [R, tiles, TILE] passes uniform * total."""
    by_tile = weights.sum(-1).cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * by_tile[:, -1:]
    tile = first_above(by_tile, target)
    before = torch.where(tile > 0, by_tile.gather(1, (tile - 1).clamp(min=0)), 0)
    inside = weights.gather(1, tile[..., None].expand(-1, -1, TILE))[:, 0].cumsum(-1, dtype=torch.float64)
    return tile * TILE + first_above(inside, target - before)


def first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first index whose cumulative sum is above target. Never one of weight zero, whatever rounding did."""
    # Past the end (the two levels round differently) the last index that still adds weight is taken.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)


def sample_filtered(logits: Tensor, top: Tensor, weights: Tensor, uniform: Tensor, params: SamplingParams) -> Tensor:
    """Sample among the top_k largest, then the smallest set of those whose probability reaches top_p."""
    vocab = logits.shape[1]
    total = weights.sum(-1).sum(-1, dtype=torch.float64, keepdim=True)
    count = min(params.top_k or NUCLEUS, vocab)
    ids = pick_sorted(logits, top, uniform, total, count, params)
    if not params.top_k and count < vocab:
        for row in (ids[:, 0] < 0).nonzero()[:, 0].tolist():
            one = slice(row, row + 1)
            ids[one] = pick_sorted(logits[one], top[one], uniform[one], total[one], vocab, params)
    return ids


def pick_sorted(
    logits: Tensor, top: Tensor, uniform: Tensor, total: Tensor, count: int, params: SamplingParams
) -> Tensor:
    """Sample from the `count` largest, cut at top_p; -1 in rows where they do not reach top_p of `total`."""
    values, order = logits.topk(count, dim=-1)
    scaled = F.pad((values - top) / params.temperature, (0, -count % VECTOR), value=float("-inf"))
    cumulative = exp_rows(scaled)[:, :count].cumsum(-1, dtype=torch.float64)
    whole = cumulative[:, -1:] if params.top_k else total
    limit = params.top_p * whole
    size = torch.searchsorted(cumulative, limit).clamp(max=count - 1)  # the token that reaches top_p is inside
    mass = cumulative.gather(1, size)
    choice = torch.minimum(torch.searchsorted(cumulative, uniform[:, None] * mass, right=True), size)
    short = (mass < limit) & (count < logits.shape[1]) & (not params.top_k)
    return torch.where(short, -1, order.gather(1, choice))
