"""Memory: how much is free, and keeping what was freed (on Linux each large tensor is otherwise faulted in again)."""

import contextlib
import ctypes
import os
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def keep_freed_memory() -> None:
    """Tell glibc's malloc never to use mmap and never to trim. Does nothing where the C library has no mallopt.

    A training step of a small model on a CPU is mostly page faults without this (bench/memory.py measures it).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a GPU, or in the machine: on Linux what is free and what the page cache would give back."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
