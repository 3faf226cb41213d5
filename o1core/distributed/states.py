"""Tensors in shards to a folder of safetensors files and back, on any number of processes (torch.distributed.checkpoint).

Every rank writes the rows it holds and reads those it needs. One process does the same without a process group, and
writes one plain safetensors file. Nothing is pickled: torch's native format keeps its table of contents in a pickle,
its Hugging Face format in the headers of the safetensors files.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from .world import world

FILE_BYTES = 4 << 30  # of a whole tensor's bytes per file: what a rank holds in memory while it writes one
SINGLE = "training.safetensors"  # the name of the file where there is one


def save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write each rank's rows of the tensors. All ranks call this, with the same names."""
    files: dict[str, int] = {}
    size = 0
    for name, tensor in tensors.items():
        files[name] = 1 + size // FILE_BYTES
        size += tensor.numel() * tensor.element_size()
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process")
        save(dict(tensors), storage_writer=writer, no_dist=world() is None)
    written = list(folder.glob("*.safetensors"))
    if world() is None and len(written) == 1:
        written[0].rename(folder / SINGLE)


def load_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill each rank's rows of the tensors. Raises the reader's own error where a file is broken or lacks one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process")
        reader = HuggingFaceStorageReader(str(folder))
        load(dict(tensors), storage_reader=reader, no_dist=world() is None)
