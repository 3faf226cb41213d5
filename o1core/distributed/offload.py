"""Room for rollouts: what only the update needs waits in the host's memory meanwhile."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, UntypedStorage

from .sharded import local

log = logging.getLogger(__name__)

ALIGNED = 512  # bytes: where a tensor's copy begins in the block


class HostMemory:
    """One block of the host's memory, page-locked where it serves a GPU, as large as the most that it had to hold.

    torch hands page-locked memory out in powers of two and keeps it: moments of 61 GB would take up to twice that. So the
    block is plain memory of the size that is needed, locked as it is, and used again each time.
    """

    def __init__(self) -> None:
        self.block = torch.empty(0, dtype=torch.uint8)

    def room(self, size: int, locked: bool) -> Tensor:
        """The block, of at least so many bytes."""
        if len(self.block) < size:
            self.lock(False)
            self.block = torch.empty(0, dtype=torch.uint8)  # the old one goes before the new one comes
            self.block = torch.empty(size, dtype=torch.uint8)
            if locked:
                self.lock(True)
        return self.block

    def lock(self, locked: bool) -> None:
        """Page-lock the block, so that a GPU copies at full speed and the host need not wait, or unlock it."""
        if not (len(self.block) and torch.cuda.is_initialized()):
            return
        runtime, place = torch.cuda.cudart(), self.block.data_ptr()
        if not locked:
            runtime.cudaHostUnregister(place)
        elif error := int(runtime.cudaHostRegister(place, len(self.block), 0)):
            log.warning(
                "--offload: %d bytes cannot be page-locked (CUDA error %d); copies are slow", len(self.block), error
            )

    @contextmanager
    def holding(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Move this rank's part of the tensors here, and back on leaving. Nothing may read them inside.

        Whole storages are moved: a shard of FSDP lies in one that is padded to what the largest rank holds, and the next
        gathering reads the padding too.
        """
        storages = {s.data_ptr(): s for s in (local(t.detach()).untyped_storage() for t in tensors) if s.nbytes()}
        locked = any(storage.device.type == "cuda" for storage in storages.values())
        rooms = [-(-storage.nbytes() // ALIGNED) * ALIGNED for storage in storages.values()]
        parts = self.room(sum(rooms), locked)[: sum(rooms)].split(rooms)
        held = [(storage, part[: storage.nbytes()]) for storage, part in zip(storages.values(), parts)]
        for storage, part in held:
            part.copy_(bytes_of(storage), non_blocking=locked)
        if locked:
            torch.cuda.synchronize()
        for storage, _ in held:
            storage.resize_(0)
        try:
            yield
        finally:
            for storage, part in held:
                storage.resize_(len(part))
                bytes_of(storage).copy_(part, non_blocking=locked)


def bytes_of(storage: UntypedStorage) -> Tensor:
    """uint8 [nbytes] of a storage, where it lies."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
