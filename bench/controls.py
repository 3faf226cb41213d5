"""What each part of a recipe contributes, on a real model: the paper's reward beside controls with the same samples.

    python -m bench.controls --model DIR --data gsm8k/train.jsonl [--out runs/controls] [--only paper sft ...]

Every row trains adapters on the same problems with as many samples and rounds; the first round's samples are made once. All
are tested greedily on the same problems, which no tuning has seen: they are drawn from the file by a hash of their questions,
without those that bench.qwen_gsm8k trains on or chooses by. Rows:

    paper          the paper's reward, lambda 2
    sft            likelihood of the two shortest right samples of a problem
    accuracy       the surrogate with accuracy alone as its reward (GRPO's advantage)
    correct-only   the paper's reward among right answers alone, lambda 2
    imitation      sft on samples made to begin with an opening, which is trained with them
    opening        no training: the base's answers are made to begin so

It prints a table with paired 95 % intervals over the test's problems: each row against the base, and the paper's row less each
other one. The same figures are in OUT/figures.json. Interrupted runs resume: rerun the same command; a row that --only leaves
out is named.
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.openings import answers as opened
from bench.qwen_gsm8k import OPENING, SPLIT_SEED, STAGES, VALIDATION
from o1core.errors import UserError
from o1core.evaluation import answers_of
from o1core.files import write_atomic, write_json
from o1core.metrics import Answers, Paired, paired
from o1core.model import DTYPES
from o1core.problems import load_problems
from o1core.recipe import Recipe
from o1core.records import to_json
from o1core.rollout import keep_freed_memory
from o1core.run_folder import SIDES
from o1core.runs import Resources, open_evaluation, open_job
from o1core.studies import StudyFolder, Variant, read_side, run_variants
from o1core.types import Problem

TRAIN, TEST = "train", "second-test"
PAPER, OPENED = "paper", "opening"


def recipes(problems: int, samples: int, rounds: int, longest: int) -> dict[str, Recipe]:
    """name: recipe. The rates are those that bench.qwen_gsm8k found on validation problems for adapters of this rank."""
    shared = {
        "problems": problems,
        "samples": samples,
        "rounds": rounds,
        "max_new_tokens": longest,
        "prompt": "boxed",
        "temperature": 0.7,
        "top_p": 0.95,
        "cutoff": 2048,
        "lora_rank": 16,
        "lr": 1.5e-4,
        "warmup": 0.1,
        "grad_clip": 1.0,
        "save_every": 2,
        "micro_tokens": 2048,
    }
    surrogate = shared | {"ratio": "token", "eps_low": 0.5, "eps_high": 1.0, "picked": samples // 2, "batch": 64}
    sft = shared | {"objective": "sft", "picked": 2, "batch": 16, "lr": 2e-4}
    return {
        PAPER: Recipe.of(**surrogate, reward="length-harmonizing", lam=2.0),
        "sft": Recipe.of(**sft),
        "accuracy": Recipe.of(**surrogate, reward="accuracy", advantage="group", dynamic_sampling=True),
        "correct-only": Recipe.of(**surrogate, reward="correct-only", lam=2.0, dynamic_sampling=True),
        "imitation": Recipe.of(**sft, opening=OPENING),
    }


def main() -> int:
    names = [*recipes(128, 8, 1, 1024), OPENED]
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    ap.add_argument("--data", type=Path, required=True, help="training problems, of which the test is drawn too")
    ap.add_argument("--problems", type=int, default=128, help="to train on (default: %(default)s)")
    ap.add_argument("--tests", type=int, default=400, help="problems of the test (default: %(default)s)")
    ap.add_argument("--samples", type=int, default=8, help="of each problem (default: %(default)s)")
    ap.add_argument("--rounds", type=int, default=1, help="of each row (default: %(default)s)")
    ap.add_argument("--max-new-tokens", type=int, default=1024, help="longest answer (default: %(default)s)")
    ap.add_argument("--only", choices=names, nargs="+", default=names, help="these rows alone (default: all)")
    ap.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="float32 where bf16 is slow")
    ap.add_argument("--out", type=Path, default=Path("runs/controls"), help="folder (default: %(default)s)")
    args = ap.parse_args()
    keep_freed_memory()
    resources = Resources(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 128)
    try:
        split(load_problems(args.data), args.out, args.problems, args.tests)
        base, rows = measure(args, resources)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found = compare(base, rows)
    write_json(args.out / "figures.json", {"problems": len(base.problems)} | to_json(found))
    print(f"{len(base.problems)} problems, greedy, paired 95 % intervals\n\n{table(found)}")
    missing = [name for name in names if name not in rows]
    if missing:
        print(f"\nNot run: {', '.join(missing)}.")
    return 0


def split(problems: list[Problem], out: Path, train: int, tests: int) -> None:
    """Write train.jsonl and second-test.jsonl, the first and the last in the order of their questions' hashes. Raises
    UserError where there are too few."""
    used = drawn_before(problems)
    fresh = sorted(
        (p for p in problems if p.id not in used), key=lambda p: hashlib.sha256(p.question.encode()).digest()
    )
    if len(fresh) < train + tests:
        raise UserError(f"--data: {len(fresh):,} problems are unused; {train + tests:,} are needed, fewer --tests fit")
    out.mkdir(parents=True, exist_ok=True)
    for name, part in ((TRAIN, fresh[:train]), (TEST, fresh[-tests:])):
        text = "".join(json.dumps({"id": p.id, "problem": p.question, "answer": p.answer}) + "\n" for p in part)
        file = out / f"{name}.jsonl"
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise UserError(f"{file}: was made of other problems; choose another --out")
        write_atomic(file, partial(Path.write_text, data=text, encoding="utf-8"))


def drawn_before(problems: Sequence[Problem]) -> set[str]:
    """ids of the problems that bench.qwen_gsm8k chooses settings by or trains on."""
    order = shuffled(problems, SPLIT_SEED)
    used = {p.id for p in order[:VALIDATION]}
    for stage in STAGES:
        drawn = shuffled(order[VALIDATION:], stage.selection.shuffle_seed)
        used |= {p.id for p in drawn[: stage.selection.problems]}
    return used


def shuffled(problems: Sequence[Problem], seed: int | None) -> list[Problem]:
    """In the order that load_problems gives them under a seed."""
    order = list(problems)
    random.Random(seed).shuffle(order)
    return order


def measure(args: argparse.Namespace, resources: Resources) -> tuple[Answers, dict[str, Answers]]:
    """The base's answers to the test, and those of every row that --only names."""
    test = str(args.out / f"{TEST}.jsonl")
    of_row = recipes(args.problems, args.samples, args.rounds, args.max_new_tokens)
    variants = [Variant(name, name, recipe) for name, recipe in of_row.items() if name in args.only]
    opener = partial(open_job, args.model, str(args.out / f"{TRAIN}.jsonl"), [test], args.dtype)
    runs = StudyFolder(args.out / "runs")

    def untrained(opening: str) -> Answers:
        recipe = Recipe.of(
            eval_problems=args.tests, prompt="boxed", max_new_tokens=args.max_new_tokens, opening=opening
        )
        job = open_evaluation(args.model, test, args.dtype, recipe)
        return answers_of(opened(job, args.out / "untrained", resources))

    if variants:
        run_variants("controls", opener, variants, 1, runs.path, resources)
    rows = {v.label: read_side(runs.run(0, v.label), SIDES[1], TEST) for v in variants}
    if OPENED in args.only:
        rows[OPENED] = untrained(OPENING)
    base = read_side(runs.run(0, variants[0].label), SIDES[0], TEST) if variants else untrained("")
    return base, rows


@dataclass(frozen=True)
class Found:
    """Accuracy (a fraction) and mean tokens; what changed against the base (None: of the base itself); and the paper's row less
    this one (None: of itself, or without it)."""

    accuracy: float
    tokens: float
    change: Paired | None = None
    paper_less: Paired | None = None


def compare(base: Answers, rows: dict[str, Answers]) -> dict[str, Found]:
    """The base and every row, by name."""
    paper = rows.get(PAPER)
    found = {"base": Found(float(base.correct.mean()), float(base.lengths.mean()))}
    for name, answers in rows.items():
        less = None if paper is None or name == PAPER else paired(answers, paper)
        plain = float(answers.correct.mean()), float(answers.lengths.mean())
        found[name] = Found(*plain, paired(base, answers), less)
    return found


def table(found: dict[str, Found]) -> str:
    """Markdown, a line for each."""
    lines = [
        f"| | accuracy | tokens | points | tokens | cut | AES | {PAPER} less it: points | tokens |",
        "|---" * 9 + "|",
    ]
    for name, row in found.items():
        cells = [name, f"{100 * row.accuracy:.1f} %", f"{row.tokens:.1f}", *differences(row.change)]
        score = f"{row.change.aes:.2f}" if row.change and row.change.aes else ""
        cells += [f"{100 * (1 - row.tokens / found['base'].tokens):.1f} %" if row.change else "", score]
        lines.append(f"| {' | '.join([*cells, *differences(row.paper_less)])} |")
    return "\n".join(lines)


def differences(change: Paired | None) -> list[str]:
    return ["", ""] if change is None else [f"{change.accuracy.scaled(100):+.1f}", f"{change.tokens:+.1f}"]


if __name__ == "__main__":
    sys.exit(main())
