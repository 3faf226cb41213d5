"""KL(p || q) of two linear heads over the whole vocabulary, a block of rows at a time: no [N, V] logits are kept.

With log p and log q the log-softmax of hidden weight^T and teacher_hidden teacher_weight^T, ids from vocab_size on left out:

    kl_n = sum_j p_nj (log p_nj - log q_nj)                 d kl_n / d z_nj = p_nj (log p_nj - log q_nj - kl_n)

The backward pass computes both logits again, so that between the passes only the inputs are held: 4NVH FLOPs forward, 8NVH
backward (6NVH if the weight is frozen). Log-probs are fp32 (fp64 for fp64 inputs). Plain torch on every device: left out on
purpose is a Triton kernel, since the objective that needs it (CRISP) is one of twenty.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .numbers import accumulator, add_product
from .torch_linear import SCRATCH_BYTES, bf16_units

CUDA_SCRATCH_BYTES = 2 * 2**30  # a GPU needs larger products than a CPU's cache holds
WIDENED_BYTES = 8 * 2**20  # of a block of a bf16 head that a CPU multiplies in fp32


class LinearKL(torch.autograd.Function):
    """-> kl [N], differentiable in hidden and weight."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, vocab_size: int
    ) -> Tensor:
        kl = hidden.new_empty(hidden.shape[0], dtype=accumulator(hidden.dtype))
        for part in blocks(hidden, vocab_size):
            log_p, gap = log_probs_and_gap(hidden[part], weight, teacher_hidden[part], teacher_weight, vocab_size)
            kl[part] = (log_p.exp_() * gap).sum(1)
        ctx.save_for_backward(hidden, weight, teacher_hidden, teacher_weight, kl)
        ctx.vocab_size = vocab_size
        return kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, kl_grad: Tensor) -> Any:
        hidden, weight, *teacher, kl = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        vocab_size, acc = ctx.vocab_size, kl.dtype
        d_hidden = torch.zeros_like(hidden, dtype=acc) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=acc) if need_weight else None
        work = weight.dtype if weight.is_cuda else acc
        for part in blocks(hidden, vocab_size):
            log_p, gap = log_probs_and_gap(hidden[part], weight, teacher[0][part], teacher[1], vocab_size)
            gap -= kl[part, None]
            d_logits = log_p.exp_().mul_(gap).mul_(kl_grad[part, None]).to(work)
            x = hidden[part].to(work)
            for ids in vocabulary_blocks(weight, vocab_size, work):
                if d_hidden is not None:
                    add_product(d_hidden[part], d_logits[:, ids], weight[ids].to(work))
                if d_weight is not None:
                    add_product(d_weight[ids], d_logits[:, ids].T, x)
        return (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            *(None, None, None),
        )


def blocks(hidden: Tensor, vocab_size: int) -> Iterator[slice]:
    """Blocks of rows whose four [rows, V] tensors fit into the scratch."""
    scratch = CUDA_SCRATCH_BYTES if hidden.is_cuda else SCRATCH_BYTES
    rows, step = len(hidden), max(1, scratch // (4 * vocab_size * accumulator(hidden.dtype).itemsize))
    yield from (slice(r, min(r + step, rows)) for r in range(0, rows, step))


def vocabulary_blocks(weight: Tensor, vocab_size: int, wanted: torch.dtype) -> Iterator[slice]:
    """Blocks of rows of a head that are widened together; all at once where it has the wanted dtype."""
    step = vocab_size if weight.dtype == wanted else max(1, WIDENED_BYTES // (wanted.itemsize * weight.shape[1]))
    yield from (slice(v, min(v + step, vocab_size)) for v in range(0, vocab_size, step))


def log_probs_and_gap(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """log p and log p - log q [n, V], new tensors."""
    log_p = logits(hidden, weight, vocab_size).log_softmax(1)
    return log_p, log_p - logits(teacher_hidden, teacher_weight, vocab_size).log_softmax(1)


def logits(hidden: Tensor, weight: Tensor, vocab_size: int) -> Tensor:
    """hidden weight^T [n, vocab_size] in the accumulator's dtype, from exact products of the inputs."""
    acc = accumulator(hidden.dtype)
    if hidden.dtype != acc and hidden.is_cuda:
        return torch.mm(hidden, weight[:vocab_size].T, out_dtype=acc)
    z = hidden.new_empty(len(hidden), vocab_size, dtype=acc)
    x = hidden.to(acc)
    with bf16_units(hidden.dtype):
        for ids in vocabulary_blocks(weight, vocab_size, acc):
            z[:, ids] = x @ weight[ids].to(acc).T
    return z
