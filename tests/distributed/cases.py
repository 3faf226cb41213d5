"""What the processes of a test's world do, and the same work in one process."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

import o1core
from o1core.distributed import trained_model
from o1core.recipe import Recipe
from o1core.training import Example, Updater, reference_logprobs
from o1core.training.step import select_trained

VOCAB = 259


@dataclass(frozen=True)
class Trained:
    """What training left: weights, gradient norms and metrics of each step."""

    weights: dict[str, Tensor]
    norms: list[float]
    metrics: list[dict[str, float]]


def make_examples(count: int, seed: int = 0) -> list[Example]:
    g = torch.Generator().manual_seed(seed)
    examples = []
    for i in range(count):
        t, n = (int(torch.randint(low, high, (), generator=g)) for low, high in ((1, 9), (1, 20)))
        prompt, ids = (torch.randint(VOCAB, (m,), generator=g, dtype=torch.int32) for m in (t, n))
        examples.append(Example(f"p{i}", prompt, ids, torch.zeros(n), float(torch.randn((), generator=g)), False))
    return examples


def updater_on(folder: Path, dtype: torch.dtype, recipe: Recipe) -> Updater:
    plain = o1core.load(folder, dtype)[0]
    model = trained_model(plain, folder, lambda m: select_trained(m, recipe.optimiser.train_last_layers))
    return Updater(model, VOCAB, recipe.objective, recipe.optimiser, recipe.execution)


def train(folder: Path, dtype: torch.dtype, steps: int, batch: int, **settings: object) -> Trained:
    """Some steps on random examples, the last of each batch on a shifted reference."""
    recipe = Recipe.of(**{"lr": 1e-3, "ratio": "token", "micro_tokens": 64} | settings)
    updater = updater_on(folder, dtype, recipe)
    metrics = []
    for step in range(steps):
        examples = make_examples(batch, seed=step)
        reference = reference_logprobs(updater.model, VOCAB, examples, 64)
        metrics.append(updater.step(examples, [r + 0.1 for r in reference], recipe.optimiser.lr))
    weights = {name: whole(p.detach()).clone() for name, p in updater.model.named_parameters()}
    return Trained(weights, [m["grad_norm"] for m in metrics], metrics)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train_all(jobs: list[tuple]) -> list[Trained]:
    """Several trainings in one world."""
    return [train(*positional, **settings) for *positional, settings in jobs]
