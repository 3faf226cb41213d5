"""Scoring: completions that others made, graded and measured as our own are. Nothing here needs a model, a GPU or torch."""

from .rows import Generation, read_generations
from .score import Against, Judge, Score, compared, score_file
from .show import score_charts, score_tables, to_csv

__all__ = [
    "Against",
    "Generation",
    "Judge",
    "Score",
    "compared",
    "read_generations",
    "score_charts",
    "score_file",
    "score_tables",
    "to_csv",
]
