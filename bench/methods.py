"""The finished rows of a study that compares methods, before all of its runs are.

    python -m bench.methods runs/compare [--seeds 1]

The folder is that of `o1core study compare --out`, killed or at work. A method counts once the runs of all these seeds are
finished. The tables are the study's own, and where the problems are tiny-o1's, a last row has the ceiling: an ideal policy
(bench/tiny_o1_ceiling.py). Left out: inference times, which the study takes at its end.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from bench.tiny_o1_ceiling import ceiling
from o1core.errors import UserError
from o1core.evaluation import RunResult, StudyResult, read_run_result
from o1core.report import study_tables, to_markdown
from o1core.runs.job import BY_LEVEL
from o1core.studies import StudyFolder, result_of, with_measures


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
    result = result_of("compare", folder, found, {label: label for label in found})
    return with_measures(folder, result, result.settings["max_new_tokens"])


def ideal_line(result: StudyResult) -> str:
    """The row of the ideal policy on the same tests of tiny-o1, against the base."""
    count, base = result.settings["eval_problems"], result.base.average
    found = [ceiling(count, seed, levels) for seed in range(result.seeds) for levels in BY_LEVEL.values()]
    accuracy, tokens = (float(np.mean(values)) for values in zip(*found))
    gain, cut = 100 * (accuracy - base.accuracy.mean), 100 * (1 - tokens / base.mean_tokens.mean)
    return f"| ideal policy | {100 * accuracy:.1f} % | {tokens:.1f} | {gain:+.1f} | {cut:.1f} % |  |"


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("folder", metavar="RUN", type=Path, help="the study's --out")
    ap.add_argument("--seeds", type=int, default=1, help="seeds of each method (default: %(default)s)")
    args = ap.parse_args()
    try:
        result = study_of(StudyFolder(args.folder), args.seeds)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for number, table in enumerate(study_tables(result)):
        print(to_markdown(table))
        if number == 0 and result.tests == list(BY_LEVEL):
            print(ideal_line(result))
        print(f"\n{table.note}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
