"""What an evaluation, a run and a study find, as dataclasses; each is a result.json, written and read back here.

The JSON keeps its keys from version to version. A file of another shape is refused with the name of the field.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_record
from ..metrics import Answers, Paired, Spread
from ..records import IN_MEMORY, INLINE, OMIT_NONE, REMAKE, Amount, Count, Figure, Fraction, from_json


@dataclass(frozen=True)
class Evaluation:
    """One model on one test, or the average over several tests, which has no interval and no seconds.

    accuracy, its 95 % interval and truncated (cut off at the limit of tokens) are fractions; mean_tokens and median_tokens
    are of a completion; samples is the number of completions of each problem; seconds and tokens_per_second count what the
    call that made it sampled. answers: what it sums up, which a comparison pairs; the rollouts hold it, result.json not.
    """

    accuracy: Fraction
    accuracy_low: Fraction | None = field(default=None, kw_only=True, metadata=OMIT_NONE)
    accuracy_high: Fraction | None = field(default=None, kw_only=True, metadata=OMIT_NONE)
    mean_tokens: Amount
    median_tokens: Amount
    truncated: Fraction
    problems: Count
    samples: Count
    seconds: Amount | None = field(default=None, kw_only=True, metadata=OMIT_NONE)
    tokens_per_second: Amount
    answers: Answers | None = field(default=None, kw_only=True, repr=False, compare=False, metadata=IN_MEMORY)


@dataclass(frozen=True)
class Outcome:
    """A pruned model against its base. length_cut is a fraction of the base's mean tokens, accuracy_gain a difference of
    fractions; aes is None where the base got nothing right, since the score is relative to it. paired: the same with
    intervals, tokens in place of their fraction; None where the answers are not known, as in files of earlier versions."""

    base: Evaluation
    pruned: Evaluation
    length_cut: Figure
    accuracy_gain: Figure
    aes: Figure | None = None
    paired: Paired | None = field(default=None, metadata=OMIT_NONE)

    def __str__(self) -> str:
        before, after, score = self.base, self.pruned, self.score
        return (
            f"accuracy {100 * before.accuracy:.1f} to {100 * after.accuracy:.1f} %, {self.gain.scaled(100):+.1f} points; "
            f"mean tokens {before.mean_tokens:.1f} to {after.mean_tokens:.1f}, {self.cut.scaled(-100):+.1f} %; "
            f"AES {'none' if score is None else format(score, '.2f')}"
        )

    @property
    def gain(self) -> Spread:
        """What accuracy gained, as a fraction, with its interval where that is known."""
        return self.paired.accuracy if self.paired else Spread(self.accuracy_gain)

    @property
    def cut(self) -> Spread:
        """By what part of the base's mean tokens completions got shorter; the interval takes that mean as given."""
        if self.paired is None or self.base.mean_tokens == 0:
            return Spread(self.length_cut)
        return self.paired.tokens.scaled(-1 / self.base.mean_tokens)

    @property
    def score(self) -> Spread | None:
        """AES with its interval where that is known."""
        if self.paired and self.paired.aes:
            return self.paired.aes
        return None if self.aes is None else Spread(self.aes)


@dataclass(frozen=True)
class Comparison:
    """The outcome of each test, and of their unweighted average."""

    average: Outcome = field(metadata=INLINE)
    tests: dict[str, Outcome]


@dataclass(frozen=True)
class RunResult:
    """result.json of a run: seconds are of all calls that worked on it, checkpoint is the pruned model's folder."""

    comparison: Comparison = field(metadata=INLINE)
    seconds: Amount
    checkpoint: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """A row of a study on one test, or on the average over tests. StudyResult.intervals says what the intervals are over."""

    accuracy: Spread
    mean_tokens: Spread
    length_cut: Spread
    accuracy_gain: Spread
    aes: Spread | None = None


@dataclass(frozen=True)
class InferenceTime:
    """Seconds for a fixed batch of prompts, and their ratio to the base's: medians over turns."""

    seconds: Amount
    ratio: Amount


@dataclass(frozen=True)
class Measures:
    """Measures beside AES, each the mean over tests and then over seeds, with its interval (metrics.py has the definitions).

    tokens_right and tokens_wrong: mean length of right and of wrong completions, None where a seed has none.
    accuracy_within: for each of the budgets, in tokens, the accuracy of what is cut there; budget_area is the area under
    that curve, up to the last budget, which is the evaluation's limit.
    """

    ockscore: Spread
    tokens_right: Spread | None
    tokens_wrong: Spread | None
    budget_area: Spread
    budgets: list[Count]
    accuracy_within: list[Fraction]


@dataclass(frozen=True)
class Cost:
    """What a method cost besides evaluating it: completions sampled to train on, tokens trained on, and the seconds of
    both at the speeds that the run itself measured, whatever was shared with other runs. Means over seeds."""

    samples: Spread
    trained_tokens: Spread
    seconds: Spread | None


@dataclass(frozen=True)
class StudyRow:
    """One variant of a study; value is its place on a plot's axis, runs its folders below the study's, one a seed.

    The first row is the base's: it has no runs. inference, measures and cost are those of `study compare`.
    """

    label: str
    value: float | str | None
    runs: list[str]
    average: Figures
    tests: dict[str, Figures]
    inference: InferenceTime | None = None
    measures: Measures | None = field(default=None, metadata=OMIT_NONE)
    cost: Cost | None = field(default=None, metadata=OMIT_NONE)


@dataclass(frozen=True)
class StudyResult:
    """result.json of a study whose rows are runs.

    intervals: what those of its figures are over, "seeds" where there are several, "problems" where there is one. None in
    files of earlier versions, where low and high are the least and the most of the seeds.
    """

    study: str
    tests: list[str]
    seeds: Count
    rows: list[StudyRow]
    settings: dict[str, Any]
    intervals: str | None = field(default=None, metadata=OMIT_NONE)

    @property
    def base(self) -> StudyRow:
        return self.rows[0]

    @property
    def variants(self) -> list[StudyRow]:
        """The rows that are runs."""
        return [row for row in self.rows if row.runs]


@dataclass(frozen=True)
class Interval:
    """Accuracy with its 95 % interval, and mean tokens, of one length interval of every problem's samples."""

    interval: Count
    accuracy: Fraction
    accuracy_low: Fraction
    accuracy_high: Fraction
    mean_tokens: Amount


@dataclass(frozen=True)
class DisharmonyRow:
    """All problems, or those of one difficulty. gap: accuracy of the longest interval less that of the shortest, with
    its 95 % interval."""

    label: str
    problems: Count
    intervals: list[Interval]
    gap: Spread


@dataclass(frozen=True)
class DisharmonyResult:
    """result.json of the study of accuracy by length; samples is the number of completions of each problem."""

    study: str
    problems: Count
    samples: Count
    intervals: Count
    rows: list[DisharmonyRow]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DialRow:
    """A run's adapter at one scale against the same tests at scale 0."""

    scale: Amount
    comparison: Comparison = field(metadata=INLINE)


@dataclass(frozen=True)
class DialResult:
    """RUN/dial/result.json: the scales in rising order, 0 first."""

    rows: list[DialRow]
    settings: dict[str, Any] = field(default_factory=dict)


Result = RunResult | StudyResult | DisharmonyResult | Evaluation


def read_evaluation(path: Path) -> Evaluation:
    """The result.json of one evaluation."""
    return from_json(Evaluation, read_record(path), str(path))


def read_run_result(path: Path) -> RunResult:
    """The result.json of a run."""
    return from_json(RunResult, read_record(path), str(path))


def read_dial(path: Path) -> DialResult:
    """The result.json of a run's dial."""
    return from_json(DialResult, read_record(path), str(path))


def read_result(folder: Path) -> Result:
    """The checked result.json of a run, a study or one evaluation. Raises UserError where the folder is none of them."""
    path = folder / "result.json"
    if not path.exists():
        raise UserError(
            f"{folder}: holds no result.json; `o1core prune --out {folder}` or `o1core study ... --out {folder}` makes it"
        )
    found = read_record(path)
    study = found.get("study")
    if study is None and "accuracy" in found and "base" not in found:
        return read_evaluation(path)
    if study is None and "base" not in found:
        raise UserError(
            f"{folder}: is not a run or a study; `o1core prune --out RUN` or `o1core study ... --out RUN` makes one"
        )
    if study is None:
        return read_run_result(path)
    if study == "disharmony":
        return checked_disharmony(from_json(DisharmonyResult, found, str(path)), path)
    return checked_study(from_json(StudyResult, found, str(path)), path)


def checked_study(result: StudyResult, path: Path) -> StudyResult:
    """The result, in which every row has every test, and every curve a point for each of the same budgets."""
    if not result.tests:
        raise UserError(f"{path}: tests: is empty; {REMAKE}")
    for row in result.rows:
        if missing := [test for test in result.tests if test not in row.tests]:
            raise UserError(f"{path}: rows: {row.label} lacks the test {missing[0]}; {REMAKE}")
    curves = [(row.label, row.measures) for row in result.rows if row.measures]
    for label, measures in curves:
        if measures.budgets != curves[0][1].budgets or len(measures.budgets) != len(measures.accuracy_within):
            raise UserError(f"{path}: rows: {label}: measures: budgets and accuracies do not match; {REMAKE}")
    return result


def checked_disharmony(result: DisharmonyResult, path: Path) -> DisharmonyResult:
    """The result, in which every row has every interval."""
    for row in result.rows:
        if len(row.intervals) != result.intervals:
            raise UserError(
                f"{path}: rows: {row.label} has {len(row.intervals)} intervals, not {result.intervals}; {REMAKE}"
            )
    return result
