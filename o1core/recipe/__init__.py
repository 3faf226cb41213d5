"""What a run is asked to do: settings in parts, the methods of the literature, and the recipes that ship."""

from .methods import METHODS
from .recipe import MAY_CHANGE, SHIPPED, SPECS, Recipe, Spec, read_recipe
from .settings import (
    EvaluationSettings,
    ExecutionSettings,
    ObjectiveSettings,
    OptimiserSettings,
    PromptSettings,
    RewardSettings,
    SamplingSettings,
    SelectionSettings,
    flag,
    most_micro_tokens,
    parse_percentiles,
)

__all__ = [
    "MAY_CHANGE",
    "METHODS",
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
    "most_micro_tokens",
    "parse_percentiles",
    "read_recipe",
]
