"""Numbers that sum up an evaluation: accuracy with its interval, and the accuracy-efficiency score."""

import math

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
