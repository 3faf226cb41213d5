"""What a file of completions comes to: graded, measured, and compared with another file over the problems of both.

Everything here is a definition of metrics.py, with the intervals that an evaluation of our own has. A file may hold several
models, as MathArena's do: each is scored by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import UserError
from ..grading import THINK, Attempt, Grader, ThoughtTags, leaves_thought_open, quick_equal
from ..metrics import (
    COEFFICIENTS,
    Answers,
    Paired,
    Spread,
    accuracy_interval,
    accuracy_within,
    budget_area,
    lengths_by_verdict,
    majority_at,
    mean_interval,
    ockscore,
    paired,
    pass_at,
)
from ..problems.golds import gold_of
from ..records import IN_MEMORY
from ..types import Problem
from .rows import Generation, read_generations

POINTS = 8  # budgets, where none are asked for
SAID = 5  # ids that an error names


@dataclass(frozen=True)
class Judge:
    """How completions are judged and counted.

    golds: id or question -> gold answer, of a problem file. as_graded: the file's own verdicts stand. samples: of each problem
    the first so many (None: all). count: text -> tokens (None: the file's own counts). longest: the last token budget (None:
    the longest completion of all files).
    """

    golds: dict[str, str] = field(default_factory=dict)
    tags: ThoughtTags = THINK
    truncated: Literal["wrong", "keep"] = "wrong"
    function: str | None = None
    as_graded: bool = False
    samples: int | None = None
    count: Callable[[str], int] | None = None


@dataclass(frozen=True)
class Against:
    """After less base, paired over `problems` problems that both have; left_out: problems that one of them lacks. base_tokens:
    the base's mean over those of both.

    aes: "alpha/beta/gamma": the score by these coefficients, None where the base got nothing right or tokens are not known.
    """

    base: str
    problems: int
    left_out: int
    accuracy: Spread
    tokens: Spread | None
    base_tokens: float | None
    aes: dict[str, Spread | None]


@dataclass(frozen=True)
class Score:
    """One model of one file. accuracy is avg@K with its interval; pass_at and majority_at by k. Tokens are None where neither
    the file nor a tokenizer counts them. disagree: completions whose verdict in the file is another (None: it has none)."""

    name: str
    problems: int
    samples: int
    accuracy: Spread
    pass_at: dict[str, float]
    majority_at: dict[str, float]
    mean_tokens: float | None
    median_tokens: float | None
    tokens_right: float | None
    tokens_wrong: float | None
    truncated: float | None
    ockscore: float | None
    budgets: list[int]
    accuracy_within: list[float]
    budget_area: float | None
    disagree: int | None
    against: Against | None
    answers: Answers = field(repr=False, compare=False, metadata=IN_MEMORY)
    questions: list[str | None] = field(repr=False, compare=False, metadata=IN_MEMORY)
    golds: list[tuple[str, ...]] = field(repr=False, compare=False, metadata=IN_MEMORY)
    counted: bool = field(default=True, metadata=IN_MEMORY)


def score_file(path: Path, judge: Judge) -> list[Score]:
    """The scores of a file, one a model. Raises UserError where problems have different numbers of completions, or a completion
    has neither a gold answer nor a verdict."""
    found = read_generations(path)
    models = list(dict.fromkeys(g.model for g in found))
    scores = []
    for model in models:
        name = path.stem if len(models) == 1 else model or path.stem
        scores.append(score([g for g in found if g.model == model], name, judge, path))
    return scores


def score(found: Sequence[Generation], name: str, judge: Judge, path: Path) -> Score:
    groups = grouped(found, judge.samples, path)
    rows = [g for group in groups.values() for g in group]
    count = len(next(iter(groups.values())))
    correct, votes = verdicts(rows, judge, path)
    shape = (len(groups), count)
    right = np.array(correct).reshape(shape)
    tokens = [judge.count(g.text) if judge.count else g.tokens for g in rows]
    counted = all(t is not None for t in tokens)
    lengths = np.array([t or 0 for t in tokens]).reshape(shape)
    known = [g.cut_off for g in rows if g.cut_off is not None]
    stated = [(g.correct, c) for g, c in zip(rows, correct) if g.correct is not None]
    mean = float(lengths.mean())
    ks = sorted({*(2**i for i in range(count.bit_length()) if 2**i <= count), count})
    by_verdict = lengths_by_verdict(lengths, right) if counted else (None, None)
    return Score(
        name=name,
        problems=shape[0],
        samples=count,
        accuracy=Spread(float(right.mean()), *accuracy_interval(right)),
        pass_at={str(k): pass_at(right, k) for k in ks},
        majority_at={str(k): majority_at(np.array(votes).reshape(shape), k) for k in ks},
        mean_tokens=mean if counted else None,
        median_tokens=float(np.median(lengths)) if counted else None,
        tokens_right=by_verdict[0],
        tokens_wrong=by_verdict[1],
        truncated=sum(known) / len(known) if len(known) == len(rows) else None,
        ockscore=ockscore(float(right.mean()), mean) if counted and mean > 0 else None,
        budgets=[],
        accuracy_within=[],
        budget_area=None,
        disagree=sum(a != b for a, b in stated) if stated else None,
        against=None,
        answers=Answers(list(groups), lengths, right),
        questions=[group[0].question for group in groups.values()],
        golds=[golds_of(group[0], judge) for group in groups.values()],
        counted=counted,
    )


def grouped(found: Sequence[Generation], samples: int | None, path: Path) -> dict[str, list[Generation]]:
    """The completions of each problem, as many of one as of the other. Raises UserError also where one id has two questions:
    of two problem sets in one file, or of two prompts."""
    groups: dict[str, list[Generation]] = {}
    for g in found:
        first = groups.setdefault(g.problem, [g])[0]
        if first is not g:
            groups[g.problem].append(g)
        if g.question is not None and first.question is not None and g.question.split() != first.question.split():
            raise UserError(
                f"{path}: problem {g.problem} has two questions, {brief(first.question)} and {brief(g.question)}; give each "
                "an id of its own, or split the file"
            )
    counts = {name: len(group) for name, group in groups.items()}
    least = min(counts, key=counts.__getitem__)
    most = max(counts, key=counts.__getitem__)
    if samples is None and counts[least] != counts[most]:
        raise UserError(
            f"{path}: problem {least} has {counts[least]} completions and problem {most} has {counts[most]}; "
            f"--samples {counts[least]} takes the first {counts[least]} of each"
        )
    if samples is not None and samples > counts[least]:
        raise UserError(
            f"{path}: problem {least} has {counts[least]} completions; use --samples {counts[least]} or fewer"
        )
    return {name: group[:samples] for name, group in groups.items()}


def brief(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def verdicts(rows: Sequence[Generation], judge: Judge, path: Path) -> tuple[list[bool], list[int]]:
    """Of each completion whether it is right, and its vote as majority_at reads it."""
    attempts: list[Attempt] = []
    places: list[int] = []  # the row of each attempt
    correct = [False] * len(rows)
    answers: list[str | None] = [None] * len(rows)
    with Grader(tags=judge.tags, truncated=judge.truncated, function=judge.function) as grader:
        for at, g in enumerate(rows):
            golds = golds_of(g, judge)
            if not golds and g.correct is None and judge.function is None:
                raise UserError(
                    f"{path}: problem {g.problem} has neither a gold answer nor a verdict; name the problem file with --data"
                )
            in_thought = leaves_thought_open(g.prompt, judge.tags)
            for gold in golds or ("",):  # "": its answer is wanted, for the vote
                problem = Problem(g.problem, g.question or "", gold)
                attempts.append(Attempt(g.text, gold, None, problem, in_thought, bool(g.cut_off)))
                places.append(at)
        for at, verdict in zip(places, grader.grade_many(attempts)):
            correct[at] |= verdict.correct
            answers[at] = verdict.answer
    for at, g in enumerate(rows):
        unjudged = judge.function is None and not golds_of(g, judge)
        if g.correct is not None and (judge.as_graded or unjudged):
            correct[at] = g.correct
    votes = [0] * len(rows)
    for places in by_problem(rows):
        wrong: list[str] = []
        for at in places:
            votes[at] = 0 if correct[at] else vote(answers[at], wrong)
    return correct, votes


def by_problem(rows: Sequence[Generation]) -> list[list[int]]:
    """The places of each problem's completions."""
    places: dict[str, list[int]] = {}
    for at, g in enumerate(rows):
        places.setdefault(g.problem, []).append(at)
    return list(places.values())


def vote(answer: str | None, wrong: list[str]) -> int:
    """The number of a wrong answer: that of an equal one before it, as text or as a plain number, or a new one."""
    if answer is None:
        return -1
    for number, other in enumerate(wrong, 1):
        if answer == other or quick_equal(answer, other):
            return number
    wrong.append(answer)
    return len(wrong)


def golds_of(g: Generation, judge: Judge) -> tuple[str, ...]:
    """The bare gold answers: the row's own, which may be whole solutions, or else the problem file's, by question and then by
    id, for an id may be a number that counts another file."""
    if own := tuple(gold for text in g.golds if (gold := gold_of(text))):
        return own
    keys = (key for key in (g.question, g.problem) if key in judge.golds)
    return tuple(judge.golds[key] for key in keys if key is not None)[:1]


def compared(
    scores: Sequence[Score],
    to_first: bool,
    coefficients: Sequence[tuple[float, float, float]] = (COEFFICIENTS,),
    budgets: Sequence[int] = (),
) -> list[Score]:
    """The scores with token budgets that all share, and with to_first, each after the first with its difference to it. budgets:
    the last one bounds the area; default 8, up to the longest completion of all."""
    if not budgets:
        longest = max((int(s.answers.lengths.max()) for s in scores if s.counted), default=0)
        budgets = sorted({-(-longest * i // POINTS) for i in range(1, POINTS + 1)} - {0})
    found = []
    for s in scores:
        changed: dict[str, Any] = {}
        if s.counted and budgets:
            lengths, correct = s.answers.lengths, s.answers.correct
            changed |= {"budgets": list(budgets), "accuracy_within": accuracy_within(lengths, correct, budgets)}
            changed |= {"budget_area": budget_area(lengths, correct, budgets[-1])}
        if to_first and s is not scores[0]:
            changed |= {"against": against(scores[0], s, coefficients)}
        found.append(replace(s, **changed))
    return found


def against(base: Score, after: Score, coefficients: Sequence[tuple[float, float, float]]) -> Against:
    """The paired difference over the problems of both. Raises UserError where nothing is common."""
    places = places_of_both(base, after)
    common = [key for key in places[0] if key in places[1]]
    sides = [
        Answers(common, s.answers.lengths[rows], s.answers.correct[rows])
        for s, place in zip((base, after), places)
        for rows in [[place[key] for key in common]]
    ]
    left_out = len(places[0].keys() ^ places[1].keys())
    if not (base.counted and after.counted):
        one = 1 / min(side.correct.shape[1] for side in sides)
        gain = sides[1].correct.mean(axis=1) - sides[0].correct.mean(axis=1)
        return Against(base.name, len(common), left_out, mean_interval(gain, one).within(-1.0, 1.0), None, None, {})
    scored: dict[str, Paired] = {named(c): paired(sides[0], sides[1], coefficients=c) for c in coefficients}
    first = next(iter(scored.values()))
    aes = {name: one.aes for name, one in scored.items()}
    return Against(base.name, len(common), left_out, first.accuracy, first.tokens, float(sides[0].lengths.mean()), aes)


def places_of_both(base: Score, after: Score) -> list[dict[str, int]]:
    """id -> row on each side, or question -> row where ids have nothing in common or stand for other questions.

    Two models' prompts may spell one question differently, so where no question is common, ids are believed unless most
    of their gold answers differ too. Raises UserError where nothing is common.
    """
    ids = [{key: at for at, key in enumerate(s.answers.problems)} for s in (base, after)]
    questions = [{" ".join(q.split()): at for at, q in enumerate(s.questions) if q} for s in (base, after)]
    rows = [(at, ids[1][key]) for key, at in ids[0].items() if key in ids[1]]
    asked = [(p, q) for a, b in rows if (p := base.questions[a]) and (q := after.questions[b])]
    differ = any(p.split() != q.split() for p, q in asked)
    if questions[0].keys() & questions[1].keys() and (differ or not rows):
        return questions
    golds = [(one, other) for a, b in rows if (one := base.golds[a]) and (other := after.golds[b])]
    other_golds = sum(not any(x == y or quick_equal(x, y) for x in one for y in other) for one, other in golds)
    if rows and ((asked and not differ) or 2 * other_golds <= len(golds)):
        return ids
    said = [", ".join(map(str, list(s.answers.problems)[:SAID])) for s in (base, after)]
    raise UserError(
        f"{base.name} and {after.name} have no problem in common (ids {said[0]} and {said[1]}); compare files of one "
        "problem set, with the same ids or questions"
    )


def named(coefficients: tuple[float, float, float]) -> str:
    """alpha/beta/gamma, by which an AES is called."""
    return "/".join(f"{c:g}" for c in coefficients)
