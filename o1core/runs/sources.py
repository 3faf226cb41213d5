"""Where a run's problems come from: files, reasoning-gym tasks, or tiny-o1's generated arithmetic."""

from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..problems import (
    GYM_PREFIX,
    arithmetic_problems,
    gym_problems,
    load_problems,
    parse_levels,
    parse_subjects,
    select,
)
from ..recipe import EvaluationSettings, Recipe, SelectionSettings
from ..seeds import seed_of
from ..types import Problem

DEFAULT_COUNT = 1000  # of generated problems, where the settings ask for all
LEAST_DRAWN = 400  # generated problems to select from: every level is among them, as the rarest is every sixth
BY_LEVEL = {"arithmetic-2": "2", "arithmetic-3": "3", "arithmetic-4-5": "4-5"}  # tests, easy to hard: their levels


def read_problems(source: str, recipe: Recipe, shuffle_seed: int | None, purpose: str) -> list[Problem]:
    """Problems of a file or of a reasoning-gym task. purpose: "train" or "test", which draw with seeds of their own."""
    if source.startswith(GYM_PREFIX):
        wanted = recipe.selection.problems if purpose == "train" else recipe.evaluation.problems
        seed = seed_of(recipe.seed, purpose) % 2**31
        return gym_problems(source.removeprefix(GYM_PREFIX), wanted or DEFAULT_COUNT, seed)
    return load_problems(Path(source), shuffle_seed=shuffle_seed)


def test_name(source: str) -> str:
    """What a test is called in folders and tables: the file's stem, or the task's name."""
    return source.removeprefix(GYM_PREFIX) if source.startswith(GYM_PREFIX) else Path(source).stem


def open_tests(sources: list[str] | None, recipe: Recipe) -> dict[str, list[Problem]]:
    """name: problems of each test. Raises UserError where two have one name."""
    named = {test_name(source): source for source in sources or []}
    if len(named) < len(sources or []):
        raise UserError(f"--eval-data: two files have the same name ({', '.join(named)}); rename one of them")
    if "average" in named:
        raise UserError(f"--eval-data: {named['average']}: a test cannot be called average; rename the file")
    count = recipe.evaluation.problems
    return {name: read_problems(source, recipe, None, "test")[:count] for name, source in named.items()}


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
