"""An evaluation: greedy or avg@n over held-out problems, summed up as JSON."""

import time
from pathlib import Path

import numpy as np

from .config import read_json
from .engine import Engine
from .metrics import accuracy_interval, aes
from .problems import Problem
from .rollouts import sample_problems
from .sampling import SamplingParams
from .store import lengths_and_verdicts, write_json
from .tokenizer import Tokenizer


def evaluate(
    engine: Engine, tokenizer: Tokenizer, problems: list[Problem], params: SamplingParams, folder: Path, label: str
) -> dict:
    """Sample params.n completions of each problem into folder/rollouts and sum them up in folder/result.json.

    Returns fractions from 0 to 1 (accuracy, accuracy_low and accuracy_high of the 95 % interval, truncated), tokens
    (mean_tokens, median_tokens), problems, samples (n), seconds and tokens_per_second, which count what this call
    sampled. A result that is there already is read, not made again.
    """
    result = folder / "result.json"
    if result.exists():
        return read_json(result)
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
        "tokens_per_second": float(lengths.sum()) / seconds,
    }
    write_json(result, summary)
    return summary


def compare(base: dict, pruned: dict) -> dict:
    """A pruned model's evaluation against its base's: length_cut, accuracy_gain (a difference of fractions) and AES.

    aes is None where the base got nothing right: the score is relative to it.
    """
    gain = pruned["accuracy"] - base["accuracy"]
    cut = 1 - pruned["mean_tokens"] / base["mean_tokens"]
    score = None
    if base["accuracy"] > 0:
        score = aes(base["accuracy"], base["mean_tokens"], pruned["accuracy"], pruned["mean_tokens"])
    return {"base": base, "pruned": pruned, "length_cut": cut, "accuracy_gain": gain, "aes": score}
