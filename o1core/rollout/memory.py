"""Memory: how much of the main one is free, keeping what was freed (on Linux each large tensor is otherwise faulted in again),
and the way to a device."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's mallopt(3)
LARGE = 32 << 20  # bytes, the highest threshold that glibc takes
MOST_MAPPED = 65536  # allocations, glibc's default
MOST_GROWTH = 1.02
CGROUP = Path("/sys/fs/cgroup")  # of a container, by version 2 of the kernel's interface

mapped = False  # whether map_large_tensors was called


def keep_freed_memory() -> None:
    """Tell glibc's malloc never to use mmap and never to trim. Does nothing where the C library has no mallopt.

    A training step of a small model on a CPU is mostly page faults without this (bench/memory.py measures it).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def map_large_tensors() -> None:
    """Where memory is scarce: tensors of LARGE and more are mapped one by one again, and given back when they are freed.

    In a heap that is kept, the room of a tensor that was freed is a few bytes too small for the next of its size, so the
    gradients of a vocabulary may lie there twice or thrice; a process then holds up to 1.4 times what is alive. Mapped,
    it holds what is alive, and pays with page faults.
    """
    global mapped
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_MMAP_MAX, MOST_MAPPED)
        libc.malloc_trim(0)
        mapped = True


@contextlib.contextmanager
def keep_large_tensors() -> Iterator[None]:
    """Takes map_large_tensors back while a model samples: the logits of every token are large, and mapping them anew takes
    four times as long as writing them. All are given back at the end."""
    if not mapped:
        yield
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, MOST_MAPPED)
        libc.malloc_trim(0)


class FreedMemory:
    """Gives freed memory back to the system where keep_freed_memory lets a process creep.

    Holes that differ in size from what is asked for next stay resident, so a process that never trims grows with every
    step. A trim makes the next step fault its pages in again (6 % of a step of the embedded model), so it is done only
    where the process holds more than MOST_GROWTH times what a step after a trim came to hold.
    """

    def __init__(self) -> None:
        self.level = 0  # bytes, the most that was resident after the first step that followed a trim
        self.trimmed = True

    def after_step(self) -> None:
        """To be called after every step of work of the same kind."""
        resident = resident_memory()
        if self.trimmed:
            self.level, self.trimmed = max(self.level, resident), False
        elif resident > MOST_GROWTH * self.level:
            self.trimmed = True
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident_memory() -> int:
    """Bytes of main memory that this process holds; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def free_memory(device: torch.device) -> int:
    """Bytes that can be had: on a GPU with what torch keeps of freed tensors, or in the machine (or container) with what the
    page cache would give back."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, KeyError):
        free = read_table(Path("/proc/meminfo"))["MemAvailable:"] * 1024
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used + read_table(CGROUP / "memory.stat")["inactive_file"])
    return free


def total_memory() -> int:
    """Bytes of main memory of this machine, or of the container where it has less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        total = min(total, int((CGROUP / "memory.max").read_text()))
    return total


def read_table(path: Path) -> dict[str, int]:
    """The first two columns of a text file of the kernel."""
    return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers of the host on their way to the device, which they reach before what is launched next. A GPU's host does not
    wait for that."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
