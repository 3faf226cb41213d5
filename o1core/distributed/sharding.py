"""Weights in shards (FSDP2): every rank holds a part of each, whole ones exist a block at a time.

Trained weights are held in fp32 and compute in the model's dtype by policy: they are their own masters. Frozen ones are
held in the dtype that computes. Each block is a unit; the root is one more with the embedding, the last norm and the
head, and stays whole between a forward and its backward, since the loss reads the head.

The loss divides by the units of the whole batch, so gradients are summed over ranks, not averaged: both settings of
`shard` are needed on every unit, they do not reach down.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ..model import Piece, Transformer, fill, layout, open_tensors, read_config
from .world import World, world


def trained_model(plain: Transformer, folder: Path, select: Callable[[Transformer], None]) -> Transformer:
    """The model to train: `plain` itself in one process, else one in shards, read from the same folder.

    plain: holds the checkpoint of `folder`, in the dtype that computes. select: sets requires_grad.
    """
    select(plain)
    opened = world()
    if opened is None:
        return plain
    plain.requires_grad_(False)  # from here on a copy to sample from
    with torch.device("meta"):
        model = Transformer(plain.config)
    select(model)
    compute = plain.embed.dtype
    for p in model.parameters():
        p.data = p.data.to(torch.float32 if p.requires_grad else compute)
    shard(model, compute, opened)
    model.to_empty(device=opened.device)
    load_shards(model, folder, compute)
    return model


def shard(model: Transformer, compute: torch.dtype, opened: World) -> None:
    """Make each block and the root a unit of FSDP."""
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for unit in (*model.blocks, model):
        fully_shard(unit, mesh=opened.mesh, mp_policy=policy)
        assert isinstance(unit, FSDPModule)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def local_rows(parameter: Tensor) -> tuple[Tensor, int]:
    """What this process holds of a parameter, and the first row of it."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local(), offset[0]


def load_shards(model: Transformer, folder: Path, compute: torch.dtype) -> None:
    """Fill the rows that this rank holds from a Hugging Face folder; no other is read."""
    stored = open_tensors(folder, read_config(folder))
    fill(stored, local_pieces(model))
    for p in model.parameters():  # masters start from the weights that compute, as they do in one process
        if p.dtype != compute:
            local = local_rows(p.detach())[0]
            local.copy_(local.to(compute))


def local_pieces(model: Transformer) -> Iterator[Piece]:
    """Of every published tensor, the rows that lie in this rank's shards."""
    held = {name: local_rows(p.detach()) for name, p in model.named_parameters()}
    for theirs, ours, start, shape in layout(model.config):
        local, first = held[ours]
        low, high = max(start, first), min(start + shape[0], first + len(local))
        if low < high:
            yield Piece(theirs, slice(low - start, high - start), slice(None), local[low - first : high - first])


def settle(model: Transformer) -> None:
    """Drop the root's whole weights that a forward without gradient leaves: they do not follow an update."""
    if isinstance(model, FSDPModule):
        model.reshard()


@torch.no_grad()
def whole_units(model: Transformer) -> Iterator[dict[str, Tensor]]:
    """A unit at a time, {name: its whole weight in the dtype that computes}, which is gone at the next one."""
    for prefix, unit in [*((f"blocks.{i}.", block) for i, block in enumerate(model.blocks)), ("", model)]:
        assert isinstance(unit, FSDPModule)
        unit.unshard()
        yield {prefix + name: p.detach() for name, p in unit.named_parameters() if prefix or "." not in name}
        unit.reshard()


def clip_gradients(parameters: list[Tensor], limit: float) -> float:
    """Scale the gradients down to a norm of at most `limit`. Returns the norm before, over all ranks' shards."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
