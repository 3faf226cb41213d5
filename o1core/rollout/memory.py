"""Memory: how much is free, and keeping what was freed (on Linux each large tensor is otherwise faulted in again)."""

import contextlib
import ctypes
import os
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)
CGROUP = Path("/sys/fs/cgroup")  # of a container, by version 2 of the kernel's interface


def keep_freed_memory() -> None:
    """Tell glibc's malloc never to use mmap and never to trim. Does nothing where the C library has no mallopt.

    A training step of a small model on a CPU is mostly page faults without this (bench/memory.py measures it).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had: on a GPU, or in the machine (or container) with what the page cache would give back."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
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
