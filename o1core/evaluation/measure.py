"""An evaluation: greedy or avg@n over held-out problems, summed up as JSON."""

from collections.abc import Sequence

import numpy as np

from ..distributed import on_rank0
from ..files import read_json
from ..metrics import accuracy_interval
from ..rollout import problems_held
from ..run_folder import EvaluationFolder
from ..typed_json import from_json
from ..types import Group, Problem, lengths_and_verdicts
from .results import Evaluation, read_evaluation


def evaluation_of(groups: Sequence[Group], seconds: float, sampled: int) -> Evaluation:
    """Graded completions summed up. seconds: what it took to sample `sampled` tokens of them."""
    lengths, correct = (t.numpy() for t in lengths_and_verdicts(groups))
    low, high = accuracy_interval(correct)
    return Evaluation(
        accuracy=float(correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        mean_tokens=float(lengths.mean()),
        median_tokens=float(np.median(lengths)),
        truncated=float(np.mean([s.finish_reason == "length" for g in groups for s in g.samples])),
        problems=len(groups),
        samples=lengths.shape[1],
        seconds=seconds,
        tokens_per_second=sampled / seconds,
    )


def finished_evaluation(folder: EvaluationFolder, problems: list[Problem]) -> Evaluation | None:
    """The folder's result where it has one and the rollouts of all problems, which plots and the page read; else None."""
    ids = {problem.id for problem in problems}
    whole = on_rank0("the evaluation", lambda: folder.result.exists() and ids <= problems_held(folder.rollouts))
    return read_evaluation(folder.result) if whole else None


def read_problems(folder: EvaluationFolder) -> list[Problem]:
    """The problems of problems.json."""
    return from_json(list[Problem], read_json(folder.problems), str(folder.problems))
