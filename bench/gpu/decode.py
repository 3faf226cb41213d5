"""Rows about a decode step's kernels: attention over pages beside the card's bandwidth and torch's own, and sampling."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from o1core import kernels
from o1core.recipe import Recipe
from o1core.rollout import SamplingParams
from o1core.rollout.sampling import sample
from o1core.runs import Machine, Workload
from o1core.runs.footprint import sampling

from .measure import BASE, CARD_BYTES, FLUSH, Bar, Found, Row, Sizes, card_of, milliseconds, normal, seven_b

THEIR_PAGE = 256  # tokens: the smallest page that torch's attention takes on every card
REAL: dict[str, Any] = {"temperature": 0.5, "top_p": 0.8}  # what the default recipe samples with
SPREAD = 4.0  # standard deviation of logits: their nucleus has some hundred tokens, where a model's has fewer
CHECKED = 64  # rows that the CPU's sampler draws too
SAMPLED = (
    SamplingParams(**REAL),
    SamplingParams(),
    SamplingParams(temperature=0.6, top_p=0.95),
    SamplingParams(top_k=20),
    SamplingParams(temperature=0.0),
)


def paged_inputs(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values on shuffled pages, the page table and lengths."""
    pages = -(-sizes.length // kernels.PAGE_TOKENS)
    queries = normal(sizes.rows, sizes.heads, sizes.head_size, sizes=sizes, seed=10)
    shape = sizes.rows * pages, sizes.kv_heads, kernels.PAGE_TOKENS, sizes.head_size
    keys, values = (normal(*shape, sizes=sizes, seed=seed) for seed in (11, 12))
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(13))
    table = order.view(sizes.rows, pages).to(sizes.device, torch.int32)
    lengths = torch.full((sizes.rows,), sizes.length, dtype=torch.int32, device=sizes.device)
    return queries, keys, values, table, lengths


def planned(sizes: Sizes) -> int:
    """Bytes that the plan of sampling has for one layer's pages, a step's activations and its logits, and of a timing."""
    recipe, rows = Recipe.of(), sizes.rows
    workload = Workload(recipe, False, sizes.length - 1, 1, rows, rows, rows)
    parts = sampling(replace(seven_b(sizes), num_layers=1), workload, Machine(cuda=True, memory=CARD_BYTES), rows, None)
    return sum(parts.values()) + FLUSH


def attention(sizes: Sizes) -> Found:
    """The bytes of keys and values over the time, beside the card's bandwidth."""
    inputs = paged_inputs(sizes)
    ours = kernels.paged_attention(*inputs, sizes.length)
    taken = milliseconds(lambda: kernels.paged_attention(*inputs, sizes.length), sizes)
    moved = 2 * sizes.rows * sizes.length * sizes.kv_heads * sizes.head_size * sizes.dtype.itemsize
    card = card_of(torch.cuda.get_device_name()) if sizes.on_gpu else BASE
    found: Found = {"GB/s": moved / taken / 1e6, "ms": taken}
    found["of the card's bandwidth"] = moved / taken * 1e3 / card[1] if card else "the card's bandwidth is not known"
    order = torch.randperm(sizes.rows, generator=torch.Generator().manual_seed(14)).to(sizes.device)
    queries, keys, values, table, lengths = inputs
    turned = kernels.paged_attention(queries[order], keys, values, table[order], lengths[order], sizes.length)
    found["rows that differ in another order"] = int((turned != ours[order]).flatten(1).any(1).sum())
    return found


def against_torch(sizes: Sizes) -> Found:
    """torch's attention in one split on the same numbers: over pages where its build takes them, else over whole rows."""
    inputs = paged_inputs(sizes)
    ours = kernels.paged_attention(*inputs, sizes.length)
    arguments, takes_pages = over_pages(*inputs), 1.0
    try:
        varlen_attn(**arguments)
    except (RuntimeError, ValueError):
        arguments, takes_pages = over_rows(*inputs), 0.0

    def theirs() -> Tensor:
        found = varlen_attn(**arguments)
        assert isinstance(found, Tensor)  # nothing else is asked for
        return found

    found: Found = {"largest difference": (theirs() - ours).abs().max().item(), "varlen_attn takes pages": takes_pages}
    taken = milliseconds(lambda: kernels.paged_attention(*inputs, sizes.length), sizes)
    return found | {"varlen_attn / ours": milliseconds(theirs, sizes) / taken}


def rows_of(pool: Tensor, table: Tensor, longest: int) -> Tensor:
    """The first tokens of each row, side by side [R, T, Hkv, D]."""
    return pool[table.long()].transpose(2, 3).flatten(1, 2)[:, :longest]


def over_rows(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> dict[str, Any]:
    """varlen_attn's arguments for one query a row and all its tokens, in one split, for with several its results depend on
    the batch. All rows are of one length."""
    rows, longest = len(queries), int(lengths.max())
    starts = torch.arange(rows + 1, dtype=torch.int32, device=queries.device)
    return {
        "query": queries,
        "key": rows_of(keys, table, longest).flatten(0, 1),
        "value": rows_of(values, table, longest).flatten(0, 1),
        "cu_seq_q": starts,
        "cu_seq_k": starts * longest,
        "max_q": 1,
        "max_k": longest,
        "enable_gqa": True,
        "num_splits": 1,
    }


def over_pages(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> dict[str, Any]:
    """The same with keys and values on pages [pages, tokens, Hkv, D]."""
    rows, longest = len(queries), int(lengths.max())
    pages = -(-longest // THEIR_PAGE)
    pools = []
    for pool in (keys, values):
        tokens = rows_of(pool, table, longest)
        pool = pool.new_zeros(rows, pages * THEIR_PAGE, *tokens.shape[2:])
        pool[:, :longest] = tokens
        pools.append(pool.view(rows * pages, THEIR_PAGE, *tokens.shape[2:]))
    of_pages = torch.arange(rows * pages, dtype=torch.int32, device=queries.device).view(rows, pages)
    return over_rows(queries, keys, values, table, lengths) | {
        "key": pools[0],
        "value": pools[1],
        "cu_seq_k": None,
        "seqused_k": lengths,
        "block_table": of_pages,
    }


def draws(sizes: Sizes) -> Found:
    """The kernel's ids and the CPU sampler's; two that stand side by side at a boundary of 1e-6 do not count. Logits are fp32
    of a head that is cut at the next multiple of 64 ids, as the engine makes them."""
    columns = -(-sizes.ids // 64) * 64
    whole = normal(sizes.rows, columns, sizes=sizes, seed=15, scale=SPREAD, dtype=torch.float32)
    logits, some = whole[:, : sizes.ids], whole[:CHECKED, : sizes.ids].cpu()
    generator = torch.Generator().manual_seed(16)
    uniforms = torch.rand(sizes.rows, generator=generator, dtype=torch.float64)
    different = broken = 0
    found: Found = {}
    for params in SAMPLED:
        draw = partial(
            kernels.sample_tokens,
            logits,
            uniforms.to(sizes.device),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
        )
        ids, _, flags = draw()
        expected, _ = sample(some, uniforms[:CHECKED], params)
        if sizes.device != "meta":  # of which nobody knows the ids
            different += len(differing_ids(ids[:CHECKED].cpu(), expected, some, uniforms, params))
        broken += int(flags.sum())
        name = f"ms, temperature {params.temperature}, top-k {params.top_k}, top-p {params.top_p}"
        found[name] = milliseconds(draw, sizes)
    return found | {"ids that differ": different, "broken rows": broken}


def differing_ids(ids: Tensor, expected: Tensor, logits: Tensor, uniforms: Tensor, params: SamplingParams) -> list[int]:
    """Rows whose ids differ, but for those where the two stand side by side and the uniform number within 1e-6 of the sum
    of probabilities between them."""
    wrong = []
    for row in (ids != expected).nonzero()[:, 0].tolist():
        p, order = probabilities_in_order(logits[row], params)
        places = sorted(int((order == i).nonzero()) for i in (int(ids[row]), int(expected[row])))
        if places[1] - places[0] > 1 or abs(p.cumsum(0)[places[0]] - uniforms[row]) >= 1e-6:
            wrong.append(row)
    return wrong


def probabilities_in_order(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Probabilities [V] float64 of one row in the order in which its tokens are drawn, and that order."""
    p = torch.softmax(logits.double() / (params.temperature or 1.0), 0)
    filtered = params.top_k or params.top_p < 1
    order = p.argsort(descending=True, stable=True) if filtered else torch.arange(len(p))
    if params.top_k:
        p[order[params.top_k :]] = 0
        p = p / p.sum()
    if params.top_p < 1:
        inside = int((p[order].cumsum(0) < params.top_p).sum()) + 1
        p[order[inside:]] = 0
    return (p / p.sum())[order], order


SHAPE = "{rows} rows x {length:,} tokens, {heads} heads over {kv_heads} of {head_size} numbers"
ROWS = [
    Row(
        "paged attention",
        SHAPE,
        {"of the card's bandwidth": Bar("at least", 0.8), "rows that differ in another order": Bar("at most", 0)},
        attention,
        planned=planned,
    ),
    Row(
        "against varlen_attn",
        SHAPE,
        {"varlen_attn / ours": Bar("at least", 0.9), "largest difference": Bar("at most", 0.02)},
        against_torch,
    ),
    Row(
        "sampling",
        "{rows} rows x {ids:,} logits, five settings, against the CPU's sampler",
        {
            "ms, temperature 0.5, top-k 0, top-p 0.8": Bar("at most", 0.6),
            "ids that differ": Bar("at most", 0),
            "broken rows": Bar("at most", 0),
        },
        draws,
        planned=planned,
    ),
]
