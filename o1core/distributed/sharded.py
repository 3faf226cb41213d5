"""What torch holds in shards, recognised without importing torch.distributed.fsdp: that takes as long as half of torch,
and a command that trains nothing does without. Where nobody has imported a class, nothing is of it.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: object) -> "TypeGuard[DTensor]":
    """Whether this rank holds a part of the tensor."""
    return _is_of(tensor, "torch.distributed.tensor", "DTensor")


def is_unit(module: nn.Module) -> "TypeGuard[FSDPModule]":
    """Whether the module is a unit of FSDP, whose weights are whole for a while only."""
    return _is_of(module, "torch.distributed.fsdp", "FSDPModule")


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this rank holds; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def _is_of(value: object, module: str, name: str) -> bool:
    imported = sys.modules.get(module)
    return imported is not None and isinstance(value, getattr(imported, name))
