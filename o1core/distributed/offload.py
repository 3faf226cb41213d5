"""Room for rollouts: what only the update needs waits in the host's memory meanwhile."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from .sharded import local

Offload = Literal["none", "moments", "optimiser"]


@contextmanager
def offloaded(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Move this rank's part of the tensors to the host's memory, and back on leaving. Nothing may read them inside."""
    parts = [local(t.detach()) for t in tensors]
    held = []
    for tensor in parts:
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        held.append(copy.copy_(tensor))
        tensor.untyped_storage().resize_(0)
    try:
        yield
    finally:
        for tensor, copy in zip(parts, held):
            tensor.untyped_storage().resize_(tensor.numel() * tensor.element_size())
            tensor.copy_(copy)
