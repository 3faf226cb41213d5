"""The paper's studies, each a folder with a result.json, a table.md and a plot.png.

disharmony   are the long answers the right ones? Many samples of some problems, cut by length
lambda       the weight of a right answer against the length
difficulty   which problems to train on
compare      all methods on all tests, with inference time (the paper's Table 2)

The last three prune under several variants of a recipe. An interrupted study resumes: rerun the same command.
"""

from .disharmony import study_disharmony
from .pruning import run_variants
from .study import run_study
from .variants import Variant, lambda_variants, method_variants, percentile_variants

__all__ = [
    "Variant",
    "lambda_variants",
    "method_variants",
    "percentile_variants",
    "run_study",
    "run_variants",
    "study_disharmony",
]
