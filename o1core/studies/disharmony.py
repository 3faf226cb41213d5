"""Are the long answers the right ones? Many samples of some problems, each problem's cut by length (O1-Pruner, section 3)."""

from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..evaluation import DisharmonyResult, DisharmonyRow, Interval, difficulties
from ..metrics import accuracy_interval, mean_interval
from ..report import disharmony_tables, plot_disharmony
from ..run_folder import RunFolder
from ..runs import Job, Resources, open_session
from ..seeds import seed_of
from .study import StudyFolder, write_outputs


def study_disharmony(job: Job, intervals: int, path: Path, resources: Resources) -> DisharmonyResult:
    """Sample each of recipe.selection.problems test problems recipe.sampling.samples times and hold accuracy against
    length, in the folder `path`.

    Raises UserError where there are fewer problems than requested, or fewer samples than intervals.
    """
    ((name, test),) = job.tests.items()
    recipe = job.recipe
    count, samples = recipe.selection.problems or len(test), recipe.sampling.samples
    if len(test) < count:
        raise UserError(f"--problems: {name} holds {len(test)} problems, not {count}")
    if not 1 < intervals <= samples:
        raise UserError(
            f"--intervals: {intervals} of {samples} samples a problem; it takes 2 at least, and one sample each"
        )
    run = RunFolder(path)
    with open_session(job, run, resources) as session:
        policy = session.open(job.model)
        problems = job.instructed(test[:count], training=False)
        run.own_evaluation.begin(problems)
        params = recipe.sampling.params(seed_of(recipe.seed, "disharmony"))
        rollouts = policy.sample(problems, params, run.own_evaluation.rollouts)
        lengths, correct = rollouts.lengths, rollouts.correct
        rows = accuracy_by_interval(lengths, correct, difficulties(problems, correct), intervals)
        result = DisharmonyResult("disharmony", count, samples, intervals, rows, job.settings)
        return write_outputs(StudyFolder(path), result, disharmony_tables, plot_disharmony)


def accuracy_by_interval(
    lengths: Tensor, correct: Tensor, difficulty: list[str], intervals: int
) -> list[DisharmonyRow]:
    """Accuracy by length: "all" first, then each difficulty.

    lengths, correct [P, K]; difficulty [P]. Every problem's samples, short to long, are cut into `intervals` parts of
    equal count (they differ by one where K does not divide). Of each part: accuracy with its 95 % interval over problems
    and mean_tokens. gap: accuracy of the longest part less that of the shortest, a difference within problems, with its
    interval.
    """
    order = lengths.argsort(dim=1, stable=True)
    parts = [
        (lengths.gather(1, cut).numpy(), correct.gather(1, cut).numpy()) for cut in order.tensor_split(intervals, dim=1)
    ]
    rows = []
    for label in ["all", *sorted(set(difficulty))] if len(set(difficulty)) > 1 else ["all"]:
        chosen = np.array([label in ("all", d) for d in difficulty])
        figures = []
        for i, (tokens, right) in enumerate(parts):
            low, high = accuracy_interval(right[chosen])
            mean_tokens = float(tokens[chosen].mean())
            figures.append(Interval(i + 1, float(right[chosen].mean()), low, high, mean_tokens))
        longest, shortest = (parts[i][1][chosen] for i in (-1, 0))
        one = 1 / min(longest.shape[1], shortest.shape[1])  # a completion's share of its part
        gap = mean_interval(longest.mean(axis=1) - shortest.mean(axis=1), one).within(-1.0, 1.0)
        rows.append(DisharmonyRow(label, int(chosen.sum()), figures, gap))
    return rows
