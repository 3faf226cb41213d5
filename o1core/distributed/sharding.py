"""Weights in shards (FSDP2): every rank holds a part of each, whole ones exist a block at a time.

Trained weights are held in fp32 and compute in the model's dtype by policy: they are their own masters. Frozen ones are
held in the dtype that computes. Each block is a unit; the root is one more with the embedding, the last norm and the
head, and stays whole between a forward and its backward, since the loss reads the head.

Adapters (LoRA) are small, and their gradients fp32: every rank holds them whole.

The loss divides by the units of the whole batch, so gradients are summed over ranks, not averaged: both settings of
`shard` are needed on every unit, they do not reach down.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..model import AdaptedLinear, Piece, Transformer, adapted, fill, layout, open_tensors, read_config
from .sharded import is_sharded, is_unit
from .world import World, world


def trained_model(plain: Transformer, folder: Path, select: Callable[[Transformer], None]) -> Transformer:
    """The model to train: `plain` itself in one process, else one in shards, read from the same folder.

    plain: holds the checkpoint of `folder`, or a team's part of it, in the dtype that computes. select: sets requires_grad,
    and may add adapters to the model that is trained; the one to sample from gets them merged.
    """
    opened = world()
    if opened is None:
        select(plain)
        return plain
    plain.requires_grad_(False)  # from here on a copy to sample from
    with torch.device("meta"):
        model = Transformer(read_config(folder))  # of a team's, `plain` has its part
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
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    adapters = {p for module in adapted(model) for p in (module.lora_a, module.lora_b)}
    for unit in (*model.blocks, model):
        fully_shard(unit, mesh=opened.mesh, mp_policy=policy, ignored_params=adapters)
        assert isinstance(unit, FSDPModule)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def local_rows(parameter: Tensor) -> tuple[Tensor, int]:
    """What this process holds of a parameter, and the first row of it."""
    if not is_sharded(parameter):
        return parameter, 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

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


def reshard(model: Transformer) -> None:
    """Drop the root's whole weights that a forward without gradient leaves: they do not follow an update."""
    if is_unit(model):
        model.reshard()


@contextmanager
def whole_unit(model: Transformer, block: int | None) -> Iterator[dict[str, Tensor]]:
    """{name: whole weight, in the dtype that computes and with adapters merged} of a block, or of the root (None). All
    ranks enter together; on leaving the weights are gone."""
    unit = model if block is None else model.blocks[block]
    if is_unit(unit):
        unit.unshard()
    prefix = "" if block is None else f"blocks.{block}."
    with torch.no_grad():
        weights = {prefix + name: p.detach() for name, p in unit.named_parameters() if prefix or "." not in name}
        for name, module in unit.named_modules() if prefix else ():
            if isinstance(module, AdaptedLinear):
                weights[f"{prefix}{name}.weight"] = module.merged_weight().detach()
                del weights[f"{prefix}{name}.lora_a"], weights[f"{prefix}{name}.lora_b"]
        yield weights
    if is_unit(unit):
        unit.reshard()


def clip_gradients(parameters: list[Tensor], limit: float) -> float:
    """Scale the gradients down to a norm of at most `limit`. Returns the norm before, over all ranks' shards.

    The gradients of weights that every rank holds whole (adapters) are summed over the ranks first.
    """
    for p in parameters:
        if world() is not None and p.grad is not None and not is_sharded(p):
            dist.all_reduce(p.grad)
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return (norm.full_tensor() if is_sharded(norm) else norm).item()
