"""The paper's studies, each a folder with a result.json, a table.md and a plot.png.

disharmony   are the long answers the right ones? Many samples of some problems, cut by length
lambda       the weight of a right answer against the length
difficulty   which problems to train on
compare      several methods on all tests, with inference time (the paper's Table 2)

The last three prune under several variants of a recipe. An interrupted study resumes: rerun the same command.
"""

from .compare import read_side, run_comparison, with_measures
from .dial import export_scale, turn_dial
from .disharmony import study_disharmony
from .study import (
    StudyFolder,
    Variant,
    lambda_variants,
    method_variants,
    percentile_variants,
    result_of,
    run_study,
    run_variants,
)

__all__ = [
    "StudyFolder",
    "Variant",
    "export_scale",
    "lambda_variants",
    "method_variants",
    "percentile_variants",
    "read_side",
    "result_of",
    "run_comparison",
    "run_study",
    "run_variants",
    "study_disharmony",
    "turn_dial",
    "with_measures",
]
