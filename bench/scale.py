"""What many processes cost: tokens per second, bytes sent and peak memory a rank, at one process and at two.

    python -m bench.scale [--model DIR] [--steps 4] [--pairs 3]

Each timing is a torchrun of its own, in turn with the others: no torchrun, torchrun with one process, with two. On a
machine whose processes share their cores the ratios show overhead, not speed. Bytes sent are those of the tensors given
to torch.distributed's collectives, counted by torch's profiler in one step of a world. What saving the training state costs
a step is told twice: where the step begins once the state is on the disk, and as training does it, where a thread writes
it while the step makes its gradient. The plan's table is bench.simulate's.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

import o1core.model
from o1core.distributed import gather, is_lead, opened, trained_model
from o1core.recipe import Recipe
from o1core.run_folder import RunFolder
from o1core.runs import EMBEDDED
from o1core.training import Updater, reference_logprobs, select_trained, with_reference
from o1core.training.state import Progress, save_state
from o1core.types import Example

KINDS = {"plain": 0, "1 process": 1, "2 processes": 2}


def examples_of(count: int, vocab: int) -> list[Example]:
    """Random completions of 40 to 160 tokens."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        ids = torch.randint(vocab, (40 + 120 * i // count,), generator=generator, dtype=torch.int32)
        made.append(Example(str(i), ids[:8], ids, torch.zeros(len(ids)), 1.0, False))
    return made


def child(folder: Path, steps: int) -> None:
    """Print what one rank measures, as JSON, on rank 0."""
    torch.set_num_threads(1)
    with opened(torch.device("cpu")):
        recipe = Recipe.of(ratio="token", micro_tokens=2048)
        plain, tokenizer = o1core.model.load(folder, torch.float32)
        model = trained_model(plain, folder, lambda m: select_trained(m, None))
        updater = Updater(model, tokenizer.size, recipe.objective, recipe.optimiser, recipe.execution)
        examples = examples_of(64, tokenizer.size)
        reference = reference_logprobs(model, tokenizer.size, examples, 2048)
        seconds = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            updater.step(with_reference(examples, reference), lr=0.0)
            seconds.append(time.perf_counter() - start)
        run = RunFolder(Path(gather("a folder", tempfile.mkdtemp() if is_lead() else "")[0]))
        waited, behind = (
            median(saving_seconds(updater, examples, reference, run, wait, steps)) for wait in (True, False)
        )
        alone = median(seconds[1:])
        sent = bytes_of_a_step(updater, examples, reference)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        tokens = sum(e.tokens for e in examples)
        costs = [1000 * (waited - alone), 1000 * (behind - alone)]
        of_ranks = gather("the measures", [tokens / alone, sent / 2**20, peak, *costs])
        if is_lead():
            shutil.rmtree(run.path)
            print(json.dumps([sum(column) / len(of_ranks) for column in zip(*of_ranks)]))


def saving_seconds(
    updater: Updater, examples: list[Example], reference: list[torch.Tensor], run: RunFolder, wait: bool, steps: int
) -> list[float]:
    """Seconds of steps with a save before each; wait: until the state is on the disk."""
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        save_state(run, updater, Progress(0, step, step + wait * steps), {})
        if wait:
            updater.written()
        updater.step(with_reference(examples, reference), lr=0.0)
        seconds.append(time.perf_counter() - start)
    return seconds


def bytes_of_a_step(updater: Updater, examples: list[Example], reference: list[torch.Tensor]) -> int:
    """Bytes of the tensors that one step gives to collectives on this rank."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        updater.step(with_reference(examples, reference), lr=0.0)
    total = 0
    for event in recorded.events():
        if event.name.startswith("gloo:"):
            total += sum(4 * torch.Size(shape).numel() for shape in event.input_shapes if shape)
    return total


def run(kind: str, model: Path, steps: int) -> list[float]:
    """[tokens/s, MiB sent a step, peak MiB, ms that a save adds to a step: waited for, behind it] of a rank."""
    launcher = [sys.executable]
    if KINDS[kind]:
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(KINDS[kind])]
    command = [*launcher, "-m", "bench.scale", "--child", "--model", str(model), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"TQDM_DISABLE": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", type=Path, default=EMBEDDED, help="a Hugging Face folder (default: tiny-o1)")
    ap.add_argument("--steps", type=int, default=4, help="steps a process (default: %(default)s)")
    ap.add_argument("--pairs", type=int, default=3, help="runs of each kind (default: %(default)s)")
    ap.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.child:
        child(args.model, args.steps)
        return
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _ in range(args.pairs):
        for kind, runs in found.items():
            runs.append(run(kind, args.model, args.steps))
    columns = ("tokens/s", "of plain", "MiB sent a rank and step", "peak MiB a rank", "ms of a save", "behind a step")
    print(f"| processes | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for kind, runs in found.items():
        ratio = median(r[0] / p[0] for r, p in zip(runs, found["plain"]))
        speed, sent, peak, waited, behind = (median(column) for column in zip(*runs))
        print(f"| {kind} | {speed:.0f} | {ratio:.2f} | {sent:.1f} | {peak:.0f} | {waited:.0f} | {behind:.0f} |")


if __name__ == "__main__":
    main()
