"""An evaluation: greedy or avg@n over held-out problems, summed up as JSON."""

import time
from pathlib import Path

import numpy as np

from ..files import read_json, write_json
from ..metrics import accuracy_interval, aes
from ..model import Tokenizer
from ..problems import Problem
from ..rollout import Engine, SamplingParams, lengths_and_verdicts, read_groups, sample_problems


def evaluate(
    engine: Engine, tokenizer: Tokenizer, problems: list[Problem], params: SamplingParams, folder: Path, label: str
) -> dict:
    """Sample params.n completions of each problem into folder/rollouts and sum them up in folder/result.json; what was
    asked is in folder/problems.json.

    Returns fractions from 0 to 1 (accuracy, accuracy_low and accuracy_high of the 95 % interval, truncated), tokens
    (mean_tokens, median_tokens), problems, samples (n), seconds and tokens_per_second, which count what this call
    sampled. A result that is there already is read, not made again.
    """
    result = folder / "result.json"
    if result.exists():
        return read_json(result)
    write_problems(folder, problems)
    held = {group.problem for group in read_groups(folder / "rollouts")}
    start = time.perf_counter()
    groups = sample_problems(engine, tokenizer, problems, params, folder / "rollouts", label)
    seconds = time.perf_counter() - start
    lengths, correct = (t.numpy() for t in lengths_and_verdicts(groups))
    low, high = accuracy_interval(correct)
    summary = {
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "mean_tokens": float(lengths.mean()),
        "median_tokens": float(np.median(lengths)),
        "truncated": float(np.mean([s.finish_reason == "length" for g in groups for s in g.samples])),
        "problems": len(problems),
        "samples": params.n,
        "seconds": seconds,
        "tokens_per_second": sum(s.length for g in groups if g.problem not in held for s in g.samples) / seconds,
    }
    write_json(result, summary)
    return summary


def write_problems(folder: Path, problems: list[Problem]) -> None:
    """folder/problems.json: what a page or a study says of a problem beside its rollouts."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = ("id", "question", "answer", "level", "subject")
    write_json(folder / "problems.json", [{name: getattr(p, name) for name in fields} for p in problems])


def compare(base: dict[str, dict], pruned: dict[str, dict]) -> dict:
    """A pruned model's evaluations against its base's, test by test and on average (O1-Pruner, Table 2).

    Returns what `score` does for the averages over the tests (of aes: the mean of the tests'), and "tests": {name: the
    same of one test}.
    """
    tests = {name: score(base[name], pruned[name]) for name in base}
    total = score(average(list(base.values())), average(list(pruned.values())))
    scores = [test["aes"] for test in tests.values()]
    return total | {"aes": None if None in scores else sum(scores) / len(scores), "tests": tests}


def average(results: list[dict]) -> dict:
    """The unweighted mean of several evaluations; of one, itself. An average has no interval."""
    if len(results) == 1:
        return results[0]
    names = ("accuracy", "mean_tokens", "median_tokens", "truncated", "tokens_per_second")
    mean = {name: sum(r[name] for r in results) / len(results) for name in names}
    return mean | {"problems": sum(r["problems"] for r in results), "samples": results[0]["samples"]}


def score(base: dict, pruned: dict) -> dict:
    """base, pruned, length_cut (a fraction), accuracy_gain (a difference of fractions) and AES.

    aes is None where the base got nothing right: the score is relative to it.
    """
    gain = pruned["accuracy"] - base["accuracy"]
    cut = 1 - pruned["mean_tokens"] / base["mean_tokens"]
    value = None
    if base["accuracy"] > 0:
        value = aes(base["accuracy"], base["mean_tokens"], pruned["accuracy"], pruned["mean_tokens"])
    return {"base": base, "pruned": pruned, "length_cut": cut, "accuracy_gain": gain, "aes": value}
