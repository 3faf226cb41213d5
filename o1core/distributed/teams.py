"""Tensor parallel: a team of ranks on one node holds one model to sample from, each the same share of heads and of the MLP, of
each expert's too.

It is the same Transformer with smaller counts, so its KV cache shrinks by itself. Fused weights are cut per part: a
rank's q, k and v rows come from the whole model's q, k and v rows. The outputs of `o` and `down` are summed over the
team, those of experts once for all of them: every rank routes the same tokens the same way. All ranks of a team are
dealt the same problems and sample the same tokens. A team of one is data parallel alone.

Left out on purpose: a cut embedding and head; beside the blocks they are small, and every rank scores the same tokens.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UserError
from ..model import Block, ModelConfig, Piece, Transformer, fill, layout, open_tensors, read_config
from .sharding import whole_unit
from .world import on_all_ranks, patience, rank, size, world


@dataclass(frozen=True)
class Team:
    """This rank's team: which one, this rank's place in it, how many ranks it has, and their process group."""

    index: int
    member: int
    members: int
    group: Any = None

    @property
    def is_lead(self) -> bool:
        """Whether this rank writes down what the team has sampled."""
        return self.member == 0


ALONE = Team(0, 0, 1)


def team_of(members: int) -> Team:
    """The team of this rank, where all teams have `members` ranks. Raises UserError where ranks would be left over or a
    team would reach over two nodes."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", size())) if world() else 1
    if per_node % members:
        raise UserError(
            f"--tensor-parallel: {members} does not divide the {per_node} processes of a node, which torchrun starts"
        )
    group = None
    opened = world()
    if members > 1 and opened is not None:
        wait = patience(opened.device, opened.timeout)
        for first in range(0, size(), members):  # every rank makes every group, as torch asks for
            made = dist.new_group(list(range(first, first + members)), timeout=wait)
            group = made if first <= rank() < first + members else group
    return Team(rank() // members, rank() % members, members, group)


def part_config(whole: ModelConfig, members: int) -> ModelConfig:
    """The counts of one rank's part. Raises UserError where they do not divide."""
    counts = {"key and value heads": whole.num_kv_heads, "MLP rows": whole.ffn_size}
    experts, delta = whole.experts, whole.delta
    if experts is not None:
        counts |= {"rows of an expert": experts.ffn_size, "rows of the shared expert": experts.shared_size}
        experts = replace(experts, ffn_size=experts.ffn_size // members, shared_size=experts.shared_size // members)
    if delta is not None:
        counts["key heads of the delta rule"] = delta.key_heads
        delta = replace(delta, key_heads=delta.key_heads // members, value_heads=delta.value_heads // members)
    for shown, count in counts.items():
        if count % members:
            raise UserError(f"--tensor-parallel: {members} does not divide the model's {count} {shown}")
    return replace(
        whole,
        num_heads=whole.num_heads // members,
        num_kv_heads=whole.num_kv_heads // members,
        ffn_size=whole.ffn_size // members,
        experts=experts,
        delta=delta,
    )


class Cut(NamedTuple):
    """Where a published tensor's part lies: rows and columns of the tensor, its first row in the whole model's fused
    weight `name` and in the part's, and the part's rows."""

    theirs: str
    name: str
    rows: slice
    columns: slice
    whole_start: int
    start: int
    length: int


def cuts(whole: ModelConfig, part: ModelConfig, member: int) -> Iterator[Cut]:
    """The part of every published tensor that belongs to a member of a team; of q, k and v in one tensor, a part of each."""
    for (theirs, ours, whole_start, full), (_, _, start, shape) in zip(layout(whole), layout(part)):
        columns = slice(None)
        if len(shape) == 2 and shape[1] < full[1]:
            columns = slice(member * shape[1], (member + 1) * shape[1])
        first = 0  # row of the published tensor
        for count, own in zip(sections(whole, theirs, full[0]), sections(part, theirs, shape[0])):
            offset = member * own if own < count else 0
            yield Cut(theirs, ours, slice(first + offset, first + offset + own), columns, whole_start, start, own)
            first, start = first + count, start + own


def sections(config: ModelConfig, theirs: str, rows: int) -> tuple[int, ...]:
    """The rows of a published tensor's parts that are cut each for itself."""
    if config.delta is not None and theirs.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        return config.delta.widths
    return (rows,)


def check_tensors(folder: Path) -> None:
    """Raise UserError on all ranks where one of them finds that the files of a checkpoint's weights are not whole."""
    on_all_ranks("the model", lambda: open_tensors(folder, read_config(folder)))


def load_part(folder: Path, dtype: torch.dtype, device: torch.device, team: Team) -> Transformer:
    """This rank's part of a checkpoint, in `dtype`; of a team of one, the whole model. No other slice is read. Raises
    UserError on all ranks where one of them cannot read its part."""
    return on_all_ranks("the model", lambda: read_part(folder, dtype, device, team))


def read_part(folder: Path, dtype: torch.dtype, device: torch.device, team: Team) -> Transformer:
    whole = read_config(folder)
    stored = open_tensors(folder, whole)
    with torch.device("meta"):
        model = Transformer(part_config(whole, team.members)).to(dtype)
    model.to_empty(device=device)
    held = {name: p.detach() for name, p in model.named_parameters()}
    fill(
        stored,
        (
            Piece(cut.theirs, cut.rows, cut.columns, held[cut.name][cut.start : cut.start + cut.length])
            for cut in cuts(whole, model.config, team.member)
        ),
    )
    if team.members > 1:
        sum_over_team(model, team)
    return model


def sum_over_team(model: Transformer, team: Team) -> None:
    """Make the products with o and down, of which each rank has a part, whole, and the sums over experts."""

    def add_up(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dist.all_reduce(output, group=team.group)

    for block in model.blocks:
        assert isinstance(block, Block)
        mixer = block.o if block.delta is None else block.delta.out
        mlp = block.down if block.experts is None else block.experts
        for module in (mixer, mlp):
            module.register_forward_hook(add_up)


def share_tokens(ids: Tensor, team: Team) -> None:
    """Overwrite what a rank has sampled by what its team's first rank has. Sums that ranks round otherwise could move a token
    over the border to its neighbour, and from there on the ranks would decode different texts."""
    if team.members > 1:
        dist.broadcast(ids, team.index * team.members, group=team.group)


@torch.no_grad()
def copy_weights(sharded: Transformer, whole: ModelConfig, to: Transformer, team: Team) -> None:
    """Give a model to sample from the weights of the one that is trained, a block at a time."""
    held = {name: p.detach() for name, p in to.named_parameters()}
    of_weight: dict[str, list[Cut]] = {}
    for cut in cuts(whole, to.config, team.member):
        of_weight.setdefault(cut.name, []).append(cut)
    for block in (*range(whole.num_layers), None):
        with whole_unit(sharded, block) as weights:
            for name, weight in weights.items():
                for cut in of_weight[name]:
                    rows = weight[cut.whole_start :][cut.rows]
                    held[name][cut.start : cut.start + cut.length] = rows[:, cut.columns] if rows.ndim == 2 else rows


def drop_weights(model: Transformer) -> None:
    """Free the memory of a model to sample from; copy_weights needs `allot_weights` first."""
    for p in model.parameters():
        p.untyped_storage().resize_(0)


def allot_weights(model: Transformer) -> None:
    """Memory for a model whose weights were dropped."""
    for p in model.parameters():
        p.untyped_storage().resize_(p.numel() * p.element_size())
