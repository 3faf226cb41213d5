"""Both kinds of tiny-o1's problems, and every wording, before and after each recipe: overfitting to one form would show.

    python -m bench.tiny_o1_forms runs/bench-tiny-o1 [--seeds 3]

The folder is that of bench.tiny_o1 --out, finished. Differences are paired over the test problems of all seeds, with 95 %
intervals. The last column: of 14 wordings the one whose tokens are cut least and most, and the one whose accuracy does worst.
"""

import argparse
import re
import sys
from pathlib import Path

from bench.methods import changes, signed
from o1core.errors import UserError
from o1core.evaluation import read_problems
from o1core.problems.arithmetic import LARGER_WORDINGS, SUM_WORDINGS
from o1core.rollout import read_groups
from o1core.run_folder import SIDES, RunFolder
from o1core.studies.measures import Completions, completions_of
from o1core.studies.study_folder import StudyFolder

KINDS = {"sum": SUM_WORDINGS, "larger": LARGER_WORDINGS}
PATTERNS = {
    wording: re.compile(re.escape(wording).replace(r"\{\}", r"[-+*\d]+"))
    for wordings in KINDS.values()
    for wording in wordings
}


def by_wording(run: RunFolder, side: str) -> dict[str, list[Completions]]:
    """wording: the completions of its problems, test by test. Raises UserError where a question has none of the wordings."""
    found: dict[str, list[Completions]] = {wording: [] for wording in PATTERNS}
    for folder in run.evaluations(side).values():
        asked = {problem.id: wording_of(problem.question) for problem in read_problems(folder)}
        groups = sorted(read_groups(folder.rollouts), key=lambda group: group.problem)
        for wording in PATTERNS:
            if of_it := [group for group in groups if asked[group.problem] == wording]:
                found[wording].append(completions_of(of_it))
    return found


def wording_of(question: str) -> str:
    for wording, pattern in PATTERNS.items():
        if pattern.fullmatch(question):
            return wording
    raise UserError(f"{question!r}: is no problem of tiny-o1; give the folder of bench.tiny_o1")


def row(name: str, runs: list[RunFolder]) -> str:
    """A recipe's line: what changes of each kind of problem, and how far its wordings are apart."""
    seeds = [tuple(by_wording(run, side) for side in SIDES) for run in runs]
    cells = []
    for wordings in KINDS.values():
        before, after = ([c for seed in seeds for w in wordings for c in seed[i][w]] for i in range(2))
        cells += [signed(changes(before, after)[0]), f"{cut(before, after):.1f} %"]
    parts = []
    for wording in PATTERNS:
        before, after = ([c for seed in seeds for c in seed[i][wording]] for i in range(2))
        if before:
            parts.append((cut(before, after), changes(before, after)[0][0]))
    cuts, points_of = zip(*parts)
    cells.append(f"{min(cuts):.1f} to {max(cuts):.1f} %, {min(points_of):+.1f} points at worst")
    return f"| {name} | {' | '.join(cells)} |"


def cut(before: list[Completions], after: list[Completions]) -> float:
    """Percent of the tokens that are gone."""
    old, new = (sum(float(lengths.mean(axis=1).sum()) for lengths, _ in side) for side in (before, after))
    return 100 * (1 - new / old)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("folder", metavar="RUN", type=Path, help="the --out of bench.tiny_o1")
    ap.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default: %(default)s)")
    args = ap.parse_args()
    folder = StudyFolder(args.folder)
    names = sorted(path.parent.name for path in folder.path.glob("seed-0/*/result.json"))
    try:
        if not names:
            raise UserError(f"{folder.path}: no recipe has finished")
        runs = {name: [folder.run(seed, name) for seed in range(args.seeds)] for name in names}
        for run in (run for of_recipe in runs.values() for run in of_recipe):
            if not run.result.exists():
                raise UserError(f"{run.path}: is not finished")
        rows = [row(name, of_recipe) for name, of_recipe in runs.items()]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print("| recipe | sums: points | cut | larger of two: points | cut | wordings: cut, points |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
