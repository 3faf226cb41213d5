"""The plots that a run and a study leave behind, as PNG files: some of the charts that the page shows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..evaluation import DisharmonyResult, RunResult, StudyResult
from ..rollout import read_groups
from ..run_folder import SIDES, RunFolder
from .charts import Chart, write_png
from .headlines import in_one_line, run_headlines
from .reading import logged_steps
from .run_charts import Side, accuracy_by_length, each_problem, lengths, side_of, training_charts
from .study_charts import disharmony_chart, study_charts

LEARNING = "Length of what is trained on"


def plot_run(run: RunFolder, result: RunResult) -> None:
    """Lengths before and after, accuracy by length, every problem, and the lengths that were trained on."""
    before, after = (completions(run, side, list(result.comparison.tests)) for side in SIDES)
    charts = [lengths(before, after), accuracy_by_length(before, after), each_problem(before, after)]
    charts += chosen(training_charts({"": logged_steps(run)}), [LEARNING])
    write_png(charts, in_one_line(run_headlines(result)), run.plot)


def completions(run: RunFolder, side: str, tests: Sequence[str]) -> Side:
    """All completions of one side, whatever the test. Raises UserError where those of a test were removed meanwhile."""
    sides = []
    for test in tests:
        folder = run.evaluation(side, test).rollouts
        groups = read_groups(folder)
        if not groups:
            raise UserError(f"{folder}: was removed; rerun the same command, which samples it again")
        sides.append(side_of(groups))
    return Side(np.concatenate([s.lengths for s in sides]), np.concatenate([s.correct for s in sides]))


def plot_study(result: StudyResult, path: Path) -> None:
    """Accuracy and length along the values of a setting, or accuracy against length, the score and, where measured, the
    accuracy under token budgets of each method."""
    measured = any(row.measures for row in result.rows)
    write_png(study_charts(result)[: 3 if measured else 2], "", path)


def plot_disharmony(result: DisharmonyResult, path: Path) -> None:
    """Accuracy by length interval, a line a difficulty, with 95 % intervals."""
    title = f"{result.problems} problems, {result.samples} completions of each"
    write_png([disharmony_chart(result, title)], title, path)


def chosen(charts: Sequence[Chart], titles: Sequence[str]) -> list[Chart]:
    return [chart for chart in charts if chart.title in titles]
