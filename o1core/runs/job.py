"""What a run is about, opened and checked: a checkpoint, problems to train on, tests, and a recipe."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..model import DTYPES, check_trained, model_fingerprint, read_config
from ..problems import ask_in_form, drawn_budget, find_overlap, fingerprint, instruct
from ..recipe import PromptSettings, Recipe
from ..types import Problem
from .sources import generated, generated_by_level, generated_tests, open_tests, read_problems, selected, test_name

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[1] / "tiny_o1"
HELD_OUT = 0.2  # of a problem file without one of its own to evaluate on


@dataclass(frozen=True)
class Job:
    """A checkpoint, problems to train on, tests (name: problems) to evaluate on, and a recipe.

    The problems are as the base model is asked them; `instructed` adds what the method asks besides.
    """

    model: Path
    dtype: torch.dtype
    train: list[Problem]
    tests: dict[str, list[Problem]]
    recipe: Recipe

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What settings.json says besides paths: the recipe, and fingerprints of all else that decides a result."""
        return (
            self.recipe.to_json()
            | self.recipe.own_code()
            | {
                "dtype": str(self.dtype).removeprefix("torch."),
                "model_print": model_fingerprint(self.model),
                "train_print": fingerprint(self.train),
                "tests": {name: fingerprint(test) for name, test in self.tests.items()},
            }
        )

    def instructed(self, problems: list[Problem], training: bool) -> list[Problem]:
        """Problems with the method's instruction. In training each has a token budget of its own, later all the same."""
        prompt = self.recipe.prompt
        fixed = self.recipe.evaluation.budget or (prompt.budget_low + prompt.budget_high) // 2
        span = (prompt.budget_low, prompt.budget_high, self.recipe.seed)
        return [instruct(p, prompt.instruction, drawn_budget(p.id, *span) if training else fixed) for p in problems]


def open_job(
    model: Path | None, data: str | None, tests: list[str] | None, dtype: str, recipe: Recipe, by_level: bool = False
) -> Job:
    """Read what a run needs. Without a model it is the embedded one, and then the problems are generated.

    data and tests: problem files, or reasoning-gym:NAME. Without tests the last fifth of the shuffled data is held out;
    where the problems are generated, others are generated (with by_level three tests, easy to hard). Problems to evaluate
    on are never trained on. Raises UserError for everything that is wrong with the files.
    """
    if model is not None and data is None:
        raise UserError("--data: a problem file is needed with --model")
    of = recipe.optimiser
    check_trained(read_config(model or EMBEDDED), of.lora_rank, of.train_last_layers)  # before anything is sampled
    selection, evaluation = recipe.selection, recipe.evaluation
    if data is None:
        train = generated("train", selection.problems, selection, recipe.seed)
        opened = open_tests(tests, recipe)
        if not opened and by_level:
            opened = generated_by_level(evaluation, selection, recipe.seed)
        opened = opened or generated_tests(evaluation, selection, recipe.seed)
    else:
        train = selected(read_problems(data, recipe, selection.shuffle_seed, "train"), selection)
        opened = open_tests(tests, recipe)
        if not opened:
            train, held_out = hold_out(train, data)
            opened = {test_name(data): held_out[: evaluation.problems]}
        train = train[: selection.problems]
    train = without_overlap(train, opened, data)
    named = {name: asked(test, recipe.prompt) for name, test in opened.items()}
    return Job(model or EMBEDDED, resolve_dtype(model, dtype), asked(train, recipe.prompt), named, recipe)


def open_evaluation(model: Path | None, data: str | None, dtype: str, recipe: Recipe) -> Job:
    """A job that evaluates alone, on all of `data` or on the embedded model's test problems."""
    if data is None:
        tests = generated_tests(recipe.evaluation, recipe.selection, recipe.seed)
    else:
        problems = selected(read_problems(data, recipe, None, "test"), recipe.selection)
        tests = {test_name(data): problems[: recipe.evaluation.problems]}
    named = {name: asked(test, recipe.prompt) for name, test in tests.items()}
    return Job(model or EMBEDDED, resolve_dtype(model, dtype), [], named, recipe)


def hold_out(problems: list[Problem], source: str) -> tuple[list[Problem], list[Problem]]:
    """(problems to train on, the last fifth to evaluate on)."""
    held = max(1, int(len(problems) * HELD_OUT))
    if held == len(problems):
        raise UserError(f"{source}: one problem cannot be both trained and evaluated on; add more, or --eval-data")
    return problems[:-held], problems[-held:]


def without_overlap(train: list[Problem], tests: dict[str, list[Problem]], source: str | None) -> list[Problem]:
    """The training problems that are in no test. Raises UserError where none is left."""
    shared = [problem for test in tests.values() for problem in find_overlap(test, train)]
    if shared:
        log.warning("%d test problems are in the training data too; they are not trained on", len(shared))
        train = [p for p in train if p not in shared]
    if not train:
        raise UserError(f"{source}: every problem in it is a test problem too; nothing is left to train on")
    return train


def asked(problems: list[Problem], prompt: PromptSettings) -> list[Problem]:
    """The problems in the recipe's form of prompt."""
    return [ask_in_form(problem, prompt.form, prompt.system) for problem in problems]


def resolve_dtype(model: Path | None, dtype: str) -> torch.dtype:
    """The dtype that computes. "auto" is the checkpoint's own; the embedded one is small enough for float32."""
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.float32 if model is None else read_config(model).dtype
