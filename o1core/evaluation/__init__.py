"""Evaluation: a model on held-out problems, a pruned model against its base, and the results that reports are made of."""

from .comparison import compare, outcome
from .difficulty import THIRDS, difficulties
from .measure import evaluation_of, finished_evaluation, read_problems
from .results import (
    Comparison,
    Cost,
    DisharmonyResult,
    DisharmonyRow,
    Evaluation,
    Figures,
    InferenceTime,
    Interval,
    Measures,
    Outcome,
    Result,
    RunResult,
    Spread,
    StudyResult,
    StudyRow,
    read_evaluation,
    read_result,
    read_run_result,
)

__all__ = [
    "THIRDS",
    "Comparison",
    "Cost",
    "DisharmonyResult",
    "DisharmonyRow",
    "Evaluation",
    "Figures",
    "InferenceTime",
    "Interval",
    "Measures",
    "Outcome",
    "Result",
    "RunResult",
    "Spread",
    "StudyResult",
    "StudyRow",
    "compare",
    "difficulties",
    "evaluation_of",
    "finished_evaluation",
    "outcome",
    "read_evaluation",
    "read_problems",
    "read_result",
    "read_run_result",
]
