"""A pretended GPU: meta tensors for its memory, and Triton's own launch stopped before the driver would be asked.

What a launch compiles depends on its arguments: Triton makes a constant of an integer that is 1, and counts on addresses and
integers that 16 divides. So the launchers run as they are, on tensors without memory, for a chip that is not there, and
Triton's own code decides what to compile. Compiling itself is left to whoever looks: most of the time it was done before.
TRITON_INTERPRET must not be set when triton is imported.
"""

import contextlib
import hashlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from o1core.kernels import configs

MULTIPROCESSORS = 132
CARD, CARD_BYTES = "NVIDIA H100 80GB HBM3", 80 << 30


@dataclass(frozen=True)
class Build:
    """What Triton would compile for a launch: a kernel with the types and constants of its arguments, for a chip."""

    source: ASTSource
    target: GPUTarget
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """Equal keys, equal machine code: a hash of the kernel's text and all that it calls, of the arguments' types and
        constants, of the compiler's options, the chip and the release of Triton."""
        options = make_backend(self.target).parse_options(self.options).hash()
        parts = triton.__version__, self.source.hash(), options, str(self.target.arch)
        return hashlib.sha256("-".join(parts).encode()).hexdigest()[:16]

    def compile(self) -> CompiledKernel:
        return triton.compile(self.source, self.target, self.options)


Launched = Callable[
    [JITFunction, dict[str, Any], Build], None
]  # the kernel, its keyword arguments, what it would compile


class Driver:
    """What Triton asks of a driver before it launches. A device a chip, because compiled kernels are kept by device."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


class Address:
    """A tensor as Triton looks at it. Memory begins at a multiple of 4,096, as an allocator's does."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self.at = tensor.dtype, 4096 + int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self.at


def addressed(argument: Any) -> Any:
    """An argument of a launch with addresses for tensors."""
    if isinstance(argument, tuple):
        parts = [addressed(part) for part in argument]
        return type(argument)(*parts) if hasattr(argument, "_fields") else tuple(parts)
    return Address(argument) if isinstance(argument, torch.Tensor) else argument


@contextlib.contextmanager
def pretended_gpu(capability: int, launched: Launched) -> Iterator[None]:
    """Inside, what kernels launched on meta tensors would compile for a chip (90: sm_90) goes to `launched`; nothing runs."""
    run, name = JITFunction.run, f"sm_{capability}"

    def stopped(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Build:
        build = run(self, *map(addressed, arguments), grid=grid, warmup=True, **options)
        launched(self, options, build)
        return build

    def not_yet(source: ASTSource, target: GPUTarget, options: dict[str, Any]) -> Build:
        return Build(source, target, options)

    driver.set_active(Driver(capability))
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", stopped))
        stack.enter_context(mock.patch("triton.compiler.compile", not_yet))  # where a JITFunction finds it
        stack.enter_context(
            mock.patch.object(configs, "target", lambda device: name if name in configs.LINEAR else "other")
        )
        stack.enter_context(mock.patch.object(configs, "multiprocessors", lambda device: MULTIPROCESSORS))
        stack.enter_context(mock.patch.dict("os.environ", {"O1CORE_KERNELS": "triton"}))
        yield


class Allocated(TorchDispatchMode):
    """Counts the bytes of the tensors of a kind of device that are alive, and their peak: what torch's allocator would say,
    but for what it rounds up."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.now, self.peak = device, 0, 0
        self.known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device:
                self.hold(tensor.untyped_storage())
        return result

    def hold(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known.add(storage)
            self.change(storage.nbytes())
            weakref.finalize(storage, self.change, -storage.nbytes())

    def change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def forget_peak(self) -> None:
        self.peak = self.now


@contextlib.contextmanager
def pretended_runtime(capability: int, allocated: Allocated) -> Iterator[None]:
    """torch.cuda of a card that is not there, whose memory holds what is counted. Nothing waits, and nothing takes time."""
    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None, elapsed_time=lambda other: 1.0)
    stream = SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: None)
    properties = SimpleNamespace(total_memory=CARD_BYTES, multi_processor_count=MULTIPROCESSORS)
    answers: dict[str, Callable[..., Any]] = {
        "get_device_capability": lambda *_: divmod(capability, 10),
        "get_device_name": lambda *_: CARD,
        "current_device": lambda: 0,
        "device_count": lambda: 2,
        "mem_get_info": lambda *_: (CARD_BYTES - allocated.now, CARD_BYTES),
        "memory_reserved": lambda *_: allocated.now,
        "memory_allocated": lambda *_: allocated.now,
        "max_memory_allocated": lambda *_: allocated.peak,
        "reset_peak_memory_stats": lambda *_: allocated.forget_peak(),
        "get_device_properties": lambda *_: properties,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "Event": lambda *_, **__: event,
        "Stream": lambda *_, **__: stream,
        "current_stream": lambda *_: stream,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        yield
