"""Every row's code without a GPU, so that no typo waits for the day: python -m bench.gpu --dry

Each row runs on a pretended H100 (bench/pretended_gpu.py): tensors have shapes and no numbers, launches are stopped, and what
they would compile must be in bench/results/compiled_kernels.json or compile without a spill. What its tensors hold at their
peak must be in the row's plan. Widths are the full ones, as are the rows about kernels and training; a model to sample from
has four layers, and few tokens are sampled. Under a build of torch that knows CUDA the product is walked on a pretended cuda:0
too (product.py). Nothing is measured.
"""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.fx.experimental._config
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.distributed import TCPStore
from torch.distributed.run import get_args_parser
from torch.utils._python_dispatch import TorchDispatchMode

from bench.compiled_kernels import Record, read_record, unfit
from bench.machine_code import resources
from bench.pretended_gpu import CARD_BYTES, Allocated, Build, pretended_gpu, pretended_runtime
from o1core.kernels import checks
from o1core.rollout import engine

from . import sharded
from .measure import HELD, Row, Sizes
from .product import walk_product
from .stand_ins import stand_ins

CAPABILITY = 90
DRY = replace(Sizes(), device="meta", runs=1, layers=4, prompts=4, new_tokens=2, step_tokens=2)
FUSED = [*torch_optimizer._get_fused_kernels_supported_devices(), "meta"]
STAND_INS = (  # for what asks the device or its numbers
    mock.patch.object(torch.fx.experimental._config, "meta_nonzero_assume_all_nonzero", True),  # of masks
    mock.patch.object(checks, "_rising"),
    mock.patch.object(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: FUSED),
    mock.patch.dict("os.environ", {"O1CORE_CACHE": "pages"}),
    mock.patch.object(sharded, "run", lambda command, **settings: by_torchrun(command, **settings)),
)
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
        if function is aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0].zero_()
        to_host = function is aten._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu"
        if pretended and to_host:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return function(*args, **kwargs)


def by_torchrun(command: list[str], **settings: Any) -> None:
    """Stands for a torchrun of processes on GPUs: its own parser reads the command, and this process does on the CPU what
    each of them would."""
    asked = get_args_parser().parse_args(command[3:])
    assert asked.module and asked.training_script == "bench.gpu.sharded"
    _, folder = asked.training_script_args
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's part
    told = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    told |= {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True, "O1CORE_KERNELS": "torch"}
    with mock.patch.dict("os.environ", {name: str(value) for name, value in told.items()}):
        sharded.main(["cpu", folder])
    for r in range(1, int(asked.nproc_per_node)):
        shutil.copy(f"{folder}/0.json", f"{folder}/{r}.json")


def walk(row: Row, known: dict[str, Record]) -> str:
    """Run a row's code; how it was run. known: kernels that were compiled, to which others are added. Raises what it raises,
    and RuntimeError for a kernel that should not ship or for memory beyond the plan."""
    seen, allocated = set[str](), Allocated("meta")

    def launched(kernel: Any, options: dict[str, Any], build: Build) -> None:
        if build.key not in known:
            known[build.key] = record = {"target": f"sm_{CAPABILITY}"} | resources(build.compile())
            if found := unfit(record):
                raise RuntimeError(f"{kernel.fn.__name__}: {'; '.join(found)}")
        seen.add(build.key)

    with contextlib.ExitStack() as stack:
        for context in (
            pretended_gpu(CAPABILITY, launched),
            pretended_runtime(CAPABILITY, allocated),
            *STAND_INS,
            stand_ins(),
        ):
            stack.enter_context(context)
        stack.enter_context(mock.patch.object(engine, "free_memory", lambda device: CARD_BYTES - allocated.now))
        stack.enter_context(NoNumbers())
        stack.enter_context(allocated)
        found = row.measure(DRY)
    told = f"on a pretended sm_{CAPABILITY}, {len(seen)} kernels"
    if row.planned is None:
        return f"{told}, {allocated.peak / 2**30:.2f} GiB"
    held, planned = found[HELD], found["planned GiB"]
    assert isinstance(held, float)
    if held > 1:
        raise RuntimeError(f"holds {held:.2f} times the {planned:.2f} GiB that are planned")
    return f"{told}, {held:.2f} of the {planned:.2f} GiB that are planned"


def walk_all(rows: list[Row]) -> int:
    """The exit status: 1 where a row or the product failed."""
    failed = 0
    known = read_record()
    parts: dict[str, Callable[[], str]] = {row.name: partial(walk, row, known) for row in rows}
    for name, work in (parts | {"the product": walk_product}).items():
        try:
            print(f"{name}: {work()}", flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
    print(f"{failed} failed; nothing was measured.")
    return 1 if failed else 0
