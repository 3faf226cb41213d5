"""What a run is about, opened and checked: a checkpoint, problems to train on, tests, and a recipe.

Problems come from files, from data sets on the hub, from reasoning-gym tasks, or from tiny-o1's generated arithmetic.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..choices import TINY
from ..errors import UserError
from ..model import DTYPES, check_trained, model_fingerprint, read_config
from ..problems import (
    GYM_PREFIX,
    Fields,
    arithmetic_problems,
    ask_in_form,
    drawn_budget,
    find_overlap,
    fingerprint,
    gym_problems,
    hub_data,
    instruct,
    load_problems,
    parse_levels,
    parse_subjects,
    select,
)
from ..recipe import EvaluationSettings, PromptSettings, Recipe, SelectionSettings
from ..seeds import seed_of
from ..training import try_reward
from ..types import Problem

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[1] / "tiny_o1"
HELD_OUT = 0.2  # of a problem file without one of its own to evaluate on
DEFAULT_COUNT = 1000  # of generated problems, where the settings ask for all
LEAST_DRAWN = 400  # generated problems to select from: every level is among them, as the rarest is every sixth
BY_LEVEL = {"arithmetic-2": "2", "arithmetic-3": "3", "arithmetic-4-5": "4-5"}  # tests, easy to hard: their levels


@dataclass(frozen=True)
class Sources:
    """How a command named its model and problems.

    named: what settings.json keeps of it, so that it can be given back as a run file; fields: what problem files call theirs;
    files: of the data sets on the hub, as they were downloaded, by purpose and name: "train openai/gsm8k", for a name without a
    split means one to train on and another to test on.
    """

    named: dict[str, Any] = field(default_factory=dict)
    fields: Fields = field(default_factory=Fields)
    files: dict[str, Sequence[str]] = field(default_factory=dict)

    def read(self, source: str, recipe: Recipe, shuffle_seed: int | None, purpose: str) -> list[Problem]:
        """Problems of a file, a data set or a reasoning-gym task. purpose: "train" or "test", which draw with seeds of their
        own."""
        if source.startswith(GYM_PREFIX):
            wanted = recipe.selection.problems if purpose == "train" else recipe.evaluation.problems
            seed = seed_of(recipe.seed, purpose) % 2**31
            return gym_problems(source.removeprefix(GYM_PREFIX), wanted or DEFAULT_COUNT, seed)
        of = {f"{role}_field": name for role, name in vars(self.fields).items()}
        files = self.files.get(f"{purpose} {source}")
        path = source if files is None else [Path(file) for file in files]
        return load_problems(path, shuffle_seed=shuffle_seed, **of)


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
    validation: list[Problem] = field(default_factory=list)  # --eval-every: training problems that are held out
    named: dict[str, Any] = field(default_factory=dict)  # of Sources

    @property
    def name(self) -> str:
        """What the model is called: the last part of its path, or of its name on the hub."""
        return Path(self.origin["model"]).name

    @property
    def origin(self) -> dict[str, Any]:
        """What settings.json says of where the model and the problems came from. It decides no result: the fingerprints in
        `settings` do."""
        named = {"model": TINY if self.model == EMBEDDED else str(self.model)} | self.named
        return named | {"checkpoint": str(self.model)}

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
            | ({"validation_print": fingerprint(self.validation)} if self.validation else {})
        )

    def in_micro_batches(self, tokens: int) -> "Job":
        """The same job in micro-batches of at most so many tokens. The files that decide its result are not read again."""
        job = replace(self, recipe=self.recipe.replace(micro_tokens=tokens))
        vars(job)["settings"] = self.settings | {"micro_tokens": tokens}
        return job

    def instructed(self, problems: list[Problem], training: bool) -> list[Problem]:
        """Problems with the method's instruction. In training each has a token budget of its own, later all the same."""
        prompt = self.recipe.prompt
        fixed = self.recipe.evaluation.budget or (prompt.budget_low + prompt.budget_high) // 2
        span = (prompt.budget_low, prompt.budget_high, self.recipe.seed)
        return [instruct(p, prompt.instruction, drawn_budget(p.id, *span) if training else fixed) for p in problems]


def open_job(
    model: Path | None,
    data: str | None,
    tests: list[str] | None,
    dtype: str,
    recipe: Recipe,
    by_level: bool = False,
    sources: Sources | None = None,
) -> Job:
    """Read what a run needs. Without a model it is the embedded one, and then the problems are generated.

    data and tests: problem files, names on the hub, or reasoning-gym:NAME. Without tests the last fifth of the shuffled data
    is held out; where the problems are generated, others are generated (with by_level three tests, easy to hard). Problems
    to evaluate on are never trained on. Raises UserError for everything that is wrong with the files.
    """
    if model is not None and data is None:
        raise UserError("--data: a problem file is needed with --model")
    of, sources = recipe.optimiser, sources or Sources()
    try_reward(recipe.reward)
    # Before anything is sampled.
    check_trained(read_config(model or EMBEDDED), of.lora_rank, of.train_last_layers, of.replay_router)
    selection, evaluation = recipe.selection, recipe.evaluation
    if data is None:
        train = generated("train", selection.problems, selection, recipe.seed)
        opened = open_tests(tests, recipe, sources)
        if not opened and by_level:
            opened = generated_by_level(evaluation, selection, recipe.seed)
        opened = opened or generated_tests(evaluation, selection, recipe.seed)
    else:
        train = selected(sources.read(data, recipe, selection.shuffle_seed, "train"), selection)
        opened = open_tests(tests, recipe, sources)
        if not opened:
            train, held_out = hold_out(train, data)
            opened = {test_name(data): held_out[: evaluation.problems]}
        train = train[: selection.problems]
    train = without_overlap(train, opened, data)
    named = {name: asked(test, recipe.prompt) for name, test in opened.items()}
    validation = held_for_validation(train, evaluation)
    if validation:
        train = without_overlap(train[: -len(validation)], {"validation": validation}, data)
    train = asked(train, recipe.prompt)
    validation = asked(validation, recipe.prompt)
    return Job(model or EMBEDDED, resolve_dtype(model, dtype), train, named, recipe, validation, sources.named)


def open_evaluation(
    model: Path | None, data: str | None, dtype: str, recipe: Recipe, sources: Sources | None = None
) -> Job:
    """A job that evaluates alone, on all of `data` or on the embedded model's test problems."""
    sources = sources or Sources()
    if data is None:
        tests = generated_tests(recipe.evaluation, recipe.selection, recipe.seed)
    else:
        problems = selected(sources.read(data, recipe, None, "test"), recipe.selection)
        tests = {test_name(data): problems[: recipe.evaluation.problems]}
    named = {name: asked(test, recipe.prompt) for name, test in tests.items()}
    return Job(model or EMBEDDED, resolve_dtype(model, dtype), [], named, recipe, [], sources.named)


def hold_out(problems: list[Problem], source: str) -> tuple[list[Problem], list[Problem]]:
    """(problems to train on, the last fifth to evaluate on)."""
    held = max(1, int(len(problems) * HELD_OUT))
    if held == len(problems):
        raise UserError(f"{source}: one problem cannot be both trained and evaluated on; add more, or --eval-data")
    return problems[:-held], problems[-held:]


def held_for_validation(train: list[Problem], evaluation: EvaluationSettings) -> list[Problem]:
    """The last of the training problems, which are in no test, to evaluate on between rounds; none without --eval-every."""
    if evaluation.every != "round":
        return []
    if len(train) == 1:
        raise UserError("--eval-every round: holds out some of the training problems, and there is one; add more")
    return train[-max(1, min(evaluation.validation, int(len(train) * HELD_OUT))) :]


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


def test_name(source: str) -> str:
    """What a test is called in folders and tables: the file's name without its endings, the data set's or the task's name."""
    if source.startswith(GYM_PREFIX):
        return source.removeprefix(GYM_PREFIX)
    named = hub_data(source)
    return Path(source.removesuffix(".gz")).stem if named is None else named.title


def open_tests(sources: list[str] | None, recipe: Recipe, read: Sources) -> dict[str, list[Problem]]:
    """name: problems of each test. Raises UserError where two have one name."""
    named = {test_name(source): source for source in sources or []}
    if len(named) < len(sources or []):
        raise UserError(f"--eval-data: two files have the same name ({', '.join(named)}); rename one of them")
    if "average" in named:
        raise UserError(f"--eval-data: {named['average']}: a test cannot be called average; rename the file")
    count = recipe.evaluation.problems
    return {name: read.read(source, recipe, None, "test")[:count] for name, source in named.items()}


def selected(problems: list[Problem], selection: SelectionSettings) -> list[Problem]:
    """Those of the selection's levels and subjects."""
    levels = None if selection.levels is None else parse_levels(selection.levels)
    subjects = None if selection.subjects is None else parse_subjects(selection.subjects)
    return select(problems, levels, subjects)


def generated(split: str, count: int | None, selection: SelectionSettings, seed: int) -> list[Problem]:
    """`count` generated problems of the selection's levels."""
    count = count or DEFAULT_COUNT
    drawn = max(count, LEAST_DRAWN)
    while len(found := selected(arithmetic_problems(split, drawn, seed), selection)) < count:
        drawn *= 2
    return found[:count]


def generated_tests(
    evaluation: EvaluationSettings, selection: SelectionSettings, seed: int
) -> dict[str, list[Problem]]:
    """One test of generated problems."""
    return {"arithmetic": generated("test", evaluation.problems, selection, seed)}


def generated_by_level(
    evaluation: EvaluationSettings, selection: SelectionSettings, seed: int
) -> dict[str, list[Problem]]:
    """Tests of generated problems, easy to hard: with 2, with 3, and with 4 or 5 operations."""
    chosen = {name: replace(selection, levels=levels) for name, levels in BY_LEVEL.items()}
    return {name: generated("test", evaluation.problems, of_level, seed) for name, of_level in chosen.items()}
