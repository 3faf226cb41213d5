"""Every row's code without a GPU, so that no typo waits for the day: python -m bench.gpu --dry

The rows about kernels run at their full sizes on a pretended H100 (bench/pretended_gpu.py): tensors have shapes and no numbers,
launches are stopped, and what they would compile must be in bench/results/compiled_kernels.json or compile without a spill.
The rows about rollouts and training run at tiny sizes on the CPU, and under a build of torch that knows CUDA the product is
walked on a pretended cuda:0 (product.py). Nothing is measured.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.fx.experimental._config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.compiled_kernels import read_record, unfit
from bench.machine_code import read_machine_code
from bench.pretended_gpu import Build, pretended_gpu
from o1core.kernels import checks

from .measure import TINY, Row, Sizes
from .product import walk_product

CAPABILITY = 90
aten = torch.ops.aten


class NoNumbers(TorchDispatchMode):
    """To who reads numbers of a tensor without memory, all are zero, and half of its rows are not."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        pretended = bool(args) and isinstance(args[0], Tensor) and args[0].is_meta
        if pretended and function is aten._local_scalar_dense.default:
            return torch.zeros((), dtype=args[0].dtype).item()
        if pretended and function is aten.nonzero.default:
            return args[0].new_empty(args[0].numel() // 2, args[0].ndim, dtype=torch.int64)
        if pretended and function is aten.equal.default:
            return True
        to_host = function is aten._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu"
        if pretended and to_host:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return function(*args, **kwargs)


def walk(row: Row) -> str:
    """Run a row's code; how it was run. Raises what it raises, and RuntimeError for a kernel that should not ship."""
    if not row.on_kernels:
        row.run(TINY)
        return "at tiny sizes on the CPU"
    known, seen = read_record(), set[str]()

    def launched(kernel: Any, options: dict[str, Any], build: Build) -> None:
        if build.key not in seen and build.key not in known:
            record = {"target": f"sm_{CAPABILITY}"} | read_machine_code(build.compile(), CAPABILITY)
            if found := unfit(record):
                raise RuntimeError(f"{kernel.fn.__name__}: {'; '.join(found)}")
        seen.add(build.key)

    all_true = mock.patch.object(torch.fx.experimental._config, "meta_nonzero_assume_all_nonzero", True)  # of masks
    with pretended_gpu(CAPABILITY, launched), NoNumbers(), all_true, mock.patch.object(checks, "_rising"):
        row.run(replace(Sizes(), device="meta"))
    return f"on a pretended sm_{CAPABILITY}, {len(seen)} kernels"


def walk_all(rows: list[Row]) -> int:
    """The exit status: 1 where a row or the product failed."""
    failed = 0
    parts: dict[str, Callable[[], str]] = {row.name: partial(walk, row) for row in rows}
    for name, work in (parts | {"the product": walk_product}).items():
        try:
            print(f"{name}: {work()}", flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
    print(f"{failed} failed; nothing was measured.")
    return 1 if failed else 0
