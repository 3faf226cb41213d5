"""Numbers that sum up an evaluation: accuracy with its interval, the accuracy-efficiency score, and measures beside it."""

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % of a normal


def aes(
    base_accuracy: float,
    base_tokens: float,
    accuracy: float,
    tokens: float,
    *,
    alpha: float = 1.0,
    beta: float = 3.0,
    gamma: float = 5.0,
) -> float:
    """The accuracy-efficiency score of a model against its base (O1-Pruner, section 4).

    With dL = (L_base - L) / L_base and dA = (A - A_base) / A_base: alpha dL + beta |dA| where dA >= 0, else
    alpha dL - gamma |dA|. Accuracies are fractions, tokens are mean lengths. Raises ValueError where a base is zero.
    """
    if base_accuracy <= 0 or base_tokens <= 0:
        raise ValueError(f"no score against a base of accuracy {base_accuracy} and {base_tokens} tokens")
    shorter = (base_tokens - tokens) / base_tokens
    better = (accuracy - base_accuracy) / base_accuracy
    return alpha * shorter + (beta if better >= 0 else gamma) * better


def ockscore(accuracy: float, tokens: float) -> float:
    """OckScore: accuracy in percent less 10 log10(tokens / 10,000). accuracy is a fraction, tokens the mean length.

    Ten times the tokens weigh as much as 10 points of accuracy, whatever the base. Raises ValueError without tokens.
    """
    if tokens <= 0:
        raise ValueError(f"no score of {tokens} tokens")
    return 100 * accuracy - 10 * math.log10(tokens / 10_000)


def lengths_by_verdict(lengths: np.ndarray, correct: np.ndarray) -> tuple[float | None, float | None]:
    """(mean length of the completions that are right, of those that are wrong); None where there is none.

    lengths, in tokens, and correct: [P, K].
    """
    right, wrong = lengths[correct], lengths[~correct]
    return float(right.mean()) if right.size else None, float(wrong.mean()) if wrong.size else None


def accuracy_within(lengths: np.ndarray, correct: np.ndarray, budgets: Sequence[int]) -> list[float]:
    """For each budget the fraction of completions that are right and have at most so many tokens: what a model gets
    right that is cut there. lengths and correct: [P, K]."""
    return [float((correct & (lengths <= budget)).mean()) for budget in budgets]


def budget_area(lengths: np.ndarray, correct: np.ndarray, longest: int) -> float:
    """The area under accuracy against token budget, from 0 to `longest` tokens, as a fraction of the whole (the area
    of OptimalThinkingBench): 1 means everything right with no tokens. lengths and correct: [P, K].

    A right completion of L tokens counts from the budget L on, so it adds 1 - L / longest.
    """
    return float((correct * np.maximum(0.0, 1.0 - lengths / longest)).mean())


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the mean of correct [P, K], for problems drawn at random.

    One sample a problem: Wilson's interval. More: the samples of a problem are not independent, so the interval is
    taken over the problems' means (normal approximation), cut to [0, 1].
    """
    problems, samples = correct.shape
    mean = float(correct.mean())
    if samples == 1 or problems == 1:
        n = correct.size
        centre = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n))
        # At 0 and 1 the bound is exactly the mean; rounding must not leave it outside.
        return min(max(0.0, centre - half), mean), max(min(1.0, centre + half), mean)
    _, low, high = mean_interval(correct.mean(axis=1))
    return max(0.0, low), min(1.0, high)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): the mean of values [N] and its 95 % interval, by the normal approximation; of one value, all."""
    mean = float(values.mean())
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return mean, mean - half, mean + half
