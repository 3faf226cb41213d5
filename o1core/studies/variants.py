"""The variants of a recipe that a study compares."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UserError
from ..recipe import Recipe
from ..rewards import WITH_LAMBDA

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One run of a study for each seed: its name in the table, its value on the plot's axis, and its settings."""

    label: str
    value: str | float | None
    recipe: Recipe


def lambda_variants(recipe: Recipe, values: str) -> list[Variant]:
    """A variant for each lambda; values: "0,1,2,5"."""
    texts = comma_list("--values", values)
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise UserError(f"--values: {values} is not a list of numbers, such as 0,1,2,5") from None
    objective, reward = recipe.objective.kind, recipe.reward.kind
    if objective != "surrogate" or reward not in WITH_LAMBDA:
        raise UserError(f"study lambda: {objective} with the reward {reward} has no lambda; choose another --method")
    if len({f"{value:g}" for value in numbers}) < len(numbers):
        raise UserError(f"--values: {values} repeats a value")
    return [Variant(f"lambda {value:g}", value, recipe.replace(lam=value)) for value in numbers]


def percentile_variants(recipe: Recipe, percentiles: str) -> list[Variant]:
    """A variant for each part of the problems by reference accuracy; percentiles: "0-40,30-70"."""
    if recipe.objective.kind == "none":
        raise UserError("study difficulty: --objective none trains on no problems; choose another --method")
    spans = comma_list("--percentiles", percentiles)
    return [Variant(f"percentiles {span}", span, recipe.replace(percentiles=span)) for span in spans]


def method_variants(methods: str, recipe_of: Callable[[str], Recipe]) -> list[Variant]:
    """A variant for each method; methods: "sft,dpo". One with the settings of an earlier one is left out and logged."""
    variants: list[Variant] = []
    for method in comma_list("--methods", methods):
        recipe = recipe_of(method)
        twin = next((v.label for v in variants if v.recipe == recipe), None)
        if twin is None:
            variants.append(Variant(method, method, recipe))
        else:
            log.warning("%s has the settings of %s under this recipe; it is run once", method, twin)
    return variants


def comma_list(flag: str, text: str) -> list[str]:
    """The parts of a comma-separated list. Raises UserError where it is empty or repeats a part."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or len(set(parts)) < len(parts):
        raise UserError(f"{flag}: {text!r} must be a comma-separated list without repeats")
    return parts
