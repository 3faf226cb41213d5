"""Memory that does not creep: peak memory of 30 update steps on completions of ever other lengths.

    python -m tests.campaigns memory [--steps 30] [--layers 24] [--vocab 151936] [--tokens 1024] [--batch 8]

A child process trains a random model of Qwen2.5-0.5B's shape as the `prune` command does, with the memory settings of
rollout/memory.py; before every fifth step it samples with an engine that gives its cache back. Prints the peak of each
step in MiB. Passes where the last step's running peak is at most 3 % above that of step 3.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from o1core import Engine, SamplingParams, Transformer
from o1core.model import ModelConfig, initialise
from o1core.recipe import Recipe
from o1core.rollout import keep_freed_memory, map_large_tensors
from o1core.rollout.memory import keep_large_tensors
from o1core.training import Updater, with_reference
from o1core.types import Example

from .bits import Words
from .harness import in_a_child

SIZES = {"layers": 24, "vocab": 151936, "tokens": 1024, "hidden": 896, "batch": 8}
SLOTS = 16  # completions that are sampled at a time
MOST_CREEP = 1.03  # running peak after the last step over that after step 3


def run_memory(steps: int = 30, **sizes: int) -> int:
    """Print the peaks; returns 1 where memory creeps, else 0."""
    found = in_a_child(train, steps, SIZES | sizes)
    peaks, seconds = found["peaks"], found["seconds"]
    print("step      " + " ".join(f"{i + 1:6}" for i in range(steps)))
    print("peak, MiB " + " ".join(f"{peak:6.0f}" for peak in peaks))
    creep = max(peaks) / max(peaks[:3])
    print(f"running peak after step {steps} over that after step 3: {creep:.3f} (at most {MOST_CREEP})")
    print(f"seconds per step: {sum(seconds) / len(seconds):.2f}")
    return int(creep > MOST_CREEP)


def train(steps: int, sizes: dict[str, int]) -> dict[str, list[float]]:
    """The peak, in MiB, and the seconds of each step."""
    keep_freed_memory()
    map_large_tensors()  # as a run does where memory is scarce
    model = random_model(sizes)
    recipe = Recipe.of(batch=sizes["batch"], micro_tokens=sizes["tokens"])
    updater = Updater(model, sizes["vocab"], recipe.objective, recipe.optimiser, recipe.execution)
    engine = Engine(model, Words(sizes["vocab"]), slots=SLOTS)
    rng, peaks, seconds = random.Random(0), [], []
    for step in range(steps):
        if step % 5 == 0:
            with keep_large_tensors():
                engine.generate([[1, 2, 3]] * SLOTS, SamplingParams(max_new_tokens=rng.randint(4, 8), seed=step))
            engine.release()
        examples = list(random_examples(rng, recipe.optimiser.batch, sizes))
        start = time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        updater.step(with_reference(examples, [e.logprobs for e in examples]), 1e-6)
        peaks.append(peak_mib())
        seconds.append(time.perf_counter() - start)
    return {"peaks": peaks, "seconds": seconds}


def random_model(sizes: dict[str, int]) -> Transformer:
    config = ModelConfig(
        architecture="Qwen2ForCausalLM",
        vocab_size=sizes["vocab"],
        hidden_size=sizes["hidden"],
        ffn_size=sizes["hidden"] * 38 // 7,
        num_layers=sizes["layers"],
        num_heads=sizes["hidden"] // 64,
        num_kv_heads=2,
        head_dim=64,
        norm_eps=1e-6,
        rope_theta=1e6,
        max_positions=4096,
        tied=True,
        dtype=torch.float32,
    )
    model = Transformer(config)
    initialise(model, seed=0)
    return model


def random_examples(rng: random.Random, count: int, sizes: dict[str, int]) -> Iterator[Example]:
    """Completions of an eighth to a half of what a micro-batch may hold, on average a quarter."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    for i in range(count):
        length = rng.randint(sizes["tokens"] // 20, sizes["tokens"] // 4)
        prompt, ids = (
            torch.randint(sizes["vocab"], (n,), generator=generator, dtype=torch.int32)
            for n in (rng.randint(40, 120), length)
        )
        yield Example(str(i), prompt, ids, torch.full((length,), -5.0), rng.uniform(-1, 1), False)


def peak_mib() -> float:
    """The process's peak of resident memory since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
