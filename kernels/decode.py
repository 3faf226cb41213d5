"""A decode step's ops: attention over keys and values in pages, the write of pages, and tokens from logits.

A page holds PAGE_TOKENS tokens of all key heads of one layer: keys and values are [pages, Hkv, PAGE_TOKENS, D]. Token t of
row r lies in page page_table[r, t // PAGE_TOKENS] at slot t % PAGE_TOKENS. No value is read back on the Triton path, so page
numbers and lengths are not held against their range: a wrong one reads outside the pages.
"""

import math
import warnings
from functools import cache

import torch
from torch import Tensor

from .checks import floating, require, same_device, vocabulary
from .checks import logits as check_logits
from .dispatch import TORCH, Primitives, primitives
from .numbers import PAGE_TOKENS, Pages

HEAD_SIZES = (16, 32, 64, 128, 256)  # that the Triton kernels take
LARGEST_GROUP = 16  # query heads a key head that the Triton kernels take


def paged_attention(
    queries: Tensor, keys: Tensor, values: Tensor, page_table: Tensor, lengths: Tensor, max_length: int
) -> Tensor:
    """Attention of one new token a row over the row's pages: softmax(q k^T / sqrt(D)) v.

    queries [R, Hq, D], the heads of a group side by side; keys and values [pages, Hkv, 64, D] contiguous; page_table
    [R, any] int32, whose entries past a row's last page may be any number; lengths [R] int32, tokens of a row with the
    new one (0: a row that only fills the batch, whose result is 0); max_length: at least the longest, which the host
    knows. Returns [R, Hq, D] in the dtype of queries. A row's bits depend on its own length and numbers alone: not on
    the batch, on which pages it has, or on the table's width. Raises ValueError naming the wrong argument.
    """
    pages = Pages(keys, values, page_table, lengths)
    _check(queries, pages)
    room = page_table.shape[1] * PAGE_TOKENS
    require(0 <= max_length <= room, f"max_length: {max_length}, expected 0 to {room} (the table's width in tokens)")
    return _for(queries, keys).paged_attention(queries, pages, max_length)


def write_pages(
    queries: Tensor,
    new_keys: Tensor,
    new_values: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    lengths: Tensor,
) -> Tensor:
    """Turns queries and new keys by their position (rotary embedding, arXiv 2104.09864: pairs x_i and x_{i + D/2}) and
    writes keys and values to slot lengths - 1 of their row; a row of length 0 writes nothing.

    queries [R, Hq, D], new_keys and new_values [R, Hkv, D], in which a row's numbers are neighbours and rows may lie
    apart (one product makes all three); cos and sin [R, D/2]; the rest as in paged_attention. Returns the turned queries
    [R, Hq, D]. Triton turns in float32 and rounds once. Raises ValueError naming the wrong argument.
    """
    pages = Pages(keys, values, page_table, lengths)
    _check(queries, pages)
    rows, _, size = queries.shape
    for name, tensor in (("new_keys", new_keys), ("new_values", new_values)):
        expected = rows, keys.shape[1], size
        require(tensor.shape == expected, f"{name}: shape {tuple(tensor.shape)}, expected {expected}")
        require(tensor.dtype == keys.dtype, f"{name}: dtype {tensor.dtype}, expected {keys.dtype} like keys")
    for name, tensor in (("queries", queries), ("new_keys", new_keys), ("new_values", new_values)):
        require(tensor.stride()[1:] == (size, 1), f"{name}: strides {tensor.stride()}, expected (any, {size}, 1)")
    for name, tensor in (("cos", cos), ("sin", sin)):
        require(tensor.shape == (rows, size // 2), f"{name}: shape {tuple(tensor.shape)}, expected {(rows, size // 2)}")
    return _for(queries, keys).write_pages(queries, new_keys, new_values, (cos, sin), pages)


def _check(queries: Tensor, pages: Pages) -> None:
    keys, values, page_table, lengths = pages
    floating("queries", queries)
    require(queries.dim() == 3, f"queries: shape {tuple(queries.shape)}, expected [R, Hq, D]")
    rows, heads, size = queries.shape
    require(
        keys.dim() == 4 and keys.shape[2:] == (PAGE_TOKENS, size),
        f"keys: shape {tuple(keys.shape)}, expected [pages, Hkv, {PAGE_TOKENS}, {size}]",
    )
    require(
        0 < keys.shape[1] <= heads and heads % keys.shape[1] == 0,
        f"keys: {keys.shape[1]} key heads, expected a divisor of the {heads} query heads",
    )
    require(values.shape == keys.shape, f"values: shape {tuple(values.shape)}, expected {tuple(keys.shape)} like keys")
    for name, tensor in (("keys", keys), ("values", values)):
        require(tensor.dtype == queries.dtype, f"{name}: dtype {tensor.dtype}, expected {queries.dtype} like queries")
        require(tensor.is_contiguous(), f"{name}: not contiguous")
        same_device(name, tensor, queries.device)
    for name, tensor, dims in (("page_table", page_table, 2), ("lengths", lengths, 1)):
        require(tensor.dtype == torch.int32, f"{name}: dtype {tensor.dtype}, expected int32")
        require(
            tensor.dim() == dims and len(tensor) == rows and tensor.stride(-1) == 1,
            f"{name}: shape {tuple(tensor.shape)}, expected {rows} rows of {dims} dimensions, numbers side by side",
        )
        same_device(name, tensor, queries.device)


def _for(queries: Tensor, keys: Tensor) -> Primitives:
    """The backend, or torch with one warning where the Triton kernels do not take the shape."""
    run = primitives(queries.device)
    reason = refused_heads(queries.shape[1], keys.shape[1], queries.shape[2])
    if run is TORCH or reason is None:
        return run
    _warn_once(reason)
    return TORCH


def refused_heads(heads: int, kv_heads: int, size: int) -> str | None:
    """Why the Triton kernels of decode attention do not take these heads; None where they do."""
    if size not in HEAD_SIZES:
        return f"head size {size} is none of {', '.join(map(str, HEAD_SIZES))}"
    if heads > LARGEST_GROUP * kv_heads:
        return f"{heads // kv_heads} query heads a key head are more than {LARGEST_GROUP}"
    return None


def runs_triton(device: torch.device) -> bool:
    """Whether the ops run as Triton kernels on this device. On a GPU that is too old for them, a warning says so once."""
    return primitives(device) is not TORCH


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"decode attention: {reason}, which the Triton kernels take; torch runs instead", stacklevel=4)


def sample_tokens(
    logits: Tensor, uniforms: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row, with nothing read back. Triton alone: a GPU, or the interpreter. A CPU's sampler is the rollout
    engine's; both draw the same tokens.

    logits [R, V] with any row stride, fastest if that is a multiple of 16 (cut a head at the next multiple, and the logits at
    V); uniforms float64 [R] in [0, 1); temperature 0 is greedy, top_k 0 and top_p 1 are no filter. Returns ids int64 [R],
    log-probs float32 [R] and flags int32 [R], 1 where the row's logits are not finite and its id means nothing. The log-prob
    is the model's own, before temperature and filters. Raises ValueError naming the wrong argument.
    """
    check_logits(logits)
    vocabulary(None, logits.shape[1], "logits")
    require(
        uniforms.dtype == torch.float64 and uniforms.shape == logits.shape[:1] and uniforms.is_contiguous(),
        f"uniforms: {uniforms.dtype} {tuple(uniforms.shape)}, expected float64 ({logits.shape[0]},)",
    )
    same_device("uniforms", uniforms, logits.device)
    require(math.isfinite(temperature) and temperature >= 0, f"temperature: {temperature}, expected 0 (greedy) or more")
    require(top_k >= 0, f"top_k: {top_k}, expected 0 (no filter) or more")
    require(0 < top_p <= 1, f"top_p: {top_p}, expected above 0 and at most 1 (no filter)")
    from .triton_sample import sample

    return sample(logits, uniforms, temperature, top_k, top_p)
