"""A real model on real problems, on a CPU: Qwen2.5-Coder-0.5B-Instruct pruned on GSM8K.

    python -m bench.qwen_gsm8k --model DIR --data gsm8k/train.jsonl [--out runs/qwen-gsm8k]
    python -m bench.qwen_gsm8k --model DIR --data gsm8k/train.jsonl --eval-data gsm8k/test.jsonl math500.jsonl

The first command splits the file of training problems, trains, and evaluates on the validation part: settings are tuned on
it. The second adds the test problems, for the base and for the final checkpoint, greedily; run it once, when the settings
stand. `--levels` takes problems of these levels alone from files that have levels, `--limit` the first of every test.
Interrupted runs resume: rerun the same command. The stages, each a folder in --out:

    stage-1/                imitation of right samples that were made to begin with "First, calculate", short ones first: a
                            shorter way to think than the model's own, which it hardly begins by itself
    stage-2/ ...            a round each of the clipped surrogate on another draw of problems; length is rewarded among
                            right answers alone. All stages train adapters
    against-TEST-.../       the base against the last checkpoint on these tests; `o1core report` makes a page of it

It prints the table of bench/results/qwen_gsm8k.md: before, after, and what changed over the same problems, with 95 %
intervals. The same figures are in figures.json of the folder against-TEST-..., of which bench/results/qwen_*.json are copies.
"""

import argparse
import dataclasses
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from o1core.errors import UserError
from o1core.evaluation import RunResult, compare, read_run_result
from o1core.files import write_atomic, write_json, write_record
from o1core.model import DTYPES
from o1core.problems import load_problems, parse_levels, select
from o1core.recipe import Recipe
from o1core.records import to_json
from o1core.report import plot_run, run_table, to_markdown
from o1core.rollout import keep_freed_memory
from o1core.run_folder import SIDES, RunFolder
from o1core.runs import Job, Resources, open_job, open_session
from o1core.types import Problem

VALIDATION = 500  # problems of the training file that no stage trains on
SPLIT_SEED = 42
SHARED: dict[str, Any] = {
    "prompt": "boxed",
    "samples": 8,
    "temperature": 0.7,
    "top_p": 0.95,
    "max_new_tokens": 400,
    "grad_clip": 1.0,
    "cutoff": 1024,
    "micro_tokens": 2048,
    "save_every": 2,
    "picked": 8,
    "reward": "correct-only",
    "truncated": "wrong",
    "dynamic_sampling": True,
    "ratio": "token",
    "eps_low": 0.5,
    "eps_high": 1.0,
    "lora_rank": 16,
    "batch": 64,
    "warmup": 0.1,
}
OPENING = "First, calculate"  # of those tried, the one that cuts most for what it costs (bench/results/qwen_gsm8k.md)
IMITATION = SHARED | {"opening": OPENING, "objective": "sft", "samples": 4, "picked": 2, "batch": 16, "epochs": 2}
STAGES = (
    Recipe.of(**IMITATION, problems=256, shuffle_seed=43, lr=2e-4),
    Recipe.of(**SHARED, problems=160, shuffle_seed=44, lam=2.0, lr=1.5e-4),
    Recipe.of(**SHARED, problems=112, shuffle_seed=45, lam=1.0, lr=2e-4),
    Recipe.of(**SHARED, problems=160, shuffle_seed=46, lam=1.5, lr=1.5e-4),
)


@dataclasses.dataclass(frozen=True)
class Pruning:
    """The model and where everything is written. tests: of the last stage; levels and limit: of their problems
    (None: all)."""

    model: Path
    out: Path
    dtype: str
    tests: list[str]
    levels: str | None
    limit: int | None
    resources: Resources

    @property
    def train(self) -> str:
        return str(self.out / "train.jsonl")

    @property
    def validation(self) -> str:
        return str(self.out / "validation.jsonl")

    def job(self, model: Path, recipe: Recipe, tests: list[str]) -> Job:
        return open_job(model, self.train, tests, self.dtype, recipe)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--data", type=Path, required=True, help="train.jsonl of GSM8K")
    parser.add_argument("--eval-data", nargs="+", default=[], help="test problems (default: none, validation only)")
    parser.add_argument("--levels", help="levels of the test problems, such as 1-2 (default: all)")
    parser.add_argument("--limit", type=int, help="at most this many problems of each test (default: all)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="float32 where bf16 is slow")
    parser.add_argument("--out", type=Path, default=Path("runs/qwen-gsm8k"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    keep_freed_memory()
    resources = Resources(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 128)
    try:
        if args.limit is not None and args.limit < 1:
            raise UserError(f"--limit: {args.limit} problems are none; take at least 1")
        split(args.data, args.out)
        pruning = Pruning(args.model, args.out, args.dtype, args.eval_data, args.levels, args.limit, resources)
        print(report(run_stages(pruning)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def split(data: Path, out: Path) -> None:
    """Write the training and the validation part of a problem file."""
    if (out / "validation.jsonl").exists():
        return
    problems = load_problems(data, shuffle_seed=SPLIT_SEED)
    if len(problems) <= VALIDATION:
        raise UserError(f"{data}: has {len(problems)} problems; more than the {VALIDATION} of validation are needed")
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", problems[VALIDATION:]), ("validation", problems[:VALIDATION])):
        lines = [json.dumps({"id": p.id, "problem": p.question, "answer": p.answer}) for p in part]
        text = "\n".join(lines) + "\n"
        write_atomic(out / f"{name}.jsonl", partial(Path.write_text, data=text, encoding="utf-8"))


def run_stages(pruning: Pruning) -> RunFolder:
    """All stages; returns the folder whose evaluations are reported. Raises UserError where a test problem is one that the
    stages train on: they were trained before the tests were named."""
    for recipe in STAGES if pruning.tests else ():
        trained, kept = (
            pruning.job(pruning.model, recipe, tests).train for tests in ([pruning.validation], pruning.tests)
        )
        if len(kept) < len(trained):
            raise UserError("--eval-data: holds problems that are trained on; evaluate on others")
    model = pruning.model
    for number, recipe in enumerate(STAGES, 1):
        run = RunFolder(pruning.out / f"stage-{number}")
        with open_session(pruning.job(model, recipe, [pruning.validation]), run, pruning.resources) as session:
            session.train(resume=True)
        model = run.pruned
    job = pruning.job(pruning.model, STAGES[-1], pruning.tests or [pruning.validation])
    tests = RunFolder(pruning.out / "-".join(["against", *job.tests]))
    tested = {name: of_levels(problems, pruning.levels)[: pruning.limit] for name, problems in job.tests.items()}
    against_base(dataclasses.replace(job, tests=tested), model, tests, pruning.resources)
    return tests


def against_base(job: Job, checkpoint: Path, run: RunFolder, resources: Resources) -> None:
    """Evaluate the job's model and the checkpoint, and write the result."""
    started = time.perf_counter()
    with open_session(job, run, resources) as session:
        if session.finished:
            return
        base, after = (
            session.evaluate(model, job.tests, side, f"evaluate the {name}")
            for model, side, name in zip((job.model, checkpoint), SIDES, ("base", "pruned"))
        )
        result = RunResult(compare(base, after), time.perf_counter() - started, str(checkpoint), job.settings)
        plot_run(run, result)
        write_record(run.result, to_json(result))


def of_levels(problems: list[Problem], levels: str | None) -> list[Problem]:
    """Those of the levels, and all of a test whose problems have none."""
    has_levels = any(problem.level is not None for problem in problems)
    return select(problems, parse_levels(levels)) if levels and has_levels else problems


def report(run: RunFolder) -> str:
    """The Markdown table of every test, and figures.json beside the result: the result without a path of this machine."""
    result = read_run_result(run.result)
    portable = {name: value for name, value in to_json(result).items() if name != "checkpoint"}
    write_json(run.path / "figures.json", {"result": portable})
    table = run_table(result)
    return f"{time.strftime('%Y-%m-%d')}, {result.settings['dtype']}, greedy\n\n{to_markdown(table)}\n\n{table.note}"


if __name__ == "__main__":
    sys.exit(main())
