"""The whole model's published tensors out of shards, a block at a time, for a Hugging Face folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..model import Transformer, layout, write_checkpoint
from .sharding import whole_unit
from .world import is_lead, world


class Gathered(Mapping[str, Tensor]):
    """published name: the whole tensor in the dtype that computes, gathered from all ranks when it is asked for.

    All ranks must ask for the same ones in the same order. A block's
    weights are held until the next block's turn, since fused ones are asked for in parts.
    """

    def __init__(self, model: Transformer, dtype: torch.dtype) -> None:
        self.model = model
        self.places = {theirs: (ours, start, shape[0]) for theirs, ours, start, shape in layout(model.config)}
        self.dtype = dtype
        self.held: dict[str, Tensor] = {}

    def __getitem__(self, theirs: str) -> Tensor:
        ours, start, count = self.places[theirs]
        if ours not in self.held:
            self.held = {}  # the last unit goes before the next one comes
            with whole_unit(self.model, int(ours.split(".")[1]) if "." in ours else None) as weights:
                gone = world() is not None  # once they are sharded again
                self.held = {name: weight.to(self.dtype, copy=gone) for name, weight in weights.items()}
        return self.held[ours][start : start + count]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def export_checkpoint(model: Transformer, source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write `folder` as a Hugging Face checkpoint in `dtype`, the rest of it copied from `source`.

    Rank 0 writes a file at a time; no rank ever holds more than that file and one block. Raises UserError as
    `write_checkpoint` does.
    """
    tensors = Gathered(model, dtype)
    if is_lead():
        write_checkpoint(model.config, tensors, source, folder, dtype)
    else:
        for name in tensors:
            tensors[name]  # takes part in the gathering
