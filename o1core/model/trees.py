"""Packed rows: sequences of any length laid end to end, those that begin alike with their beginning once.

The K samples of a problem are a tree: the prompt is its root, and each completion a branch that sees the root and itself.
Everything in a block but the mixing of tokens works on rows and does not notice. Attention is two ordinary ones: every root
and branch over itself, causal, and all branches of a root over that root, whole. A row's two results are merged by the
log-sum-exp of their scores, and the backward pass gives the merged numbers to both, so each gets its exact gradient. Nothing
is padded, no mask is made, no key is copied.

Both run on torch's flash attention: on a CPU a call for each sequence, which costs as much as one for all, and on a GPU one
call with variable lengths. flex_attention with a block mask would compute the same blocks there, and compile first; neither
was measured on a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (layer, q, k, v) -> the attention's output, shaped as q
FLASH_WIDTH = 256  # the largest head of the GPU's flash attention


@dataclass(frozen=True)
class Trees:
    """What N packed rows are: all roots one after another, then all branches, root by root.

    roots: the tokens of each. branches: of the first roots, the tokens of each of their branches; the other roots have none,
    and are sequences of their own. No length is 0.
    """

    roots: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...] = ()

    @property
    def rows(self) -> int:
        """N."""
        return sum(self.roots) + sum(map(sum, self.branches))

    @property
    def of_roots(self) -> list[slice]:
        """The rows of each root."""
        return laid_out(self.roots)

    @property
    def of_branches(self) -> list[list[slice]]:
        """The rows of each branch, by its root."""
        slices = iter(laid_out([n for of_root in self.branches for n in of_root], sum(self.roots)))
        return [[next(slices) for _ in of_root] for of_root in self.branches]

    def positions(self, device: torch.device) -> Tensor:
        """int64 [N]: each row's place in its sequence."""
        parts = [torch.arange(n) for n in self.roots]
        for root, of_root in zip(self.roots, self.branches):
            parts += [torch.arange(root, root + n) for n in of_root]
        return torch.cat(parts).to(device)


def laid_out(lengths: tuple[int, ...] | list[int], start: int = 0) -> list[slice]:
    """The places of sequences that lie end to end."""
    ends = list(accumulate(lengths, initial=start))
    return [slice(a, b) for a, b in pairwise(ends)]


def tree_attention(trees: Trees, device: torch.device) -> Attend:
    """`attend` of Transformer.forward for packed rows: (layer, q [N, Hq, D], k and v [N, Hkv, D]) -> [N, Hq, D]."""
    rows = laid_out([*trees.roots, *(n for of_root in trees.branches for n in of_root)])
    own = spans_of(rows, rows, True, device)
    of_trees = laid_out([sum(of_root) for of_root in trees.branches])
    across = spans_of(of_trees, trees.of_roots[: len(of_trees)], False, device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        narrow = q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= FLASH_WIDTH
        if q.is_cuda and not narrow:
            return attend_apart(q, k, v, trees)
        return TreeAttention.apply(q, k, v, own, across)

    return attend


def attend_apart(q: Tensor, k: Tensor, v: Tensor, trees: Trees) -> Tensor:
    """The slow twin: every branch again with its root, by torch's attention. A GPU has no other for float32."""

    def causal(*rows: slice) -> Tensor:
        """[T, Hq, D] of one sequence."""
        of_q, of_k, of_v = (torch.cat([t[part] for part in rows])[None] for t in (q, k, v))
        return causal_attention(0, of_q, of_k, of_v)[0]

    found = [causal(root) for root in trees.of_roots]
    for root, of_root in zip(trees.of_roots, trees.of_branches):
        found += [causal(root, branch)[root.stop - root.start :] for branch in of_root]
    return torch.cat(found)


def causal_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q [B, T, Hq, D] over k, v [B, T, Hkv, D], each position seeing itself and those before it."""
    q, k, v = (t.transpose(-3, -2) for t in (q, k, v))
    if q.device.type != "cpu" and q.dtype == torch.float32:
        # A GPU's fast kernels take grouped heads in 16 bits alone; else they fall to one that stores [T, T].
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[-3] != k.shape[-3])
    return out.transpose(-3, -2)


@dataclass(frozen=True)
class Spans:
    """Which queries attend over which keys: each span of queries over its span of keys. Both kinds lie end to end from 0.

    causal: a span's query i sees its keys up to i. ends: where spans of queries and of keys end, int32 [S + 1] on the device.
    """

    queries: list[slice]
    keys: list[slice]
    causal: bool
    ends: tuple[Tensor, Tensor]

    def lengths(self) -> tuple[Tensor, Tensor, int, int]:
        """What attention of variable lengths asks for: the ends, and the longest span of each kind."""
        longest = (max(part.stop - part.start for part in of) for of in (self.queries, self.keys))
        return *self.ends, next(longest), next(longest)


def spans_of(queries: list[slice], keys: list[slice], causal: bool, device: torch.device) -> Spans:
    ends = [torch.tensor([0, *(part.stop for part in of)], dtype=torch.int32).to(device) for of in (queries, keys)]
    return Spans(queries, keys, causal, (ends[0], ends[1]))


class TreeAttention(torch.autograd.Function):
    """q [N, Hq, D], k and v [N, Hkv, D] -> [N, Hq, D]. Saves them, the output, and each row's log-sum-exps [N, Hq].

    own: every root and branch over itself; across: the queries of the branches, the last rows, over the roots, the first.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, own: Spans, across: Spans) -> Tensor:
        out, log_sum = flash(q, k, v, own)
        branches, roots = split_rows(q, across)
        if across.queries:
            far, far_sum = flash(q[branches], k[roots], v[roots], across)
            near, near_sum = out[branches], log_sum[branches]
            share = (far_sum - near_sum).sigmoid_()[..., None]  # the root's, of all that a row gives weight to
            near.copy_(torch.lerp(near.to(share.dtype), far.to(share.dtype), share))
            torch.logaddexp(near_sum, far_sum, out=near_sum)
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.own, ctx.across = own, across
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, out, log_sum = ctx.saved_tensors
        # With a row's whole log-sum-exp, the scores of either part become their share of the row's whole weight.
        d_q, d_k, d_v = flash_backward(grad, q, k, v, out, log_sum, ctx.own)
        if ctx.across.queries:
            branches, roots = split_rows(q, ctx.across)
            of_branches = grad[branches], q[branches], k[roots], v[roots], out[branches], log_sum[branches]
            far_q, far_k, far_v = flash_backward(*of_branches, ctx.across)
            d_q[branches] += far_q
            d_k[roots] += far_k
            d_v[roots] += far_v
        return d_q, d_k, d_v, None, None


def split_rows(q: Tensor, across: Spans) -> tuple[slice, slice]:
    """The rows of all branches, and of the roots that have branches."""
    ends = (spans[-1].stop if spans else 0 for spans in (across.queries, across.keys))
    return slice(len(q) - next(ends), None), slice(0, next(ends))


def flash(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """The attention's output [N, Hq, D], and the log-sum-exp of each query's scores [N, Hq], float32 (float64 of float64)."""
    if q.is_cuda:
        lengths = spans.lengths()
        out, log_sum, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *lengths, 0.0, spans.causal, False)
        return out, log_sum.T
    out, log_sum = torch.empty_like(q, memory_format=torch.contiguous_format), []
    for query, key in zip(spans.queries, spans.keys):
        parts = one_sequence(q[query], k[key], v[key])
        found, of_rows = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, 0.0, spans.causal)
        out[query] = found[0].transpose(0, 1)
        log_sum.append(of_rows[0].T)
    return out, torch.cat(log_sum)


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, spans: Spans
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v by those of the output, shaped as they are. Every row is in a span."""
    if q.is_cuda:
        rng = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of a dropout that there is not
        rest = (*spans.lengths(), 0.0, spans.causal, rng, q.new_empty(0))
        return torch.ops.aten._flash_attention_backward(grad, q, k, v, out, log_sum.T.contiguous(), *rest)
    d_q, d_k, d_v = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    for query, key in zip(spans.queries, spans.keys):
        sizes = *one_sequence(grad[query], q[query], k[key], v[key], out[query]), log_sum[query].T[None]
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*sizes, 0.0, spans.causal)
        for whole, rows, part in zip((d_q, d_k, d_v), (query, key, key), found):
            whole[rows] = part[0].transpose(0, 1)
    return d_q, d_k, d_v


def one_sequence(*rows: Tensor) -> list[Tensor]:
    """[T, heads, D] as the CPU's attention takes it, [1, heads, T, D]."""
    return [t.transpose(0, 1)[None] for t in rows]
