"""The numbers that sum up an evaluation, each with the interval it deserves.

Every interval here is a 95 % one for problems drawn at random, and none has zero width: where the data cannot say how
far a figure may be off, there is no interval at all. What is drawn at random decides the method:

    a share of right answers              Wilson, on the number of problems            accuracy_interval
    a difference over the same problems   Student's t on the problems' differences     mean_interval, paired
    AES of the same problems              bootstrap over the problems                  paired
    several training seeds                Student's t on the seeds                     over_seeds

Left out on purpose: pooling the problems of several seeds. A run's seed moves all of its problems together, so that a
pooled interval is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import numpy as np

from .errors import UserError
from .records import OMIT_NONE, Figure

Z95 = 1.959963984540054  # two-sided 95 % of a normal
RESAMPLES = 10_000  # of the bootstrap: its percentiles are then good to a hundredth of AES
COEFFICIENTS = (1.0, 3.0, 5.0)  # alpha, beta and gamma of AES in the O1-Pruner paper; other papers take others
MOST_SUBSETS = 2000  # over which majority_at averages
RESAMPLES_AT_ONCE = 500  # so that 10,000 problems take 20 MB an array


@dataclass(frozen=True)
class Spread:
    """A figure and the ends of its 95 % interval, which are None where nothing can be said about them."""

    mean: Figure
    low: Figure | None = field(default=None, metadata=OMIT_NONE)
    high: Figure | None = field(default=None, metadata=OMIT_NONE)

    def __format__(self, form: str) -> str:
        """As "+2.3 (+1.0 to +3.6)"; form: of each number, such as "+.1f"."""
        if self.low is None or self.high is None:
            return format(self.mean, form)
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"

    def within(self, least: float, most: float) -> Spread:
        """With its ends no farther out than a figure of this kind can be."""
        if self.low is None or self.high is None:
            return self
        return Spread(self.mean, max(least, self.low), min(most, self.high))

    def scaled(self, factor: float) -> Spread:
        """In another unit, or with the other sign."""
        if self.low is None or self.high is None:
            return Spread(factor * self.mean)
        return Spread(factor * self.mean, *sorted((factor * self.low, factor * self.high)))


@dataclass(frozen=True)
class Answers:
    """What a model answered on one test: K completions of each of P problems.

    problems: ids [P]. lengths: tokens [P, K], end-of-text included. correct: bool [P, K].
    """

    problems: Sequence[str]
    lengths: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class Paired:
    """After less before over the same problems: accuracy as a fraction, tokens of a completion, and the score AES, which
    is None where the base got nothing right."""

    accuracy: Spread
    tokens: Spread
    aes: Spread | None = None


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
    """For each budget the fraction of completions that are right within so many tokens: what a model gets right that is cut
    there. lengths and correct: [P, K]; a length is that of the completion, or of the part of it that holds the answer."""
    return [float((correct & (lengths <= budget)).mean()) for budget in budgets]


def budget_area(lengths: np.ndarray, correct: np.ndarray, longest: int) -> float:
    """The area under accuracy against token budget, from 0 to `longest` tokens, as a fraction of the whole (the area
    of OptimalThinkingBench): 1 means everything right with no tokens. lengths and correct: [P, K].

    A right completion of L tokens counts from the budget L on, so it adds 1 - L / longest.
    """
    return float((correct * np.maximum(0.0, 1.0 - lengths / longest)).mean())


def pass_at(correct: np.ndarray, k: int) -> float:
    """The chance that at least one of k completions of a problem is right, over problems: correct bool [P, K], k <= K.

    Unbiased: of K completions with c right ones, 1 - C(K - c, k) / C(K, k) (arXiv 2107.03374, equation 1).
    """
    count = correct.shape[1]
    missed = [math.comb(count - int(right), k) / math.comb(count, k) for right in correct.sum(axis=1)]
    return 1.0 - sum(missed) / len(missed)


def majority_at(votes: np.ndarray, k: int) -> float:
    """The chance that the most frequent answer of k completions is right, over problems.

    votes: int [P, K], k <= K: 0 is the right answer, 1 and on are different wrong ones, -1 is no answer and no vote. A tie is
    broken at random, so a right answer that ties with one other counts half. The mean over all subsets of k completions,
    or over MOST_SUBSETS of them drawn once where there are more.
    """
    chosen = subsets(votes.shape[1], k)  # [S, K], 0 or 1
    chances = []
    for row in votes:
        ballots = row[:, None] == np.arange(max(1, row.max() + 1))  # [K, answers]
        counts = chosen @ ballots.astype(float)  # [S, answers]
        most = counts.max(axis=1, keepdims=True)
        winners = (counts == most) & (most > 0)
        chances.append(float((winners[:, 0] / np.maximum(1, winners.sum(axis=1))).mean()))
    return sum(chances) / len(chances)


def subsets(count: int, k: int) -> np.ndarray:
    """Which of `count` are in each subset of k: float [S, count] of 0 and 1."""
    if math.comb(count, k) <= MOST_SUBSETS:
        held = np.array(list(combinations(range(count), k)))
    else:
        held = np.argsort(np.random.default_rng(0).random((MOST_SUBSETS, count)), axis=1)[:, :k]
    chosen = np.zeros((len(held), count))
    np.put_along_axis(chosen, held, 1.0, axis=1)
    return chosen


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the mean of correct [P, K], for problems drawn at random: Wilson's, on the number of answers
    that are independent.

    One sample a problem: those are the P problems. More: a problem's samples resemble each other, so the K samples count
    for as many independent answers as would make the problems' means spread as they do, P at least and P K at most
    (effective sample size, with Student's quantile in place of the normal's: Dean and Pagano, Survey Methodology 2015).
    So 2 problems of 4 wrong samples each are no proof that nothing is ever right.
    """
    problems, samples = correct.shape
    mean = float(correct.mean())
    if samples == 1:
        n, quantile = float(problems), Z95
    else:
        variance = float(correct.mean(axis=1).var())
        n = problems * min(samples, mean * (1 - mean) / variance) if variance > 0 else problems * samples
        n = problems if mean in (0.0, 1.0) else n  # nothing shows how alike a problem's samples are: entirely, then
        quantile = student(max(1, problems - 1))
    square = quantile**2
    centre = (mean + square / (2 * n)) / (1 + square / n)
    half = quantile / (1 + square / n) * math.sqrt(mean * (1 - mean) / n + square / (4 * n * n))
    # At 0 and 1 the bound is exactly the mean; rounding must not leave it outside.
    return min(max(0.0, centre - half), mean), max(min(1.0, centre + half), mean)


def mean_interval(values: np.ndarray, step: float = 0.0) -> Spread:
    """The mean of values [N], which were drawn independently, and its interval by Student's t; of one value there is none.

    step: the least by which two values can differ. Values that all agree still spread by as much as if one had come out
    a step higher and one a step lower: that nothing differs in 20 problems does not mean that nothing ever does. (For
    differences of single right or wrong answers it is nearly the interval of Bonett and Price, J. Educ. Behav. Stat. 2012.)
    """
    mean, count = float(values.mean()), len(values)
    squares = max(float(((values - mean) ** 2).sum()), 2 * step**2)
    if count < 2 or squares == 0:
        return Spread(mean)
    half = student(count - 1) * math.sqrt(squares / (count - 1) / count)
    return Spread(mean, mean - half, mean + half)


def over_seeds(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Spread:
    """The mean of one figure of several training seeds and its interval by Student's t on the seeds, cut to least..most,
    between which such a figure lies. Of one seed, and of seeds that all agree, there is no interval."""
    return mean_interval(np.asarray(values, float)).within(least, most)


def paired(
    before: Answers, after: Answers, seed: int = 0, coefficients: tuple[float, float, float] = COEFFICIENTS
) -> Paired:
    """After less before, problem by problem: what every comparison reports.

    Accuracy and tokens: mean_interval of the problems' differences. AES: the percentiles 2.5 and 97.5 of `RESAMPLES`
    resamples of the problems (Efron's bootstrap; the same seed draws the same ones). It has no interval where
    resamples do not differ, or where the base got nothing right in more than one of a hundred. With fewer than some twenty
    problems it is too narrow, as every bootstrap is. coefficients: alpha, beta and gamma of AES. Raises UserError where the
    problems are not the same.
    """
    return mean_paired([(before, after)], seed, coefficients)


def mean_paired(
    tests: Sequence[tuple[Answers, Answers]], seed: int = 0, coefficients: tuple[float, float, float] = COEFFICIENTS
) -> Paired:
    """`paired`, of the unweighted mean over several tests: (before, after) of each.

    Tests are independent, so the ends of their intervals combine by squares (MOVER: Zou and Donner, Stat. Med. 2008), and
    the bootstrap draws the problems of each by themselves; AES is the mean of the tests' scores, as in the paper.
    """
    accuracy, tokens = [], []
    for before, after in tests:
        if list(before.problems) != list(after.problems):
            raise UserError("the two evaluations are of different problems; compare those of the same ones")
        one = 1 / min(before.correct.shape[1], after.correct.shape[1])  # a completion's share of its problem
        gain = after.correct.mean(axis=1) - before.correct.mean(axis=1)
        accuracy.append(mean_interval(gain, one).within(-1.0, 1.0))
        tokens.append(mean_interval(after.lengths.mean(axis=1) - before.lengths.mean(axis=1), one))
    return Paired(mean_of(accuracy), mean_of(tokens), bootstrap_aes(tests, seed, coefficients))


def paired_over_seeds(seeds: Sequence[Sequence[tuple[Answers, Answers]]]) -> Paired:
    """`mean_paired` of a comparison that was repeated under several training seeds, each with its tests' (before, after):
    intervals over the seeds, or over the problems where there is one seed."""
    found = [mean_paired(tests) for tests in seeds]
    if len(found) == 1:
        return found[0]
    scores = [f.aes.mean for f in found if f.aes is not None]
    return Paired(
        over_seeds([f.accuracy.mean for f in found], -1.0, 1.0),
        over_seeds([f.tokens.mean for f in found]),
        over_seeds(scores) if len(scores) == len(found) else None,
    )


def mean_of(spreads: Sequence[Spread]) -> Spread:
    """The mean of independent figures."""
    mean = sum(s.mean for s in spreads) / len(spreads)
    arms = [(s.mean - s.low, s.high - s.mean) for s in spreads if s.low is not None and s.high is not None]
    if len(arms) < len(spreads):
        return Spread(mean)
    below, above = (math.hypot(*side) / len(spreads) for side in zip(*arms))
    return Spread(mean, mean - below, mean + above)


def bootstrap_aes(
    tests: Sequence[tuple[Answers, Answers]], seed: int, coefficients: tuple[float, float, float]
) -> Spread | None:
    """The mean of the tests' AES, with its bootstrap interval over problems; None where a base got nothing right, or
    a file says that it gave no tokens."""
    scores, drawn = [], np.zeros(RESAMPLES)
    for number, (before, after) in enumerate(tests):
        sides = [values.mean(axis=1) for a in (before, after) for values in (a.correct, a.lengths)]
        columns = np.stack(sides, axis=1).astype(float)  # [P, 4]: accuracy and tokens before, then after
        if 0 in columns[:, :2].sum(axis=0):
            return None
        alpha, beta, gamma = coefficients
        scores.append(aes(*map(float, columns.mean(axis=0)), alpha=alpha, beta=beta, gamma=gamma))
        drawn += aes_of(resampled(columns, np.random.default_rng([seed, number])), coefficients)
    mean, drawn = sum(scores) / len(scores), drawn / len(tests)
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < 0.99 * RESAMPLES or defined.min() == defined.max():
        return Spread(mean)
    low, high = (float(end) for end in np.percentile(defined, (2.5, 97.5)))
    return Spread(mean, min(low, mean), max(high, mean))


def resampled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of values [P, C] over P problems drawn with replacement: [RESAMPLES, C]."""
    count = len(values)
    drawn = (rng.integers(count, size=(RESAMPLES_AT_ONCE, count)) for _ in range(RESAMPLES // RESAMPLES_AT_ONCE))
    return np.concatenate([values[problems].mean(axis=1) for problems in drawn])


def aes_of(means: np.ndarray, coefficients: tuple[float, float, float]) -> np.ndarray:
    """AES of many means [N, 4] (accuracy and tokens before, then after); not finite where the base got nothing right."""
    alpha, beta, gamma = coefficients
    with np.errstate(divide="ignore", invalid="ignore"):
        better = (means[:, 2] - means[:, 0]) / means[:, 0]
        shorter = (means[:, 1] - means[:, 3]) / means[:, 1]
        return alpha * shorter + np.where(better >= 0, beta, gamma) * better


@cache
def student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t with whole degrees of freedom, by bisection.

    The probability is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4), so that scipy is not needed for it.
    """

    def inside(t: float) -> float:
        """The probability of |T| < t."""
        angle = math.atan(t / math.sqrt(freedom))
        odd = freedom % 2
        term = math.cos(angle) if odd else 1.0
        total = term if freedom > 1 else 0.0
        for k in range(2 + odd, freedom - 1, 2):
            term *= (k - 1) / k * math.cos(angle) ** 2
            total += term
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    low, high = 0.0, 13.0  # 12.706 is that of one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 0.95 else (low, middle)
    return (low + high) / 2
