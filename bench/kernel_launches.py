"""Every way in which the Triton kernels are launched, at real sizes, by the ops that launch them (bench.compiled_kernels).

What a launch compiles depends on its sizes only through what divides by 16 and what is 1, so a few sizes stand for all: rows of
one token, of a batch and of an odd number; vocabularies as they lie in memory (152,064 and 151,936 of Qwen2, 128,256 of
Llama 3) and as tokenizers have them (151,646 of Marco-o1, 151,665 of Qwen2.5); widths of 0.5B to 32B models.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from o1core import kernels
from o1core.kernels import triton_linear
from o1core.kernels.numbers import Softmax

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
ROWS = (1, 8192, 4097)
DECODED = (1, 256, 77)  # rows of a decode step
HEADS = ((152064, 151665, 3584), (151936, 151646, 896), (128256, 128256, 4096), (151936, 151669, 5120))  # V, ids, H
GROUPS = ((28, 4, 128), (14, 2, 64), (40, 8, 128), (32, 8, 128))  # query heads, key heads, head size
DELTA = ((16, 32), (16, 48), (16, 16))  # key and value heads of 128 numbers: Qwen3.5-9B and 35B-A3B, 27B, 0.8B
BLOCKS = ((3584, 18944), (896, 4864), (5120, 27648), (4096, 14336))  # hidden size and MLP size, by the groups' order
SAMPLED: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.5, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.95},
)
CLIP = {"eps_low": 0.2, "eps_high": 0.2, "normalizer": 64.0}


@dataclass(frozen=True)
class Case:
    """Launches that belong together, as `launch` makes them."""

    dtype: str
    sizes: str
    launch: Callable[[], object]


def meta(*shape: int, dtype: torch.dtype, grad: bool = False) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=grad)


def log_probs(dtype: torch.dtype, n: int, v: int, ids: int, h: int, begin: int = 0) -> None:
    """Of a linear head: forward, backward, with and without entropy; and the loss in one pass, all rows kept and some. Rows of
    hidden begin at the number `begin` of wider ones: from 1 on, no load of 16 bytes can be aligned."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    hidden = meta(n, h + 16, dtype=dtype)[:, begin : begin + h].requires_grad_()
    weight = meta(v, h, dtype=dtype, grad=True)
    targets, upstream = meta(n, dtype=torch.int64), meta(n, dtype=acc)
    for entropy in (False, True):
        found = kernels.linear_logprob(hidden, weight, targets, vocab_size=ids, entropy=entropy, no_sync=True)
        outputs = found if isinstance(found, tuple) else (found,)
        torch.autograd.grad(outputs, (hidden, weight), [upstream] * len(outputs))
    if dtype != torch.float16:  # which takes two passes
        rows = hidden.detach()
        for picked in (None, meta(max(n // 2, 1), dtype=torch.int64)):
            kept = triton_linear.kept_forward(rows, weight.detach(), targets, Softmax(1.0, ids))
            triton_linear.kept_gradient(kept, targets, upstream, 1.0, picked)


def stored_logits(dtype: torch.dtype, n: int, v: int, ids: int) -> None:
    """Logits of a whole head, of which `ids` columns count."""
    logits, targets = meta(n, v, dtype=dtype, grad=True), meta(n, dtype=torch.int64)
    for entropy in (False, True):
        found = kernels.gather_logprob(logits, targets, vocab_size=ids, entropy=entropy, no_sync=True)
        outputs = found if isinstance(found, tuple) else (found,)
        torch.autograd.grad(outputs, logits, [meta(n, dtype=o.dtype) for o in outputs])


def surrogate(dtype: torch.dtype, n: int) -> None:
    """16 sequences of one token, or of n in all."""
    sequences = min(n, 16)
    logp, reference, advantage = (meta(k, dtype=dtype) for k in (n, n, sequences))
    ends = meta(sequences + 1, dtype=torch.int64)
    mask = meta(n, dtype=torch.bool)
    for ratio, counted in (
        ("sequence", mask),
        ("sequence_mean", mask),
        ("token", mask),
        ("token", None),
        ("cispo", mask),
    ):
        kernels.clipped_surrogate(logp, reference, advantage, ends, counted, ratio=ratio, **CLIP, no_sync=True)


def decode(dtype: torch.dtype, rows: int, heads: int, kv_heads: int, size: int) -> None:
    """Attention over 1,200 tokens a row, and the write of pages from one product of queries, keys and values."""
    pages = -(-1200 // kernels.PAGE_TOKENS)
    keys, values = (meta(rows * pages, kv_heads, kernels.PAGE_TOKENS, size, dtype=dtype) for _ in range(2))
    table, lengths = meta(rows, pages, dtype=torch.int32), meta(rows, dtype=torch.int32)
    new = meta(rows, heads + 2 * kv_heads, size, dtype=dtype).split([heads, kv_heads, kv_heads], 1)
    cos, sin = (meta(rows, size // 2, dtype=dtype) for _ in range(2))
    kernels.write_pages(new[0], new[1], new[2], cos, sin, keys, values, table, lengths)
    kernels.paged_attention(meta(rows, heads, size, dtype=dtype), keys, values, table, lengths, 1200)


def elementwise(dtype: torch.dtype, rows: int, width: int, ffn: int, heads: int, kv_heads: int, size: int) -> None:
    """What a block computes beside its products, forward and backward: with trained norms and with frozen ones, over the hidden
    states and, as Qwen3 does, over heads."""
    for shape in ((rows, width), (rows, heads, size)):
        x = meta(*shape, dtype=dtype, grad=True)
        for trained in (True, False):
            out = kernels.rms_norm(x, meta(shape[-1], dtype=dtype, grad=trained), 1e-6)
            out.backward(torch.empty_like(out))
    product = meta(rows, heads + 2 * kv_heads, size, dtype=dtype, grad=True)
    angles = [meta(rows, 1, size // 2, dtype=dtype) for _ in range(2)]
    for out in (
        kernels.rotate(product[:, : heads + kv_heads], *angles),
        kernels.swiglu(meta(rows, 2 * ffn, dtype=dtype, grad=True)),
    ):
        out.backward(torch.empty_like(out))


def delta(dtype: torch.dtype, rows: int, key_heads: int, value_heads: int) -> None:
    """The delta rule: a decode step of a layer's product and the bf16 convolution, states float32; and chunks of as many
    tokens, forward and backward."""
    channels, wide = (2 * key_heads + value_heads) * 128, torch.promote_types(dtype, torch.float32)
    mixed = meta(rows, channels + value_heads * 130, dtype=dtype)[:, :channels]
    decay, beta = (meta(rows, value_heads, dtype=wide) for _ in range(2))
    tails, memories = meta(rows + 1, channels, 3, dtype=dtype), meta(rows + 1, value_heads, 128, 128, dtype=wide)
    kernel, places = meta(channels, 4, dtype=dtype), meta(rows, dtype=torch.int64)
    kernels.delta_step(mixed, decay, beta, kernel, tails, memories, places)
    shape = (2, -(-rows // 64), value_heads)
    q, k, v = (meta(*shape[:2], 64, value_heads, 128, dtype=wide, grad=True) for _ in range(3))
    total, of_beta = (meta(*shape, 64, dtype=wide, grad=True) for _ in range(2))
    fade, memory = meta(*shape, dtype=wide, grad=True), meta(2, value_heads, 128, 128, dtype=wide, grad=True)
    corrections, memories, end = kernels.delta_walk(*kernels.delta_solve(k, v, total, of_beta), fade, memory)
    found = kernels.delta_read(q, k, total, corrections, memories), end
    torch.autograd.grad(found, (q, k, v, total, of_beta, fade, memory), [torch.empty_like(o) for o in found])


def sampling(dtype: torch.dtype, rows: int, ids: int) -> None:
    """Logits as the engine makes them, fp32 of a head that is cut at the next multiple of 64 ids."""
    logits, uniforms = meta(rows, -(-ids // 64) * 64, dtype=dtype)[:, :ids], meta(rows, dtype=torch.float64)
    for options in SAMPLED:
        kernels.sample_tokens(logits, uniforms, **options)


def cases(capability: int) -> Iterator[Case]:
    """bf16 at every size on every chip; the other dtypes on sm_80 and sm_90, at one size."""

    def case(kind: str, launch: Callable[..., None], rows: int, *sizes: int) -> Case:
        text = " x ".join(f"{size:,}" for size in (rows, *sizes))
        return Case(kind, text, lambda: launch(DTYPES[kind], rows, *sizes))

    for n in ROWS:
        for v, ids, h in HEADS:
            yield case("bf16", log_probs, n, v, ids, h)
            yield case("bf16", stored_logits, n, v, ids)
    yield case("bf16", log_probs, 4097, 152064, 151665, 72)
    yield case("bf16", log_probs, 4097, 152064, 151665, 3584, 1)
    for n in ROWS:
        for sizes, group in zip(BLOCKS, GROUPS):
            yield case("bf16", elementwise, n, *sizes, *group)
    for rows in DECODED:
        for group in GROUPS:
            yield case("bf16", decode, rows, *group)
        for heads in DELTA:
            yield case("bf16", delta, rows, *heads)
        for _, ids, _ in HEADS:
            yield case("fp32", sampling, rows, ids)
    if capability in (80, 90):
        yield from (case("fp32", surrogate, n) for n in ROWS)
        yield case("fp64", surrogate, 4097)
        for kind in ("fp16", "fp32", "fp64"):
            yield case(kind, log_probs, 4097, *HEADS[0])
            yield case(kind, stored_logits, 4097, *HEADS[0][:2])
            yield case(kind, decode, 256, *GROUPS[0])
            yield case(kind, elementwise, 4097, *BLOCKS[0], *GROUPS[0])
            yield case(kind, delta, 256, *DELTA[0])
        yield case("bf16", sampling, 256, HEADS[0][1])  # who calls the op with logits of a product of its own
