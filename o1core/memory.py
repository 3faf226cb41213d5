"""Freed memory stays with the process: on Linux each large tensor is otherwise given back and faulted in again."""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def keep_freed_memory() -> None:
    """Tell glibc's malloc never to use mmap and never to trim. Does nothing where the C library has no mallopt.

    A training step of a small model on a CPU is mostly page faults without this (bench/memory.py measures it).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
