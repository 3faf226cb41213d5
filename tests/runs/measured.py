"""A child process of test_footprint.py: runs one phase on a made-up model and prints by how many bytes it grew.

python tests/runs/measured.py '{"shape": {...}, "recipe": {...}, "dtype": "float32", "phase": "update"}'

With the phase "run" it is a whole run on a checkpoint, and the bytes of its plan come second:

python tests/runs/measured.py '{"phase": "run", "model": null, "data": null, "recipe": {...}, "out": "RUN"}'
"""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from o1core.distributed import save_tensors
from o1core.model import DTYPES, ModelConfig, Transformer, add_adapters, draw_adapters, initialise
from o1core.recipe import Recipe
from o1core.rollout import keep_freed_memory, map_large_tensors
from o1core.run_folder import RunFolder
from o1core.runs import Resources, open_job, open_session
from o1core.training import Updater, load_optimiser_modules, with_reference
from o1core.types import Example

QWEN = ModelConfig("Qwen2ForCausalLM", 151936, 896, 4864, 24, 14, 2, 64, 1e-6, 1e6, 32768, True, torch.bfloat16)


def updates(config: ModelConfig, recipe: Recipe, dtype: torch.dtype) -> None:
    """Two optimiser steps on one batch of random completions of the longest length."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model.to_empty(device="cpu")
    initialise(model, 0)
    of = recipe.optimiser
    if of.lora_rank:
        add_adapters(model, of.lora_rank, of.lora_alpha, of.lora_targets, of.train_last_layers)
        draw_adapters(model, 0)
    updater = Updater(model, config.vocab_size, recipe.objective, of, recipe.execution)
    generator = torch.Generator().manual_seed(0)
    examples = []
    for i in range(of.batch):
        ids = torch.randint(config.vocab_size, (recipe.objective.cutoff,), generator=generator, dtype=torch.int32)
        examples.append(Example(f"p{i}", ids[:8], ids[8:], torch.zeros(len(ids) - 8), 1.0 - 2 * (i % 2), False))
    examples = with_reference(examples, [torch.full((len(e.ids),), -9.0) for e in examples])
    if recipe.objective.kind == "crisp":
        hidden = [torch.randn(len(e.ids), config.hidden_size, generator=generator) for e in examples]
        examples = [replace(e, taught=lambda h=h: h) for e, h in zip(examples, hidden)]
        updater.teacher_head = model.lm_head.detach().clone()
    for _ in range(2):
        updater.step(examples, 1e-6)


def training_state(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights and moments in fp32, in the order of a training state."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Transformer(config).named_parameters()}
    return {kind + name: torch.ones(shapes[name]) for name in shapes for kind in ("", "exp_avg.", "exp_avg_sq.")}


def whole_run(model: str | None, data: str | None, recipe: Recipe, out: str) -> tuple[int, int]:
    """(bytes by which this process grew since the memory was asked for, bytes that were planned)."""
    job = open_job(None if model is None else Path(model), data, None, "float32", recipe)
    with open_session(job, RunFolder(Path(out)), Resources(torch.device("cpu"))) as session:
        session.check_memory()
        before = resident()
        session.evaluate(job.model, job.tests, "base", "evaluate")
        session.train(resume=True)
        assert session.plan
        return peak() - before, session.plan.peak.total


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most memory this process has held. Not getrusage: its peak is inherited from the parent, which may hold more."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def main() -> None:
    asked = json.loads(sys.argv[1])
    keep_freed_memory()
    map_large_tensors()  # as a run does where memory is scarce
    if asked["phase"] == "run":
        print(*whole_run(asked["model"], asked["data"], Recipe.of(**asked["recipe"]), asked["out"]))
        return
    torch.ones(64, 64, requires_grad=True).square().sum().backward()  # autograd's own threads and libraries
    load_optimiser_modules()
    config, recipe = replace(QWEN, **asked["shape"]), Recipe.of(**asked["recipe"])
    held = training_state(config) if asked["phase"] == "write" else {}
    before = resident()
    if asked["phase"] == "write":
        with TemporaryDirectory() as folder:
            save_tensors(held, Path(folder))
    else:
        updates(config, recipe, DTYPES[asked["dtype"]])
    print(peak() - before)


if __name__ == "__main__":
    main()
