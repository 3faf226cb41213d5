"""A model on held-out problems, greedy or avg@n; and a pruned model against its base, over the same problems."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from ..files import read_json, read_record
from ..metrics import Answers, accuracy_interval, aes, mean_paired, paired
from ..records import from_json
from ..rollout import problems_held, read_groups
from ..run_folder import EvaluationFolder
from ..types import Group, Problem, lengths_and_verdicts
from .results import Comparison, Evaluation, Outcome, read_evaluation

THIRDS = ("hardest third", "middle third", "easiest third")
MOSTLY = 0.5  # of a test's completions that are cut off: from here on the accuracy says more about the limit


def evaluation_of(groups: Sequence[Group], seconds: float, sampled: int) -> Evaluation:
    """Graded completions summed up. seconds: what it took to sample `sampled` tokens of them."""
    answers = answers_of(groups)
    low, high = accuracy_interval(answers.correct)
    return Evaluation(
        accuracy=float(answers.correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        mean_tokens=float(answers.lengths.mean()),
        median_tokens=float(np.median(answers.lengths)),
        truncated=float(np.mean([s.finish_reason == "length" for g in groups for s in g.samples])),
        problems=len(groups),
        samples=answers.lengths.shape[1],
        seconds=seconds,
        tokens_per_second=sampled / seconds,
        answers=answers,
    )


def finished_evaluation(folder: EvaluationFolder, problems: list[Problem]) -> Evaluation | None:
    """The folder's result where it has one and the rollouts of all problems, which plots and the page read; else None."""
    ids = {problem.id for problem in problems}
    whole = folder.alone(lambda: folder.result.exists() and ids <= problems_held(folder.rollouts))
    if not whole:
        return None
    return replace(read_evaluation(folder.result), answers=read_answers(folder, problems))


def read_answers(folder: EvaluationFolder, problems: Sequence[Problem]) -> Answers:
    """What the folder's rollouts hold of these problems, in their order."""
    groups = {group.problem: group for group in read_groups(folder.rollouts)}
    return answers_of([groups[problem.id] for problem in problems])


def answers_of(groups: Sequence[Group]) -> Answers:
    """Lengths and verdicts of P problems, K samples of each."""
    lengths, correct = lengths_and_verdicts(groups)
    return Answers([group.problem for group in groups], lengths.numpy(), correct.numpy())


def read_problems(folder: EvaluationFolder) -> list[Problem]:
    """The problems of problems.json."""
    held = read_json(folder.problems)
    if isinstance(held, dict):  # versions before 0.2 wrote a list, without a checksum
        held = read_record(folder.problems).get("problems")
    return from_json(list[Problem], held, str(folder.problems))


def compare(base: dict[str, Evaluation], pruned: dict[str, Evaluation]) -> Comparison:
    """The outcome of each test and of their average (O1-Pruner, Table 2); the average's aes is the mean of the tests'.

    Both sides have the same tests. Evaluations that carry their answers are compared problem by problem too. Raises
    UserError where a test's problems differ between the sides.
    """
    tests = {name: outcome(base[name], pruned[name]) for name in base}
    if len(tests) == 1:
        return Comparison(next(iter(tests.values())), tests)
    average = outcome(mean_evaluation(list(base.values())), mean_evaluation(list(pruned.values())))
    scores = [test.aes for test in tests.values() if test.aes is not None]
    sides = [(t.base.answers, t.pruned.answers) for t in tests.values()]
    known = [(before, after) for before, after in sides if before is not None and after is not None]
    average = replace(
        average,
        aes=sum(scores) / len(scores) if len(scores) == len(tests) else None,
        paired=mean_paired(known) if len(known) == len(tests) else None,
    )
    return Comparison(average, tests)


def mean_evaluation(evaluations: list[Evaluation]) -> Evaluation:
    """The unweighted mean over tests, which has no interval."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return Evaluation(
        accuracy=mean([e.accuracy for e in evaluations]),
        mean_tokens=mean([e.mean_tokens for e in evaluations]),
        median_tokens=mean([e.median_tokens for e in evaluations]),
        truncated=mean([e.truncated for e in evaluations]),
        problems=sum(e.problems for e in evaluations),
        samples=evaluations[0].samples,
        tokens_per_second=mean([e.tokens_per_second for e in evaluations]),
    )


def outcome(base: Evaluation, pruned: Evaluation) -> Outcome:
    """One test's outcome."""
    score = None
    if base.accuracy > 0:
        score = aes(base.accuracy, base.mean_tokens, pruned.accuracy, pruned.mean_tokens)
    length_cut = 1 - pruned.mean_tokens / base.mean_tokens
    found = Outcome(base, pruned, length_cut, pruned.accuracy - base.accuracy, score)
    if base.answers is None or pruned.answers is None:
        return found
    return replace(found, paired=paired(base.answers, pruned.answers))


def difficulties(problems: Sequence[Problem], correct: Tensor) -> list[str]:
    """How hard each problem is: "level N" where every problem has one, else its third by accuracy. correct: bool [P, K]."""
    if all(p.level for p in problems):
        return [f"level {p.level}" for p in problems]
    third = [""] * len(problems)
    for name, part in zip(THIRDS, correct.float().mean(1).argsort(stable=True).tensor_split(3)):
        for i in part.tolist():
            third[i] = name
    return third
