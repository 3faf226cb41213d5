"""The embedded model pruned under several recipes and seeds: the result table and chart of the README.

    python -m bench.tiny_o1 --seeds 3 [--out runs/bench] [--only tiny-o1]

The last row is the ceiling: what an ideal policy with the slips of tiny-o1's teacher would do (bench/tiny_o1_ceiling.py).
Each seed has training and test problems of its own. A recipe's first-round samples and its evaluation of the base are
those of the other recipes of that seed (the same numbers decide them), so they are made once. A finished run is read.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from statistics import mean

import torch

from bench.methods import changes, signed
from bench.tiny_o1_ceiling import Ceiling, ceiling
from bench.tiny_o1_chart import draw
from o1core.errors import UserError
from o1core.evaluation import RunResult, read_run_result
from o1core.files import write_json
from o1core.recipe import Recipe, read_recipe
from o1core.rollout import keep_freed_memory
from o1core.run_folder import SIDES
from o1core.runs import Resources, open_job
from o1core.studies import Variant, run_variants
from o1core.studies.measures import completions
from o1core.studies.study_folder import StudyFolder
from o1core.typed_json import to_json

SIZED = (
    "problems",
    "temperature",
    "top_p",
    "max_new_tokens",
    "cutoff",
    "samples",
    "micro_tokens",
    "eval_samples",
    "eval_problems",
    "eval_temperature",
)


def recipes() -> dict[str, Recipe]:
    """name: recipe. The paper's and the official one keep their reward, ratio, m, rounds, schedule and batch; what
    depends on the size of the model and the problems (learning rate, lengths, sampling) is tiny-o1's."""
    own = Recipe.of(**read_recipe("tiny-o1"))
    settings = own.to_json()
    sized = {name: settings[name] for name in (*SIZED, "lr")}
    return {
        "tiny-o1": own,
        "lambda 0": own.replace(lam=0.0),
        "sft": Recipe.of(**read_recipe("tiny-o1", "sft")),
        "paper": Recipe.of(**read_recipe("paper") | sized),
        "official": Recipe.of(**read_recipe("official") | sized),
    }


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default: %(default)s)")
    ap.add_argument("--out", type=Path, default=Path("runs/bench-tiny-o1"), help="folder (default: %(default)s)")
    ap.add_argument("--only", choices=list(recipes()), help="run this recipe alone (default: all)")
    args = ap.parse_args()
    keep_freed_memory()
    variants = [Variant(name, name, recipe) for name, recipe in recipes().items() if args.only in (None, name)]
    resources = Resources(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 256)
    try:
        opener = partial(open_job, None, None, None, "auto")
        rows = run_variants("tiny-o1", opener, variants, args.seeds, args.out, resources).variants
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    results = {row.label: [read_run_result(args.out / run / "result.json") for run in row.runs] for row in rows}
    problems = next(iter(results.values()))[0].settings["eval_problems"]
    ceilings = [ceiling(problems, seed) for seed in range(args.seeds)]
    figures = to_json(results)
    figures["ideal"] = [{"pruned": {"accuracy": c.accuracy, "mean_tokens": c.tokens}} for c in ceilings]
    write_json(args.out / "results.json", figures)
    draw(figures, args.out / "chart.png")
    print(f"\n{time.strftime('%Y-%m-%d')}, {device_name()}, mean over {args.seeds} seeds (lowest to highest)\n")
    print(
        "| recipe | base: accuracy, tokens | pruned: accuracy, tokens | length cut | accuracy gain, points | AES | seconds |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, found in results.items():
        print(line(name, found))
    print(ideal_line(ceilings, next(iter(results.values()))))
    if args.only is None:
        print(f"\n{against_sft(StudyFolder(args.out), args.seeds)}")
    return 0


def ideal_line(ceilings: list[Ceiling], found: list[RunResult]) -> str:
    """The row of the ideal policy, against the base of the same seeds. found: the results of any recipe."""
    bases = [result.comparison.average.base for result in found]
    cut = mean(1 - c.tokens / base.mean_tokens for c, base in zip(ceilings, bases))
    gain = mean(100 * (c.accuracy - base.accuracy) for c, base in zip(ceilings, bases))
    accuracy, tokens = mean(c.accuracy for c in ceilings), mean(c.tokens for c in ceilings)
    return f"| ideal policy | | {accuracy:.1%}, {tokens:.1f} | {cut:.1%} | {gain:+.1f} | | |"


def against_sft(folder: StudyFolder, seeds: int) -> str:
    """How tiny-o1's recipe differs from SFT, over the same problems."""
    sides = []
    for label in ("sft", "tiny-o1"):
        runs = [folder.run(seed, label) for seed in range(seeds)]
        sides.append([completions(run, SIDES[1], test) for run in runs for test in run.evaluations(SIDES[1])])
    points, tokens = map(signed, changes(*sides))
    problems = sum(len(right) for _, right in sides[0])
    return f"tiny-o1 against sft, paired over {problems} problems, 95 % intervals: {points} points, {tokens} tokens"


def line(name: str, found: list[RunResult]) -> str:
    """A recipe's row of the table, over its seeds."""

    def spread(values: list[float], form: str) -> str:
        low, high = (format(f(values), form) for f in (min, max))
        return format(mean(values), form) + (f" ({low} to {high})" if len(values) > 1 else "")

    averages = [result.comparison.average for result in found]
    scores = [average.aes for average in averages if average.aes is not None]
    cells = [
        f"{mean(a.base.accuracy for a in averages):.1%}, {mean(a.base.mean_tokens for a in averages):.1f}",
        f"{mean(a.pruned.accuracy for a in averages):.1%}, {mean(a.pruned.mean_tokens for a in averages):.1f}",
        spread([a.length_cut for a in averages], ".1%"),
        spread([100 * a.accuracy_gain for a in averages], "+.1f"),
        spread(scores, ".2f") if scores else "none",
        spread([result.seconds for result in found], ".0f"),
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
