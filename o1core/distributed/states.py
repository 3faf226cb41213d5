"""Tensors in shards to a folder of safetensors files and back, on any number of processes (torch.distributed.checkpoint).

Every rank writes the rows it holds and reads those it needs. One process does the same without a process group, and
writes one plain safetensors file. Nothing is pickled: torch's native format keeps its table of contents in a pickle,
its Hugging Face format in the headers of the safetensors files.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from .world import world

FILE_BYTES = 4 << 30  # of a whole tensor's bytes per file: what a rank holds in memory while it writes one
SINGLE = "training.safetensors"  # the name of the file where there is one


def save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write each rank's rows of the tensors. All ranks call this, with the same names. Raises OSError where one of them
    cannot be written."""
    files: dict[str, int] = {}
    size = 0
    for name, tensor in tensors.items():
        files[name] = 1 + size // FILE_BYTES
        size += tensor.numel() * tensor.element_size()
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process")
        try:
            save(dict(tensors), storage_writer=writer, no_dist=world() is None)
        except CheckpointException as error:  # every rank gets what went wrong on one of them
            raise OSError(first_failure(error)) from None
    written = list(folder.glob("*.safetensors"))
    if world() is None and len(written) == 1:
        written[0].rename(folder / SINGLE)


def load_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill each rank's rows of the tensors. Raises OSError where a file is broken or lacks one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process")
        reader = HuggingFaceStorageReader(str(folder))
        try:
            load(dict(tensors), storage_reader=reader, no_dist=world() is None)
        except (CheckpointException, SafetensorError, RuntimeError, ValueError) as error:
            raise OSError(first_failure(error)) from None


def first_failure(error: BaseException) -> str:
    """In one line, what one rank reported."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
