"""What a run is asked to do: settings in parts, the methods of the literature, and the recipes that ship."""

from .methods import METHODS
from .recipe import MAY_CHANGE, SHIPPED, SPECS, Recipe, Spec, read_recipe
from .settings import (
    MOST_MICRO_TOKENS,
    MOST_ON_CPU,
    EvaluationSettings,
    ExecutionSettings,
    ObjectiveSettings,
    OptimiserSettings,
    PromptSettings,
    RewardSettings,
    SamplingSettings,
    SelectionSettings,
    flag,
    parse_percentiles,
)

__all__ = [
    "MAY_CHANGE",
    "METHODS",
    "MOST_MICRO_TOKENS",
    "MOST_ON_CPU",
    "SHIPPED",
    "SPECS",
    "EvaluationSettings",
    "ExecutionSettings",
    "ObjectiveSettings",
    "OptimiserSettings",
    "PromptSettings",
    "Recipe",
    "RewardSettings",
    "SamplingSettings",
    "SelectionSettings",
    "Spec",
    "flag",
    "parse_percentiles",
    "read_recipe",
]
