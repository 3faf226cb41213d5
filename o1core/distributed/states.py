"""Tensors in shards to a folder of safetensors files and back, on any number of processes (torch.distributed.checkpoint).

Every rank writes the rows it holds and reads those it needs. One process does the same without a process group, and
writes one plain safetensors file where that is small. Nothing is pickled: torch's native format keeps its table of
contents in a pickle, its Hugging Face format in the headers of the safetensors files.

`BackgroundSave` does it in a thread, straight from the tensors that training holds: no copy of them is made, so they may be
read meanwhile (a forward and backward pass does nothing else), and whoever changes them waits first. torch's own async_save
copies all of the state to the host's memory instead, 12 bytes a weight. On a GPU the thread has a stream of its own, so that
training does not stand behind its copies, and they go through two small page-locked buffers, several times as fast as to plain
memory.

torch's module is imported where it is used: it takes as long as half of torch, and a command that trains nothing does
without.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..files import damaged_file, file_digest
from .sums import of_this_rank, split_by_cost
from .world import gather, world

FILE_BYTES = 1 << 30  # of whole tensors in a file; a rank holds its part of one twice while it writes it
STAGE_BYTES = 64 << 20  # of a page-locked buffer, on the way from a GPU to a file
SINGLE = "training.safetensors"  # the name of the file where there is one

# Said for one process, on purpose. Not within catch_warnings, which is not for threads.
warnings.filterwarnings("ignore", message=".*single process", module="torch.distributed.checkpoint")


class BackgroundSave:
    """Work in a thread that other ranks do too, on tensors of a device as they are now. `wait` ends it, and raises what went
    wrong in it."""

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self.error: BaseException | None = None
        self.device, self.ready = device, None
        if device.type == "cuda":
            self.ready = torch.cuda.Event()
            self.ready.record()
        self.thread = threading.Thread(target=self._run, args=(work,), name="writing", daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            with self.beside():
                work()
        except BaseException as error:
            self.error = error

    @contextmanager
    def beside(self) -> Iterator[None]:
        """A stream of the thread's own, on this rank's device: a new thread's is the first GPU, whoever started it."""
        if self.ready is None:
            yield
            return
        torch.cuda.set_device(self.device)
        stream = torch.cuda.Stream()
        stream.wait_event(self.ready)
        with torch.cuda.stream(stream):
            yield

    def wait(self) -> None:
        self.thread.join()
        if self.error is not None:
            raise self.error


def save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write each rank's rows of the tensors. All ranks call this, with the same names. Raises OSError where one of them
    cannot be written."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    opened = world()
    files = file_numbers({name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()})
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    group = opened.writers if opened else None

    class Staged(DefaultSavePlanner):
        def resolve_data(self, item: Any) -> Any:
            data = super().resolve_data(item)
            return to_host(data, STAGE_BYTES) if isinstance(data, Tensor) and data.is_cuda else data

    try:
        save(dict(tensors), storage_writer=writer, planner=Staged(), process_group=group, no_dist=opened is None)
    except CheckpointException as error:  # every rank gets what went wrong on one of them
        raise OSError(first_failure(error)) from None
    written = list(folder.glob("*.safetensors"))
    if opened is None and len(written) == 1:
        written[0].rename(folder / SINGLE)


def to_host(tensor: Tensor, stage: int) -> Tensor:
    """A copy in the host's memory, through two page-locked buffers of `stage` bytes: while one is read, the next is filled."""
    on_gpu = tensor.is_cuda
    source = tensor.detach().contiguous().view(-1)
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    parts = list(
        zip(source.split(max(1, stage // tensor.itemsize)), copy.view(-1).split(max(1, stage // tensor.itemsize)))
    )
    buffers = [torch.empty(len(parts[0][0]), dtype=tensor.dtype, pin_memory=on_gpu) for _ in parts[:2]]
    done = [torch.cuda.Event() for _ in buffers] if on_gpu else []

    def fill(i: int) -> None:
        buffers[i % 2][: len(parts[i][0])].copy_(parts[i][0], non_blocking=on_gpu)
        if on_gpu:
            done[i % 2].record()

    for i in range(len(parts) + 1):
        if i < len(parts):
            fill(i)
        if i > 0:
            if on_gpu:
                done[(i - 1) % 2].synchronize()
            parts[i - 1][1].copy_(buffers[(i - 1) % 2][: len(parts[i - 1][1])])
    return copy


def file_numbers(sizes: Mapping[str, int]) -> dict[str, int]:
    """The file, from 1, that each tensor of so many bytes belongs to; a file takes all that start within FILE_BYTES."""
    files: dict[str, int] = {}
    start = 0
    for name, size in sizes.items():
        files[name] = 1 + start // FILE_BYTES
        start += size
    return files


def load_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill each rank's rows of the tensors. Raises OSError where a file is broken or lacks one."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world() is None)
    except (CheckpointException, SafetensorError, RuntimeError, ValueError) as error:
        raise OSError(first_failure(error)) from None


def first_failure(error: BaseException) -> str:
    """In one line, what one rank reported."""
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def digests_by_all(what: str, folder: Path) -> dict[str, str]:
    """name: SHA-256 of every file of a folder that all ranks see, once all have written theirs. Each rank reads some. what:
    the folder, for messages."""
    gather(what)
    names = sorted(path.name for path in folder.iterdir())
    mine = {names[i]: file_digest(folder / names[i]) for i in of_this_rank(split_by_cost([1] * len(names)))}
    return {name: digest for of_rank in gather(what, mine) for name, digest in of_rank.items()}


def damaged_by_all(what: str, folder: Path, listed: dict[str, str]) -> Path | None:
    """What damaged_file returns, each rank reading some of the files."""
    names = sorted(listed)
    mine = damaged_file(folder, {names[i]: listed[names[i]] for i in of_this_rank(split_by_cost([1] * len(names)))})
    found = [name for name in gather(what, None if mine is None else mine.name) if name is not None]
    return folder / found[0] if found else None
