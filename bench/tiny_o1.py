"""The embedded model pruned under several recipes and seeds: the tables, the chart and the thought of the README.

    python -m bench.tiny_o1 --seeds 3 [--out runs/bench-tiny-o1]
    python -m bench.tiny_o1 --seeds 10 --only tiny-o1 sft "sft x 2" --out runs/ten-seeds    # some 40 minutes on one core

Each seed has training and test problems of its own. A recipe's first-round samples and its evaluation of the base are
those of the other recipes of that seed (the same numbers decide them), so they are made once. A finished run is read, an
interrupted one resumes: rerun the same command, also with more seeds or more recipes. With several seeds all 95 %
intervals are over the seeds, else over the problems. It prints

    the result; its last row is what an ideal policy with the slips of tiny-o1's teacher would do (bench/tiny_o1_ceiling.py)
    the recipe against SFT of one round, and of as many rounds ("sft x 2"), on the same problems
    both kinds of problem, and of the 14 wordings the ones whose tokens are cut least and most and whose accuracy does
        worst: overfitting to one form would show
    one thought before and after: of the first seed's problems the one where on both sides a sample is closest to the
        side's mean length (the sum of both distances; the first of equal ones)
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from bench.tiny_o1_ceiling import Ceiling, ceiling
from o1core.charts import Line, write_png
from o1core.errors import UserError
from o1core.evaluation import StudyResult, answers_of, read_problems, read_run_result
from o1core.files import write_json
from o1core.metrics import Answers, over_seeds, paired_over_seeds
from o1core.model import Tokenizer, read_config
from o1core.problems.arithmetic import LARGER_WORDINGS, SUM_WORDINGS
from o1core.recipe import Recipe, read_recipe
from o1core.records import to_json
from o1core.report import study_tables, to_markdown
from o1core.report.study_charts import spread_line, trade_off
from o1core.rollout import keep_freed_memory, read_groups
from o1core.run_folder import SIDES, RunFolder
from o1core.runs import Resources, open_job
from o1core.studies import StudyFolder, Variant, read_side, run_variants
from o1core.types import Group, Sample

TEST = "arithmetic"
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
KINDS = {"sum": SUM_WORDINGS, "larger": LARGER_WORDINGS}
PATTERNS = {
    wording: re.compile(re.escape(wording).replace(r"\{\}", r"[-+*\d]+"))
    for wordings in KINDS.values()
    for wording in wordings
}


def recipes() -> dict[str, Recipe]:
    """name: recipe. The paper's and the official one keep their reward, ratio, m, rounds, schedule and batch; what
    depends on the size of the model and the problems (learning rate, lengths, sampling) is tiny-o1's."""
    own = Recipe.of(**read_recipe("tiny-o1"))
    sft = Recipe.of(**read_recipe("tiny-o1", "sft"))
    settings = own.to_json()
    sized = {name: settings[name] for name in (*SIZED, "lr")}
    return {
        "tiny-o1": own,
        "lambda 0": own.replace(lam=0.0),
        "sft": sft,
        "sft x 2": sft.replace(rounds=own.sampling.rounds),
        "paper": Recipe.of(**read_recipe("paper") | sized),
        "official": Recipe.of(**read_recipe("official") | sized),
    }


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default: %(default)s)")
    ap.add_argument("--out", type=Path, default=Path("runs/bench-tiny-o1"), help="folder (default: %(default)s)")
    ap.add_argument("--only", choices=list(recipes()), nargs="+", help="run these recipes alone (default: all)")
    args = ap.parse_args()
    keep_freed_memory()
    variants = [Variant(name, name, r) for name, r in recipes().items() if args.only is None or name in args.only]
    resources = Resources(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 256)
    try:
        opener = partial(open_job, None, None, None, "auto")
        study = run_variants("tiny-o1", opener, variants, args.seeds, args.out, resources)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    runs = {row.label: [RunFolder(args.out / name) for name in row.runs] for row in study.variants}
    ceilings = [ceiling(study.settings["eval_problems"], seed) for seed in range(args.seeds)]
    write_figures(runs, ceilings, args.out)
    (table,) = study_tables(study)
    print(f"\n{time.strftime('%Y-%m-%d')}, {device_name()}. {table.note}\n\n{to_markdown(table)}")
    print(ideal_line(ceilings, study))
    for name in ("sft", "sft x 2"):
        if {name, "tiny-o1"} <= runs.keys():
            print(f"\n{against(name, runs)}")
    print("\n| recipe | sums: points | cut | larger of two: points | cut | wordings: cut, points |")
    print("|---|---|---|---|---|---|")
    for name, of_recipe in runs.items():
        print(form_row(name, of_recipe))
    print(f"\n{thought(StudyFolder(args.out).run(0, next(iter(runs))))}")
    return 0


def write_figures(runs: dict[str, list[RunFolder]], ceilings: Sequence[Ceiling], out: Path) -> None:
    """results.json, of which bench/results/tiny_o1.json is a copy, and the chart."""
    figures = to_json({name: [read_run_result(run.result) for run in of_recipe] for name, of_recipe in runs.items()})
    for result in (result for results in figures.values() for result in results):
        del result["checkpoint"]  # a path of this machine
    figures["ideal"] = [{"pruned": {"accuracy": c.accuracy, "mean_tokens": c.tokens}} for c in ceilings]
    write_json(out / "results.json", figures)
    draw(figures, out / "chart.png")


def ideal_line(ceilings: Sequence[Ceiling], study: StudyResult) -> str:
    """The row of the ideal policy, against the base of the same seeds."""
    base = study.base.average
    accuracy, tokens = mean(c.accuracy for c in ceilings), mean(c.tokens for c in ceilings)
    cut, gain = 1 - tokens / base.mean_tokens.mean, 100 * (accuracy - base.accuracy.mean)
    return f"| ideal policy | {100 * accuracy:.1f} % | {tokens:.1f} | {gain:+.1f} | {100 * cut:.1f} % |  |"


def against(name: str, runs: dict[str, list[RunFolder]]) -> str:
    """How tiny-o1's recipe differs from another one, over the same problems."""
    sides = [[read_side(run, SIDES[1], TEST) for run in runs[label]] for label in (name, "tiny-o1")]
    found = paired_over_seeds([[pair] for pair in zip(*sides)])
    scores = [
        [read_run_result(run.result).comparison.average.aes for run in runs[label]] for label in (name, "tiny-o1")
    ]
    score = over_seeds([own - other for other, own in zip(*scores) if own is not None and other is not None])
    points = found.accuracy.scaled(100)
    return f"tiny-o1 against {name}, paired: {points:+.1f} points, {found.tokens:+.1f} tokens, AES {score:+.2f}"


def by_wording(run: RunFolder, side: str) -> dict[str, Answers]:
    """wording: what was answered to its problems. Raises UserError where a question has none of the wordings."""
    folder = run.evaluation(side, TEST)
    asked = {problem.id: wording_of(problem.question) for problem in read_problems(folder)}
    groups = read_groups(folder.rollouts)
    parts = {wording: [group for group in groups if asked[group.problem] == wording] for wording in PATTERNS}
    return {wording: answers_of(part) for wording, part in parts.items() if part}


def wording_of(question: str) -> str:
    for wording, pattern in PATTERNS.items():
        if pattern.fullmatch(question):
            return wording
    raise UserError(f"{question!r}: is no problem of tiny-o1; give the folder of bench.tiny_o1")


def form_row(name: str, runs: Sequence[RunFolder]) -> str:
    """A recipe's line: what changes of each kind of problem, and how far its wordings are apart."""
    before, after = ([by_wording(run, side) for run in runs] for side in SIDES)
    cells = []
    for wordings in KINDS.values():
        old, new = ([joined([seed[w] for w in wordings if w in seed]) for seed in side] for side in (before, after))
        found = paired_over_seeds([[pair] for pair in zip(old, new)])
        cells += [f"{found.accuracy.scaled(100):+.1f}", f"{cut(old, new):.1f} %"]
    parts = []
    for wording in PATTERNS:
        old, new = ([seed[wording] for seed in side if wording in seed] for side in (before, after))
        if old:
            gains = [float(b.correct.mean() - a.correct.mean()) for a, b in zip(old, new)]
            parts.append((cut(old, new), 100 * mean(gains)))
    cuts, points = zip(*parts)
    cells.append(f"{min(cuts):.1f} to {max(cuts):.1f} %, {min(points):+.1f} points at worst")
    return f"| {name} | {' | '.join(cells)} |"


def joined(parts: Sequence[Answers]) -> Answers:
    """Answers to several parts of a test as one."""
    return Answers(
        [name for part in parts for name in part.problems],
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.correct for part in parts]),
    )


def cut(before: Sequence[Answers], after: Sequence[Answers]) -> float:
    """Percent of the tokens that are gone, over all seeds."""
    old, new = (sum(float(a.lengths.mean(axis=1).sum()) for a in side) for side in (before, after))
    return 100 * (1 - new / old)


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """results: for each recipe, the summary of every seed. The base is the same for all recipes of a seed."""
    sides = {"base": [run["base"] for run in next(iter(results.values()))]}
    sides |= {name: [run["pruned"] for run in runs] for name, runs in results.items()}
    points = [line_of(name, found, style) for style, (name, found) in enumerate(sides.items(), -1)]
    write_png([trade_off(points)], f"tiny-o1, {len(sides['base'])} seeds, 95 % intervals", path)


def line_of(name: str, found: list[dict[str, Any]], style: int) -> Line:
    """A recipe's mark. found: the evaluation of each seed; style: the place of its look, of which the base needs none."""
    accuracy = over_seeds([e["accuracy"] for e in found], 0.0, 1.0)
    tokens = mean(e["mean_tokens"] for e in found)
    return spread_line(name, [tokens], accuracy, style=max(0, style))


def mean_length(group: Group) -> float:
    return mean(sample.length for sample in group.samples)


def choose(before: dict[str, Group], after: dict[str, Group]) -> tuple[str, list[Sample]]:
    """The id of the problem, and its sample of each side, by the rule above."""
    sides = (before, after)
    means = [mean(map(mean_length, side.values())) for side in sides]

    def closest(problem: str) -> list[Sample]:
        return [min(s[problem].samples, key=lambda x: abs(x.length - m)) for s, m in zip(sides, means)]

    problem = min(before, key=lambda p: sum(abs(sample.length - m) for sample, m in zip(closest(p), means)))
    return problem, closest(problem)


def thought(run: RunFolder) -> str:
    """The problem and both thoughts, as text."""
    before, after = ({g.problem: g for g in read_groups(run.evaluation(side, TEST).rollouts)} for side in SIDES)
    problem, samples = choose(before, after)
    tokenizer = Tokenizer(run.pruned, read_config(run.pruned).vocab_size)
    parts = [f"problem {problem}\n{tokenizer.decode(before[problem].prompt.tolist())}"]
    parts += [f"{side}, {s.length} tokens\n{tokenizer.decode(s.ids.tolist())}" for side, s in zip(SIDES, samples)]
    return "\n\n".join(parts)


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
