"""Launch configurations: block sizes, warps and stages of every Triton kernel, by target chip and element size.

One table for two readers: the launchers, and the ahead-of-time compilation (bench/compiled_kernels.py and the tests).
What is compiled there is what ships. There is no autotuning on purpose: it needs a GPU at the first call, times kernels
on live buffers, and picks something else on another day.

Targets: sm_80 (A100, A800), sm_90 (H100, H200), sm_100 (B200), other (any other GPU, within the 99 KB of
shared memory that every chip since sm_86 has) and interpreter (CPU tensors under TRITON_INTERPRET=1: small blocks, so
that small inputs have many).
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import numbers

# Scalars of kernels are annotated tl.float64 and made ACC inside: left alone, Triton passes a Python float as fp32, which
# for float64 inputs and a temperature is off by 6e-8.

# numbers' constants, as kernels may read them.
FLOOR: tl.constexpr = tl.constexpr(numbers.FLOOR)
LOG_RATIO_LIMIT: tl.constexpr = tl.constexpr(numbers.LOG_RATIO_LIMIT)


class Launch(NamedTuple):
    """constants: the kernel's block sizes, which depend on the chip or the element size. precision: of its products."""

    constants: dict[str, int]
    num_warps: int
    num_stages: int
    precision: str | None = None

    def compile_time(self) -> dict[str, int | str]:
        """The kernel's compile-time arguments."""
        return {**self.constants, **({} if self.precision is None else {"PRECISION": self.precision})}

    def compiler(self) -> dict[str, int | bool]:
        """What the compiler is told. FP fusion is pinned, because its default differs between Triton releases."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def options(self) -> dict[str, int | str | bool]:
        """Keyword arguments of the launch."""
        return {**self.compile_time(), **self.compiler()}


def _product(n: int, v: int, h: int, precision: str, num_warps: int, num_stages: int) -> Launch:
    return Launch({"BLOCK_N": n, "BLOCK_V": v, "BLOCK_H": h}, num_warps, num_stages, precision)


# By target and bytes an element. fp32 products are three tf32 products (tf32x3): tensor cores at fp32 accuracy.
LINEAR = {
    "sm_80": {
        2: _product(128, 256, 64, "ieee", 8, 3),
        4: _product(64, 128, 32, "tf32x3", 8, 3),
        8: _product(32, 64, 16, "ieee", 4, 2),
    },
    "sm_90": {
        2: _product(128, 256, 64, "ieee", 8, 4),
        4: _product(64, 128, 32, "tf32x3", 8, 3),
        8: _product(32, 64, 16, "ieee", 4, 2),
    },
    "sm_100": {
        2: _product(128, 256, 64, "ieee", 8, 4),
        4: _product(64, 128, 32, "tf32x3", 8, 3),
        8: _product(32, 64, 16, "ieee", 4, 2),
    },
    "other": {
        2: _product(128, 128, 32, "ieee", 8, 3),
        4: _product(64, 64, 32, "tf32x3", 4, 2),
        8: _product(32, 32, 16, "ieee", 4, 2),
    },
    "interpreter": {size: _product(16, 64, 32, "ieee", 1, 1) for size in (2, 4, 8)},
}
# The persistent forward with TMA loads, where there is one: for 2 bytes an element, with LINEAR's BLOCK_V.
LINEAR_TMA = {target: _product(128, 256, 64, "ieee", 8, 4) for target in ("sm_90", "sm_100")}
GATHER = {"gpu": Launch({"BLOCK_V": 4096}, 8, 1), "interpreter": Launch({"BLOCK_V": 64}, 1, 1)}
KEPT = {"gpu": Launch({"BLOCK_N": 16}, 4, 1), "interpreter": Launch({"BLOCK_N": 8}, 1, 1)}
MERGE = {
    "gpu": Launch({"BLOCK_T": 32, "BLOCK_N": 32}, 4, 1),
    "interpreter": Launch({"BLOCK_T": 4, "BLOCK_N": 16}, 1, 1),
}
# Decode attention, by bytes an element: 64 keys and as many values are in flight twice.
ATTENTION = {2: Launch({}, 4, 2, "ieee"), 4: Launch({}, 4, 1, "tf32x3"), 8: Launch({}, 8, 1, "ieee")}
ATTENTION_MERGE = {"gpu": Launch({}, 4, 1), "interpreter": Launch({}, 1, 1)}
WRITE_PAGES = {"gpu": Launch({}, 1, 1), "interpreter": Launch({}, 1, 1)}
SAMPLE = {
    "gpu": Launch({"BLOCK_R": 1, "BLOCK_V": 8192, "ROOM": 4096}, 16, 1),
    "interpreter": Launch({"BLOCK_R": 1024, "BLOCK_V": 64, "ROOM": 64}, 1, 1),
}
SAMPLE_ROW = {  # where a row is read many times, or has more than 2 bytes a number
    "gpu": Launch({"BLOCK_R": 1, "BLOCK_V": 4096}, 8, 1),
    "interpreter": Launch({"BLOCK_R": 1024, "BLOCK_V": 64}, 1, 1),
}
SURROGATE = {"gpu": Launch({"BLOCK": 1024}, 4, 1), "interpreter": Launch({"BLOCK": 16}, 1, 1)}

# Of the delta rule, whose memory [K, V] goes through a program's registers BLOCK_V columns at a time, beside the keys of
# BLOCK_T tokens of a chunk; the walk by bytes a number.
DELTA_STEP = Launch({"BLOCK_V": 32}, 4, 1)
DELTA_WALK = {
    4: Launch({"BLOCK_V": 16, "BLOCK_T": 32}, 4, 1, "tf32x3"),
    8: Launch({"BLOCK_V": 16, "BLOCK_T": 32}, 8, 1, "ieee"),
}
# Within a chunk: BLOCK columns of K or V at a time, of BLOCK_T tokens where tokens are summed over.
DELTA_CHUNK = {
    4: Launch({"BLOCK": 16, "BLOCK_T": 32}, 4, 1, "tf32x3"),
    8: Launch({"BLOCK": 16, "BLOCK_T": 32}, 8, 1, "ieee"),
}
SWIGLU = {"gpu": Launch({"BLOCK": 1024}, 4, 1), "interpreter": Launch({"BLOCK": 64}, 1, 1)}
# A program of RMSNorm works on so many numbers at a time: several narrow rows (the heads of Qwen3) or one wide one.
NORM_NUMBERS = {"gpu": 4096, "interpreter": 64}


def target(device: torch.device) -> str:
    """The key of LINEAR for tensors on `device`. Raises ValueError for CPU tensors outside Triton's interpreter, and for
    a GPU that is not the current one, on which Triton would launch."""
    if device.type == "cuda":
        if device.index != torch.cuda.current_device():
            raise ValueError(f"tensors on {device} need torch.cuda.set_device({device.index}) first")
        name = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        return name if name in LINEAR else "other"
    if not triton.knobs.runtime.interpret:
        raise ValueError(
            f"O1CORE_KERNELS: triton for tensors on {device} needs TRITON_INTERPRET=1 in the environment at the start"
        )
    return "interpreter"


def linear(device: torch.device, dtype: torch.dtype, width: int = 16) -> Launch:
    """For rows of `width` numbers. Where 16 does not divide it, loads need masks, and the large tiles would spill."""
    name = target(device)
    return LINEAR["other" if name != "interpreter" and width % 16 else name][dtype.itemsize]


def linear_tma(device: torch.device, dtype: torch.dtype, width: int = 16) -> Launch | None:
    name = target(device)
    return LINEAR_TMA.get(name) if dtype.itemsize == 2 and (name == "interpreter" or width % 16 == 0) else None


@cache
def multiprocessors(device: torch.device) -> int:
    """Programs of a persistent kernel."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def attention(device: torch.device, dtype: torch.dtype) -> Launch:
    target(device)
    return ATTENTION[dtype.itemsize]


def elementwise(table: dict[str, Launch], device: torch.device) -> Launch:
    """The entry of a table that does not tell one GPU from another."""
    return table["interpreter" if target(device) == "interpreter" else "gpu"]


def norm(device: torch.device, dtype: torch.dtype, width: int) -> Launch:
    """For rows of `width` numbers, which a program holds whole: 16 numbers a thread (8 of float64), of up to 512 threads."""
    name = "interpreter" if target(device) == "interpreter" else "gpu"
    block = triton.next_power_of_2(width)
    rows = max(1, NORM_NUMBERS[name] // block)
    warps = 1 if name == "interpreter" else max(4, min(16, rows * block * (1 + dtype.itemsize // 8) // 512))
    return Launch({"BLOCK_R": rows, "BLOCK_H": block}, warps, 1)


def rotation(device: torch.device, heads: int, half: int) -> Launch:
    """For a token's heads, whose halves a program turns together: at least 8 numbers a thread, 16 bytes of bf16."""
    heads, half = triton.next_power_of_2(heads), triton.next_power_of_2(half)
    warps = 1 if target(device) == "interpreter" else max(1, min(4, heads * half // 256))
    return Launch({"BLOCK_HEADS": heads, "BLOCK_HALF": half}, warps, 1)


def delta_step(device: torch.device, size: int) -> Launch:
    """For memories of `size` keys, which a program holds whole."""
    target(device)
    return _with_keys(DELTA_STEP, size)


def delta_walk(device: torch.device, dtype: torch.dtype, size: int, tokens: int) -> Launch:
    """The same, for chunks of so many tokens, a multiple of 16."""
    target(device)
    launch = _with_keys(DELTA_WALK[dtype.itemsize], size)
    return launch._replace(constants=launch.constants | {"BLOCK_T": min(launch.constants["BLOCK_T"], tokens & -tokens)})


def delta_chunk(device: torch.device, dtype: torch.dtype, tokens: int) -> Launch:
    """For chunks of so many tokens."""
    target(device)
    launch = DELTA_CHUNK[dtype.itemsize]
    return launch._replace(constants=launch.constants | {"BLOCK_T": min(launch.constants["BLOCK_T"], tokens)})


def _with_keys(launch: Launch, size: int) -> Launch:
    return launch._replace(constants=launch.constants | {"BLOCK_K": max(16, triton.next_power_of_2(size))})


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """numbers.accumulator as Triton's dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32
