"""A pruned model's evaluations against its base's, test by test and on average."""

from dataclasses import replace

from ..metrics import aes
from .results import Comparison, Evaluation, Outcome


def compare(base: dict[str, Evaluation], pruned: dict[str, Evaluation]) -> Comparison:
    """The outcome of each test and of their average (O1-Pruner, Table 2); the average's aes is the mean of the tests'."""
    tests = {name: outcome(base[name], pruned[name]) for name in base}
    average = outcome(mean_evaluation(list(base.values())), mean_evaluation(list(pruned.values())))
    scores = [test.aes for test in tests.values() if test.aes is not None]
    mean_score = sum(scores) / len(scores) if len(scores) == len(tests) else None
    return Comparison(replace(average, aes=mean_score), tests)


def mean_evaluation(evaluations: list[Evaluation]) -> Evaluation:
    """The unweighted mean over tests; of one test, that test. A mean over tests has no interval."""
    if len(evaluations) == 1:
        return evaluations[0]

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
    return Outcome(base, pruned, length_cut, pruned.accuracy - base.accuracy, score)
