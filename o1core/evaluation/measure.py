"""An evaluation: greedy or avg@n over held-out problems, summed up as JSON."""

import time

import numpy as np

from ..distributed import once
from ..files import read_json, write_json, write_record
from ..metrics import accuracy_interval
from ..model import Tokenizer
from ..rollout import Engine, SamplingParams, problems_held, sample_problems
from ..run_folder import EvaluationFolder
from ..typed_json import from_json, to_json
from ..types import Problem, lengths_and_verdicts
from .results import Evaluation, read_evaluation

SHOWN = ("id", "question", "answer", "level", "subject")  # fields of a problem that problems.json keeps


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    problems: list[Problem],
    params: SamplingParams,
    folder: EvaluationFolder,
    label: str,
) -> Evaluation:
    """Sample params.n completions of each problem into the folder's rollouts and sum them up in its result.json; what
    was asked is in its problems.json.

    seconds and tokens_per_second count what this call sampled; problems whose rollouts are there are not sampled again.
    """
    once(label, lambda: write_problems(folder, problems))
    held = problems_held(folder.rollouts)
    start = time.perf_counter()
    groups = sample_problems(engine, tokenizer, problems, params, folder.rollouts, label)
    seconds = time.perf_counter() - start
    lengths, correct = (t.numpy() for t in lengths_and_verdicts(groups))
    low, high = accuracy_interval(correct)
    sampled = sum(s.length for g in groups if g.problem not in held for s in g.samples)
    evaluation = Evaluation(
        accuracy=float(correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        mean_tokens=float(lengths.mean()),
        median_tokens=float(np.median(lengths)),
        truncated=float(np.mean([s.finish_reason == "length" for g in groups for s in g.samples])),
        problems=len(problems),
        samples=params.n,
        seconds=seconds,
        tokens_per_second=sampled / seconds,
    )
    once(label, lambda: write_record(folder.result, to_json(evaluation)))
    return evaluation


def finished_evaluation(folder: EvaluationFolder, problems: list[Problem]) -> Evaluation | None:
    """The folder's result where it has one and the rollouts of all problems, which plots and the page read; else None."""
    ids = {problem.id for problem in problems}
    whole = once("the evaluation", lambda: folder.result.exists() and ids <= problems_held(folder.rollouts))
    return read_evaluation(folder.result) if whole else None


def write_problems(folder: EvaluationFolder, problems: list[Problem]) -> None:
    """problems.json: what a page or a study says of a problem beside its rollouts."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.problems, [{name: getattr(p, name) for name in SHOWN} for p in problems])


def read_problems(folder: EvaluationFolder) -> list[Problem]:
    """The problems of problems.json."""
    return from_json(list[Problem], read_json(folder.problems), str(folder.problems))
