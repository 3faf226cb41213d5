"""Which primitives run: Triton on a GPU, torch elsewhere, unless O1CORE_KERNELS=torch|triton says otherwise.

A backend is twenty functions and one budget: tensors in and tensors out, no autograd and no checks. Triton is imported
only when it is chosen: it costs time at start and does not exist everywhere. The files are not named after the ops,
because importing a submodule `linear_logprob` would replace the function of that name in the package. The tuples: numbers.py.

    linear_forward(hidden [N, H], weight [V, H], targets [N] int32/int64, Softmax, want_entropy) -> RowNumbers
    linear_backward(hidden, weight, targets, Softmax, RowNumbers, Upstream, Needs)
        -> d_hidden [N, H] or None, d_weight [V, H] or None           (dtypes of hidden and weight)

with z = inv_temperature * hidden weight^T, columns from vocab_size on left out, p = exp(z - lse):

    lse = log sum_j exp z_j = top + log_total (top = max_j z_j: apart, because their sum loses digits)
    logp = z_target - lse      entropy = lse - sum_j p_j z_j
    d z_j = logp_grad ([j = target] - p_j) - entropy_grad p_j (z_j - lse + entropy)

RowNumbers are float32 (float64 for float64 inputs). hidden may be non-contiguous. N may be 0. The upstream gradients are
float32 (float64), any value a row, any stride. Rows of d_weight from vocab_size on are zero.

    kept_forward(hidden, weight, targets, Softmax) -> Kept
    kept_gradient(Kept, targets, logp_grad, inv_temperature, picked [n] int64 or None)
        -> the gradient of hidden weight^T: of all rows [N, vocab_size], or of the picked rows (ascending)
           [n, vocab_size]; may be written over what was kept
    one_pass: how many rows of kept numbers it may hold

    gather_forward(logits [N, V] any row stride, targets, Softmax, want_entropy) -> RowNumbers
    gather_backward(logits, targets, Softmax, RowNumbers, Upstream, inplace)
        -> d_logits [N, V] in the dtype of logits; with inplace it is written over logits

    surrogate(logp [N], Sequences, Clip)
        -> loss [], d_logp [N], SurrogateMetrics                      (loss and d_logp float32, or float64 if logp is)
    paged_attention, write_pages: as in decode.py, of arguments that were checked
    rms_norm, rotate, swiglu: as in elementwise.py, without a gradient
    rms_norm_backward(x, weight, eps, grad, need_weight) -> d_x, d_weight or None
    swiglu_backward(gate_up, grad) -> d_gate_up
    delta_step: as in delta.py, of arguments that were checked
    delta_walk(added, read, written, fade, memory, more or None) -> as torch_delta.walk
    delta_solve, delta_solve_backward, delta_read, delta_read_backward -> as torch_delta's

A masked token's logp and ref_logp may be anything, NaN included. The clip compares the ratio strictly: at 1 +- eps
exactly the gradient is kept. The log-ratio of a unit is clamped to +-20, with zero gradient outside and the gradient
kept on it.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from . import torch_delta, torch_elementwise, torch_linear, torch_loss, torch_pages
from .numbers import OnePassBudget


class Primitives(NamedTuple):
    linear_forward: Callable
    linear_backward: Callable
    kept_forward: Callable
    kept_gradient: Callable
    one_pass: OnePassBudget
    gather_forward: Callable
    gather_backward: Callable
    surrogate: Callable
    paged_attention: Callable
    write_pages: Callable
    rms_norm: Callable
    rms_norm_backward: Callable
    rotate: Callable
    swiglu: Callable
    swiglu_backward: Callable
    delta_step: Callable
    delta_walk: Callable
    delta_solve: Callable
    delta_solve_backward: Callable
    delta_read: Callable
    delta_read_backward: Callable


TORCH = Primitives(
    torch_linear.forward,
    torch_linear.backward,
    torch_linear.kept_forward,
    torch_linear.kept_gradient,
    torch_linear.BUDGET,
    torch_linear.gather_forward,
    torch_linear.gather_backward,
    torch_loss.surrogate,
    torch_pages.paged_attention,
    torch_pages.write_pages,
    torch_elementwise.rms_norm,
    torch_elementwise.rms_norm_backward,
    torch_elementwise.rotate,
    torch_elementwise.swiglu,
    torch_elementwise.swiglu_backward,
    torch_delta.step,
    torch_delta.walk,
    torch_delta.solve,
    torch_delta.solve_backward,
    torch_delta.read,
    torch_delta.read_backward,
)


@cache
def triton_primitives() -> Primitives:
    from . import (
        triton_chunk,
        triton_decode,
        triton_delta,
        triton_elementwise,
        triton_gather,
        triton_linear,
        triton_surrogate,
    )

    return Primitives(
        triton_linear.forward,
        triton_linear.backward,
        triton_linear.kept_forward,
        triton_linear.kept_gradient,
        triton_linear.BUDGET,
        triton_gather.gather_forward,
        triton_gather.gather_backward,
        triton_surrogate.surrogate,
        triton_decode.paged_attention,
        triton_decode.write_pages,
        triton_elementwise.rms_norm,
        triton_elementwise.rms_norm_backward,
        triton_elementwise.rotate,
        triton_elementwise.swiglu,
        triton_elementwise.swiglu_backward,
        triton_delta.step,
        triton_delta.walk,
        triton_chunk.solve,
        triton_chunk.solve_backward,
        triton_chunk.read,
        triton_chunk.read_backward,
    )


def primitives(device: torch.device) -> Primitives:
    """The backend for tensors on `device`; torch, with one warning, on a GPU that is too old for the Triton kernels.
    Raises ValueError if O1CORE_KERNELS names no backend."""
    choice = os.environ.get("O1CORE_KERNELS") or ("triton" if device.type == "cuda" else "torch")
    if choice not in ("torch", "triton"):
        raise ValueError(f"O1CORE_KERNELS: {choice!r}, expected torch or triton")
    if choice == "torch" or (device.type == "cuda" and not _new_enough(device.index)):
        return TORCH
    return triton_primitives()


@cache
def _new_enough(index: int | None) -> bool:
    """Whether a GPU has the tensor cores for bf16 and the asynchronous copies that every Triton kernel is built on."""
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        warnings.warn(
            f"GPU of compute capability {major}.{minor}: the Triton kernels need 8.0; torch runs instead", stacklevel=4
        )
    return major >= 8
