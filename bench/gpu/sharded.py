"""The row about FSDP: the training step of a 1.5B shape on two cards beside one, in processes of their own.

The row starts this file by torchrun, once for each number of cards, and every rank writes what it found into a folder.
"""

import sys
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory

import torch

from o1core.distributed import opened, processes
from o1core.distributed.sharding import local_rows, shard
from o1core.distributed.world import rank, world
from o1core.files import read_json, write_json
from o1core.model import Transformer

from .measure import TINY, Bar, Found, Row, Sizes
from .training import one_and_a_half_b, planned, timed_step

LIMIT = 120  # seconds for both


def sharded_model(sizes: Sizes) -> Transformer:
    """Random weights in shards, the same on any number of ranks: each is drawn whole by its place, and cut."""
    here = world()
    assert here is not None
    with torch.device("meta"):
        model = Transformer(one_and_a_half_b(sizes))
    shard(model, sizes.dtype, here)
    model.to_empty(device=here.device)
    for i, (name, p) in enumerate(model.named_parameters()):
        rows, first = local_rows(p.detach())
        generator = torch.Generator(here.device).manual_seed(i)
        whole = torch.empty(p.shape, device=here.device)
        if p.ndim > 1:
            whole.normal_(0.0, 0.02, generator=generator)
        else:
            whole.fill_(0.0 if name.endswith("bias") else 1.0)
        rows.copy_(whole[first : first + len(rows)])
    return model


def main(arguments: list[str]) -> None:
    """One rank. arguments: the kind of device (a CPU's sizes are tiny), and the folder for what it finds."""
    device, folder = arguments
    sizes = TINY if device == "cpu" else Sizes()
    with opened(torch.device(device)):
        taken, norm = timed_step(sharded_model(sizes), sizes)
        held = torch.cuda.max_memory_allocated() / planned(sizes, processes()) if sizes.on_gpu else 0.0
        write_json(Path(folder, f"{rank()}.json"), {"seconds": taken, "norm": norm, "held": held})


def on_cards(cards: int, device: str) -> list[dict[str, float]]:
    """What each rank found."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cards}"]
        run([*command, "-m", "bench.gpu.sharded", device, folder], check=True, timeout=LIMIT / 2)
        return [read_json(Path(folder, f"{r}.json")) for r in range(cards)]


def two_cards(sizes: Sizes) -> Found:
    if not sizes.on_gpu or torch.cuda.device_count() < 2:
        return {"tokens/s over one card's": "needs two GPUs"}
    [alone], both = (on_cards(cards, sizes.device) for cards in (1, 2))
    return {
        "tokens/s over one card's": alone["seconds"] / max(of_rank["seconds"] for of_rank in both),
        "gradient norm, relative difference": abs(both[0]["norm"] / alone["norm"] - 1),
        "peak / plan of a rank": max(of_rank["held"] for of_rank in both),
    }


ROWS = [
    Row(
        "FSDP",
        "the training step on two cards beside one",
        {"gradient norm, relative difference": Bar("at most", 0.01), "peak / plan of a rank": Bar("at most", 1.0)},
        two_cards,
        limit=LIMIT,
    )
]

if __name__ == "__main__":
    main(sys.argv[1:])
