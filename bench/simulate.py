"""The plan's bytes beside torch's own simulation of an update, for models that no machine here holds.

    python -m bench.simulate [--cards NAME:RANKS[:LAST|:rRANK] ...] [--tokens 4096 16384]

LAST: only so many layers are trained; rRANK: adapters of that rank.

The simulation runs the trainer's own model, sharding and Updater tensors through a forward and backward pass of FSDP2 on a
fake process group and fake tensors, and torch's FSDPMemTracker (MemTracker for one process) counts what is alive: rank 0's
peak, all layers. It computes on fake CPU tensors, since fake CUDA tensors need CUDA. Two things are not simulated, and left
out of the plan's column too: the loss (a stub that reads one row of the head: its shapes depend on the data), and CUDA's
and NCCL's own memory. The optimiser's moments are allocated by hand: their update is in place. Experts get as many rows each,
since a fake router chooses nothing.
"""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from o1core.distributed.sharding import shard
from o1core.distributed.world import World
from o1core.errors import UserError
from o1core.model import ModelConfig, Transformer, adapted, experts, lora, read_config
from o1core.policy import select
from o1core.recipe import OptimiserSettings, Recipe
from o1core.runs import Machine, Workload
from o1core.runs.footprint import held_by_training, update
from o1core.training.optimisers import master_of

CONFIGS = Path(__file__).parents[1] / "tests" / "data"
MIXTURES = [
    f"{name}:{ranks}{how}"
    for name in ("qwen3-30b-a3b", "qwen3.6-35b-a3b")
    for how in ("", ":r32")
    for ranks in (1, 2, 4, 8)
]
CARDS = ["marco-o1:1", "marco-o1:2", "marco-o1:4", "marco-o1:8", "qwq-32b:8:48", "qwq-32b:8", *MIXTURES]
GIB = 1 << 30
SEQUENCE = 4096  # tokens of the longest


def simulated(config: ModelConfig, ranks: int, settings: OptimiserSettings, tokens: int) -> int:
    """Bytes at the peak of two micro-batches with checkpointing on rank 0."""
    with (
        mock.patch.object(experts, "grouped_product", even_product),
        mock.patch.object(lora, "grouped_product", even_product),
    ):
        return (
            simulated_alone(config, settings, tokens)
            if ranks == 1
            else simulated_in_shards(config, ranks, settings, tokens)
        )


def even_product(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """grouped_product, of groups of one size."""
    matrices = weight.view(len(counts), -1, weight.shape[1])
    return (x.view(len(counts), -1, x.shape[1]) @ matrices.mT).view(len(x), -1)


def simulated_in_shards(config: ModelConfig, ranks: int, settings: OptimiserSettings, tokens: int) -> int:
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("shard",))
        opened = World(0, ranks, FakeStore(), torch.device("cpu"), mesh, 60.0, None)
        with FakeTensorMode():
            with torch.device("meta"):
                model = Transformer(config)
            select(model, settings)
            for p in model.parameters():
                p.data = p.data.to(torch.float32 if p.requires_grad else torch.bfloat16)
            shard(model, torch.bfloat16, opened)
            # Adapters are whole on every rank; what moves the rest does not take plain fake tensors.
            whole = [(m, name, m._parameters.pop(name)) for m in adapted(model) for name in ("lora_a", "lora_b")]
            model.to_empty(device="cpu")
            for module, name, held in whole:
                assert held is not None
                setattr(module, name, torch.nn.Parameter(torch.empty_like(held, device="cpu")))
            trained = [p for p in model.parameters() if p.requires_grad]
            moments = [torch.empty_like(local(p.detach())) for p in trained for _ in range(2)]
            tracker = FSDPMemTracker(model)
            tracker.track_inputs(tuple(moments))  # track_external does nothing here
            with tracker:
                passes(model, tokens, tracker)
            return peak_of(tracker)
    finally:
        dist.destroy_process_group()


def simulated_alone(config: ModelConfig, settings: OptimiserSettings, tokens: int) -> int:
    """The same in one process, without FSDP: bf16 weights, whose finished gradients are added to those of fp32 masters."""
    with FakeTensorMode():
        model = Transformer(config)
        select(model, settings)
        for p in model.parameters():
            p.data = p.data.to(torch.bfloat16)
        masters = [master_of(p) for p in model.parameters() if p.requires_grad]
        moments = [torch.empty_like(master) for master in masters for _ in range(2)]
        tracker = MemTracker()
        hooked = SimpleNamespace(remove=lambda: None)
        for p in model.parameters():
            if not p.requires_grad:  # of which it would hook the gradient too
                tracker._param_to_grad_hook_handles[p] = (hooked, hooked)
        tracker.track_external(model, *masters, *moments)
        with tracker:
            passes(model, tokens, tracker)
        return peak_of(tracker)


class Loss(torch.autograd.Function):
    """A stub with the gradients of the real one in one pass: made beside the loss, and once more where it is scaled."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(hidden), torch.empty_like(head) if head.requires_grad else None)
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return tuple(None if held is None else held * grad for held in ctx.saved_tensors)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def passes(model: Transformer, tokens: int, tracker: MemTracker) -> None:
    for _ in range(2):
        ids = torch.zeros(tokens // SEQUENCE, SEQUENCE, dtype=torch.int64)
        hidden = model.hidden(ids, recompute=True).flatten(0, 1)
        Loss.apply(hidden, model.lm_head).backward()
        del hidden
        tracker.reset_mod_stats()


def peak_of(tracker: MemTracker) -> int:
    return max(snapshot["Total"] for snapshot in tracker.get_tracker_snapshot("peak").values())


def planned(config: ModelConfig, ranks: int, settings: OptimiserSettings, tokens: int) -> int:
    """What the plan counts of the same things."""
    recipe = Recipe.of(checkpointing=True, batch=10_000, cutoff=SEQUENCE)
    recipe = recipe.replace(lora_rank=settings.lora_rank, train_last_layers=settings.train_last_layers)
    machine = Machine(ranks, cuda=True)
    held = held_by_training(config, recipe.optimiser, machine)
    parts = update(config, Workload.of(recipe), machine, tokens)
    return sum(held.values()) + sum(size for name, size in parts.items() if name != "loss scratch")


def trained_of(text: str) -> OptimiserSettings:
    """What is trained: "" all, "48" the last 48 layers, "r32" adapters of rank 32."""
    if text.startswith("r"):
        return OptimiserSettings(lora_rank=int(text[1:]))
    return OptimiserSettings(train_last_layers=int(text) if text else None)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--cards", nargs="+", default=CARDS, metavar="NAME:RANKS[:LAST]", help="(default: %(default)s)")
    ap.add_argument("--tokens", nargs="+", type=int, default=[4096, 16384], help="of a micro-batch (default: both)")
    args = ap.parse_args()
    print("| model, cards | trained | tokens | simulated GiB | planned GiB | plan / simulation | seconds |")
    print("|---|---|---|---|---|---|---|")
    for cards in args.cards:
        name, ranks, *last = cards.split(":")
        try:
            config, settings = read_config(CONFIGS / name), trained_of(last[0] if last else "")
        except (ValueError, UserError) as error:
            ap.error(f"--cards {cards}: {error}")
        for tokens in args.tokens:
            start = time.perf_counter()
            found = simulated(config, int(ranks), settings, tokens)
            plan = planned(config, int(ranks), settings, tokens)
            rank, layers = settings.lora_rank, settings.train_last_layers
            what = f"adapters of rank {rank}" if rank else f"last {layers}" if layers else "all"
            print(
                f"| {name} x {ranks} | {what} | {tokens} | {found / GIB:.1f} | "
                f"{plan / GIB:.1f} | {plan / found:.3f} | {time.perf_counter() - start:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
