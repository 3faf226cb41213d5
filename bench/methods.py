"""The finished rows of a study that compares methods, before all of its runs are: three Markdown tables.

    python -m bench.methods runs/compare [--seeds 1]

The folder is that of `o1core study compare --out`, killed or at work. A method counts once the runs of all these seeds are
finished. Where the problems are tiny-o1's, the first row is the ceiling: an ideal policy (bench/tiny_o1_ceiling.py). Against
the base, accuracy and tokens are paired over problems, with 95 % intervals; with several seeds the tables of the study itself
say more. Left out: inference times, which the study takes at its end.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from bench.tiny_o1_ceiling import ceiling
from o1core.errors import UserError
from o1core.evaluation import RunResult, StudyResult, StudyRow, read_run_result
from o1core.metrics import mean_interval
from o1core.report import study_tables, to_markdown
from o1core.run_folder import SIDES
from o1core.runs.sources import BY_LEVEL
from o1core.studies.measures import Completions, completions, with_measures
from o1core.studies.pruning import as_unpruned, study_row
from o1core.studies.study_folder import StudyFolder


def finished(folder: StudyFolder, seeds: int) -> dict[str, list[RunResult]]:
    """label: the result of each seed, of the methods that have all."""
    labels = [path.parent.name for path in sorted((folder.path / "seed-0").glob("*/result.json"))]
    runs = {label: [folder.run(seed, label) for seed in range(seeds)] for label in labels}
    return {
        label: [read_run_result(run.result) for run in found]
        for label, found in runs.items()
        if all(run.result.exists() for run in found)
    }


def study_of(folder: StudyFolder, seeds: int) -> StudyResult:
    """What the study would say of its finished methods. Raises UserError where there is none."""
    found = finished(folder, seeds)
    if not found:
        raise UserError(f"{folder.path}: no method has finished its runs of {seeds} seeds")
    first = next(iter(found.values()))
    rows = [study_row("base", None, [], [as_unpruned(result.comparison) for result in first])]
    for label, results in found.items():
        names = [folder.run_name(seed, label) for seed in range(seeds)]
        rows.append(study_row(label, label, names, [result.comparison for result in results]))
    settings = first[0].settings
    result = StudyResult("compare", list(first[0].comparison.tests), seeds, rows, settings)
    return with_measures(folder, result, settings["max_new_tokens"])


def against_base(folder: StudyFolder, result: StudyResult, row: StudyRow) -> list[tuple[float, float, float]]:
    """What a method changes of the base, as `changes` says it, over all seeds' problems."""
    runs = [folder.run(seed, row.label) for seed in range(result.seeds)]
    before, after = ([completions(run, side, test) for run in runs for test in result.tests] for side in SIDES)
    return changes(before, after)


def changes(before: list[Completions], after: list[Completions]) -> list[tuple[float, float, float]]:
    """(mean, low, high) of the points of accuracy and of the tokens that two models differ by, problem by problem: 95 %
    intervals over the problems of all evaluations, which are the same on both sides."""
    tokens = [new.mean(axis=1) - old.mean(axis=1) for (old, _), (new, _) in zip(before, after)]
    points = [100 * (new.mean(axis=1) - old.mean(axis=1)) for (_, old), (_, new) in zip(before, after)]
    return [mean_interval(np.concatenate(values)) for values in (points, tokens)]


def signed(interval: tuple[float, float, float]) -> str:
    """A difference and its interval, as the tables show them."""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*interval)


def ideal_line(result: StudyResult) -> str:
    """The row of the ideal policy on the same tests of tiny-o1, against the base."""
    count, base = result.settings["eval_problems"], result.rows[0].average
    found = [ceiling(count, seed, levels) for seed in range(result.seeds) for levels in BY_LEVEL.values()]
    accuracy, tokens = (float(np.mean(values)) for values in zip(*found))
    gain, change = 100 * (accuracy - base.accuracy.mean), tokens - base.mean_tokens.mean
    cut = 100 * (1 - tokens / base.mean_tokens.mean)
    return f"| ideal policy | {100 * accuracy:.1f} % | {tokens:.1f} | {cut:.1f} % | | {gain:+.1f} | {change:+.1f} |"


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("folder", metavar="RUN", type=Path, help="the study's --out")
    ap.add_argument("--seeds", type=int, default=1, help="seeds of each method (default: %(default)s)")
    args = ap.parse_args()
    folder = StudyFolder(args.folder)
    try:
        result = study_of(folder, args.seeds)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print("| | accuracy | tokens | length cut | AES | accuracy against the base, points | tokens against the base |")
    print("|---|---|---|---|---|---|---|")
    if result.tests == list(BY_LEVEL):
        print(ideal_line(result))
    for row in result.rows:
        cells = [f"{100 * row.average.accuracy.mean:.1f} %", f"{row.average.mean_tokens.mean:.1f}"]
        if row.runs:
            score = row.average.aes
            spread = f" ({score.low:.2f} to {score.high:.2f})" if score and result.seeds > 1 else ""
            cells += [f"{100 * row.average.length_cut.mean:.1f} %", f"{score.mean:.2f}{spread}" if score else "none"]
            cells += map(signed, against_base(folder, result, row))
        else:
            cells += [""] * 4
        print(f"| {row.label} | {' | '.join(cells)} |")
    for table in study_tables(result)[1:]:
        print(f"\n{to_markdown(table)}\n\n{table.note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
