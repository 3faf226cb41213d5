"""One hostile run: the files of a small finished run or study, damaged in one to three ways, shown by the command line.

Bad are a traceback, a hang, raw control characters in what was printed or in the page, or another exit status.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from o1core.evaluation import (
    Cost,
    DisharmonyResult,
    DisharmonyRow,
    Evaluation,
    Figures,
    InferenceTime,
    Interval,
    Measures,
    RunResult,
    Spread,
    StudyResult,
    StudyRow,
    answers_of,
    compare,
)
from o1core.files import write_json
from o1core.metrics import Answers
from o1core.model import Tokenizer, read_config
from o1core.records import to_json
from o1core.rollout import write_shard
from o1core.run_folder import SIDES, RunFolder
from o1core.types import Group, Problem, Sample

from .harness import BYTES, ESCAPE, TEXTS, TINY, VALUES, cut, make_folder, outcome, remove, replace_bytes

KINDS = ("run", "run", "study", "disharmony")


def fuzz_report(rng: random.Random, folder: Path) -> str:
    """Make a finished run or study in `folder`, damage it, and run one command on it."""
    shutil.rmtree(folder, ignore_errors=True)
    kind = rng.choice(KINDS)
    path = folder / "it"
    shutil.copytree(pristine(kind), path)
    for _ in range(rng.randint(1, 3)):
        damage(rng, path)
    out = folder / "page.html"
    command = ["report", str(path), "--out", str(out)]
    if kind == "run" and rng.random() < 0.3:
        command = ["show", str(path), "--samples", "2", *rng.choice([[], ["--problem", "p-1"], ["--problem", ESCAPE]])]
    return outcome(command, out)


def damage(rng: random.Random, path: Path) -> None:
    """Damage one file of a folder in one way."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in (".json", ".jsonl", ".safetensors"))
    if not files:
        return
    results = [p for p in files if p.name == "result.json" and p.parent == path]
    file = rng.choice(results if results and rng.random() < 0.4 else files)
    ways: list[Callable[[random.Random, Path], None]] = [cut, replace_bytes, remove, make_folder]
    if file.suffix == ".json":
        ways += [change_json] * 8
    if file.suffix == ".jsonl":
        ways += [change_line] * 8
    rng.choice(ways)(rng, file)


def change_json(rng: random.Random, file: Path) -> None:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return
    file.write_text(json.dumps(changed(rng, value)))


def change_line(rng: random.Random, file: Path) -> None:
    lines = file.read_bytes().splitlines()
    if not lines:
        return
    i = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[i]
        case 1:
            lines.insert(i, lines[i])
        case 2:
            lines[i] = rng.choice(BYTES)
        case _:
            try:
                lines[i] = json.dumps(changed(rng, json.loads(lines[i]))).encode()
            except (ValueError, RecursionError):
                return
    file.write_bytes(b"\n".join(lines) + b"\n")


def changed(rng: random.Random, value: Any) -> Any:
    """JSON with one value, somewhere in it, exchanged, left out, doubled or renamed."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        at: Any = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
        copy: Any = value.copy()
        chance = rng.random()
        if chance < 0.1:
            del copy[at]
        elif chance < 0.2 and isinstance(copy, dict):
            copy[rng.choice(TEXTS)] = copy.pop(at)
        elif chance < 0.2:
            copy.append(copy[at])
        else:
            copy[at] = changed(rng, copy[at])
        return copy
    return rng.choice(VALUES)


def pristine(kind: str) -> Path:
    """A finished run or study, made once in this process."""
    if kind not in MADE:
        folder = Path(tempfile.mkdtemp(prefix="o1core-fuzz-")) / kind
        {"run": make_run, "study": make_study, "disharmony": make_disharmony}[kind](folder)
        MADE[kind] = folder
    return MADE[kind]


MADE: dict[str, Path] = {}


def make_run(path: Path) -> None:
    """Three problems, two samples of each, before and after; six logged steps."""
    tokenizer = Tokenizer(TINY, read_config(TINY).vocab_size)
    run = RunFolder(path)
    path.mkdir(parents=True)
    write_json(run.settings, {"model": str(TINY), "method": "o1-pruner", "lam": 2.0})
    problems = [Problem(f"p-{i}", f"What is {i}+1?", str(i + 1), level=str(1 + i % 2)) for i in range(3)]
    found = {}
    for side, text in zip(SIDES, ("1+1=2. Wait, let me check that again. 1+1=2. Yes, 2.", "1+1=2. Final answer: 2")):
        folder = run.evaluation(side, "arithmetic")
        folder.begin(problems)
        prompt = torch.tensor(tokenizer.encode("What is"), dtype=torch.int32)
        ids = torch.tensor(tokenizer.encode(text), dtype=torch.int32)
        samples = tuple(Sample(ids[: len(ids) - k], torch.zeros(len(ids) - k), "stop", "2", k == 0) for k in range(2))
        groups = [Group(p.id, prompt, samples) for p in problems]
        write_shard(folder.rollouts, groups)
        found[side] = {"arithmetic": evaluation(len(ids) - 0.5, answers_of(groups))}
    names = ("reward", "mean_length", "ratio_mean", "clip_fraction", "approx_kl", "loss")
    lines = [{"step": i + 1} | dict.fromkeys(names, 0.1 * i) for i in range(6)]
    run.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before, after = (found[side] for side in SIDES)
    write_json(run.result, to_json(RunResult(compare(before, after), 3.0, str(run.pruned), {})))


def evaluation(tokens: float, answers: Answers | None = None) -> Evaluation:
    return Evaluation(
        accuracy=0.5,
        accuracy_low=0.2,
        accuracy_high=0.8,
        mean_tokens=tokens,
        median_tokens=tokens,
        truncated=0.0,
        problems=3,
        samples=2,
        seconds=1.0,
        tokens_per_second=10.0,
        answers=answers,
    )


def make_study(path: Path) -> None:
    """A base and one method, timed."""
    spread = Spread(0.5, 0.4, 0.6)
    figures = Figures(spread, Spread(30.0, 29.0, 31.0), spread, spread, spread)
    time = InferenceTime(1.0, 0.5)
    measures = Measures(spread, spread, None, spread, [8, 16], [0.25, 0.5])
    rows = [StudyRow("base", None, [], figures, {"arithmetic": figures}, time, measures)]
    cost = Cost(spread, spread, spread)
    rows.append(StudyRow("sft", 2.0, ["seed-0/sft"], figures, {"arithmetic": figures}, time, measures, cost))
    make_run(path / "seed-0" / "sft")
    write_json(path / "study.json", {"study": "lambda"})
    write_json(path / "result.json", to_json(StudyResult("lambda", ["arithmetic"], 1, rows, {})))


def make_disharmony(path: Path) -> None:
    parts = [Interval(i + 1, 0.5, 0.4, 0.6, 50.0 * (i + 1)) for i in range(2)]
    rows = [DisharmonyRow(label, 3, parts, Spread(-0.1, -0.2, 0.0)) for label in ("all", "level 1")]
    path.mkdir(parents=True)
    write_json(path / "settings.json", {"model": str(TINY)})
    write_json(path / "result.json", to_json(DisharmonyResult("disharmony", 3, 2, 2, rows)))
