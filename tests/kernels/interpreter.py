"""What the tests do to Triton's interpreter: bf16 made exact, and every load and store seen.

The interpreter keeps bf16 as raw uint16: it multiplies the bit patterns in a dot and cuts the end off fp32 numbers
instead of rounding them. A GPU does neither. exact_bf16 repairs both, for tests alone.
"""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _bf16_to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _float32_to_bf16(values: np.ndarray) -> np.ndarray:
    """Round to nearest, ties to even; NaN stays one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


@contextmanager
def _replaced(**methods):
    """Methods of the interpreter's builder, for the duration of a block."""
    before = {name: InterpreterBuilder.__dict__[name] for name in methods}
    for name, method in methods.items():
        setattr(InterpreterBuilder, name, method)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(InterpreterBuilder, name, method)


@contextmanager
def exact_bf16():
    """Casts from and to bf16 that round as a GPU does, and dots that multiply numbers."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def exact_cast(self, source, kind):
        if source.dtype.scalar == tl.bfloat16:
            source = TensorHandle(_bf16_to_float32(source.data), tl.float32)
            if kind.scalar == tl.float32:
                return source
        if kind.scalar == tl.bfloat16:
            return TensorHandle(_float32_to_bf16(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, source, kind)

    def exact_dot(self, a, b, *rest):
        wide = [
            TensorHandle(_bf16_to_float32(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
        ]
        return dot(self, *wide, *rest)

    with _replaced(cast_impl=exact_cast, create_dot=exact_dot):
        yield


@contextmanager
def dot_by_rows():
    """Dots that compute each row alike, as tensor cores do. The interpreter's go through a BLAS, which sums the numbers of
    a row in an order that depends on where the row stands in its block."""

    def row_dot(self, a, b, d, *rest):
        x, y = (
            _bf16_to_float32(h.data) if h.dtype.scalar == tl.bfloat16 else h.data.astype(d.data.dtype) for h in (a, b)
        )
        products = x[:, None, :] * np.ascontiguousarray(y.T)[None]
        return TensorHandle(products.sum(-1, dtype=d.data.dtype) + d.data, d.dtype.scalar)

    with _replaced(create_dot=row_dot):
        yield


@dataclass(frozen=True)
class Access:
    """One load or store: addresses of the numbers that its mask lets through, and the shape of the block. Or a barrier, of
    no address."""

    kind: str
    addresses: np.ndarray
    shape: tuple[int, ...]


@contextmanager
def accesses(fake: bool = False, program: int | None = None):
    """Yields the list of accesses made by kernels in the block.

    With fake, memory is not touched: loads return zeros and stores go nowhere, so that a launch of any size can be
    looked at. With program, every program runs as that one: launch a grid of one to see the last of millions.
    """
    seen: list[Access] = []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    program_id = InterpreterBuilder.create_get_program_id

    def note(kind, pointers, mask):
        mask = np.broadcast_to(mask.data, pointers.data.shape)
        seen.append(Access(kind, pointers.data[mask], pointers.data.shape))

    def seen_load(self, pointers, mask, other, *rest):
        note("load", pointers, mask)
        if not fake:
            return load(self, pointers, mask, other, *rest)
        kind = pointers.get_element_ty()
        return TensorHandle(np.zeros(pointers.data.shape, interpreter._get_np_dtype(kind)), kind)

    def seen_store(self, pointers, value, mask, *rest):
        note("store", pointers, mask)
        return None if fake else store(self, pointers, value, mask, *rest)

    def seen_barrier(self):
        seen.append(Access("barrier", np.empty(0, dtype=np.uint64), ()))

    def one_program(self, axis):
        handle = program_id(self, axis)
        return handle if program is None else TensorHandle(np.array([program], dtype=np.int32), tl.int32)

    with _replaced(
        create_masked_load=seen_load,
        create_masked_store=seen_store,
        create_barrier=seen_barrier,
        create_get_program_id=one_program,
    ):
        yield seen


def numbers(seen: list[Access], **tensors) -> Counter:
    """How many numbers were loaded from and stored to each tensor: {"load logits": 12, ...}; the rest as "load", "store"."""
    found = Counter()
    for access in seen:
        left = len(access.addresses)
        for name, tensor in tensors.items():
            low = tensor.data_ptr()
            high = low + tensor.untyped_storage().nbytes()
            inside = int(((access.addresses >= low) & (access.addresses < high)).sum())
            found[f"{access.kind} {name}"] += inside
            left -= inside
        found[access.kind] += left
    return found
