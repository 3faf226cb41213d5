"""Which primitives run: Triton on a GPU, chunked torch elsewhere, unless O1CORE_KERNELS=torch|triton says otherwise.

A backend is eight functions (their signatures: the docstring of kernels/__init__.py). Triton is imported only when it is
chosen: it costs time at start and does not exist everywhere.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from . import chunked


class Primitives(NamedTuple):
    linear_forward: Callable
    linear_backward: Callable
    kept_forward: Callable
    kept_gradient: Callable
    gather_forward: Callable
    gather_backward: Callable
    surrogate: Callable
    length_harmonizing_advantage: Callable


TORCH = Primitives(
    chunked.forward,
    chunked.backward,
    chunked.kept_forward,
    chunked.kept_gradient,
    chunked.gather_forward,
    chunked.gather_backward,
    chunked.surrogate,
    chunked.length_harmonizing_advantage,
)


@cache
def triton_primitives() -> Primitives:
    from . import triton_advantage, triton_gather, triton_kept, triton_linear, triton_surrogate

    return Primitives(
        triton_linear.forward,
        triton_linear.backward,
        triton_kept.forward,
        triton_kept.logit_gradient,
        triton_gather.forward,
        triton_gather.backward,
        triton_surrogate.surrogate,
        triton_advantage.length_harmonizing_advantage,
    )


def primitives(device: torch.device) -> Primitives:
    """The backend for tensors on `device`. Raises ValueError if O1CORE_KERNELS names no backend."""
    choice = os.environ.get("O1CORE_KERNELS") or ("triton" if device.type == "cuda" else "torch")
    if choice not in ("torch", "triton"):
        raise ValueError(f"O1CORE_KERNELS: {choice!r}, expected torch or triton")
    return triton_primitives() if choice == "triton" else TORCH
