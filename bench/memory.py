"""What freed memory costs: a training step of the embedded model with and without o1core.rollout.memory.keep_freed_memory.

    python -m bench.memory [--steps 10] [--pairs 5]

Each timing is a process of its own, in turn with the other kind. Prints the median seconds of a step and their ratio.
"""

import argparse
import subprocess
import sys
import time
from statistics import median

import torch

import o1core.model
from o1core.problems import arithmetic_problems
from o1core.recipe import Recipe, read_recipe
from o1core.rollout import keep_freed_memory
from o1core.runs import EMBEDDED
from o1core.training import Updater, reference_logprobs, with_reference
from o1core.types import Example


def one(steps: int) -> float:
    """Median seconds of an optimiser step on made-up completions of 40 to 160 tokens."""
    recipe = Recipe.of(**read_recipe("tiny-o1"))
    model, tokenizer = o1core.model.load(EMBEDDED, torch.float32)
    generator = torch.Generator().manual_seed(0)
    examples = []
    for i, problem in enumerate(arithmetic_problems("train", recipe.optimiser.batch, 0)):
        ids = torch.randint(
            tokenizer.size, (40 + 120 * i // recipe.optimiser.batch,), generator=generator, dtype=torch.int32
        )
        prompt = torch.tensor(tokenizer.prompt(problem.question), dtype=torch.int32)
        examples.append(Example(problem.id, prompt, ids, torch.zeros(len(ids)), 1.0, False))
    updater = Updater(model, tokenizer.size, recipe.objective, recipe.optimiser, recipe.execution)
    reference = reference_logprobs(model, tokenizer.size, examples, updater.micro_tokens)
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        updater.step(with_reference(examples, reference), lr=0.0)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--steps", type=int, default=10, help="steps a process (default: %(default)s)")
    ap.add_argument("--pairs", type=int, default=5, help="processes of each kind (default: %(default)s)")
    ap.add_argument("--child", choices=("keep", "return"), help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.child:
        if args.child == "keep":
            keep_freed_memory()
        print(one(args.steps))
        return
    found: dict[str, list[float]] = {"keep": [], "return": []}
    for _ in range(args.pairs):
        for kind, seconds in found.items():
            command = [sys.executable, "-m", "bench.memory", "--steps", str(args.steps), "--child", kind]
            seconds.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    for kind, seconds in found.items():
        print(f"{kind:8} median {median(seconds):.3f} s a step ({min(seconds):.3f} to {max(seconds):.3f})")
    ratios = sorted(b / a for a, b in zip(found["keep"], found["return"]))
    print(f"return / keep: median {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
