"""What the sample browser of a page holds: some problems of a test, and completions of each before and after, with the
passages marked that they repeat: the re-checks that pruning is meant to take away.

It is bounded: a page must open on a phone. Which problems: in turn one with a long cut, one that became right, one that
became wrong, and one from anywhere, until the bounds are met. The page says what was left out.

A completion is cut into clauses, at line ends and at , . ; : ! ? before a space. A clause repeats where the same clause,
in normal form, occurs earlier in the same completion. The normal form forgets case, spaces around operators, LaTeX's
dollars and spacing, and the words a thought turns over with ("Wait, ", "then", "so"): "47+8=55" is found again in
"Then 47 + 8 = 55.". Clauses that say too little to be a re-check, such as "Yes" and "x=5", do not count.

Left out on purpose: paraphrases. Finding them takes a model, and a model can be wrong.
"""

import re
import unicodedata
from dataclasses import dataclass

from ...model import Tokenizer
from ...text import clean
from ...types import Group, Problem, Sample
from ..samples import short_to_long

MOST_PROBLEMS, MOST_COMPLETIONS = 60, 6  # of a test; of a problem and side
MOST_CHARACTERS = 12_000  # of a completion
PAGE_CHARACTERS = 8_000_000  # of all completions on a page
MEASURED_PROBLEMS = 100  # for how much of the text repeats itself
CUT = re.compile(r"(?:[,.;:!?]+(?=\s|$)|\n)\s*")
TURNING = "first then so wait hmm now next and but or again also finally yes no ok okay well thus hence therefore alternatively"
TURNS = frozenset(TURNING.split())
LATEX = (
    (r"\\(?:left|right|displaystyle|,|;|!|\(|\)|\[|\])|\$", ""),
    (r"\\(?:times|cdot)(?![a-z])|×|·", "*"),
    ("[−–]", "-"),
)
FEWEST_WORDS, FEWEST_CHARACTERS = 4, 5  # of a clause without an equation; of an equation


@dataclass(frozen=True)
class Pair:
    """A problem with its completions before and after; after is None where there is one side: a run at work, an evaluation."""

    problem: Problem
    before: Group
    after: Group | None

    @property
    def cut(self) -> float:
        """By how many tokens the problem's completions became shorter, on average."""
        return mean_length(self.before) - mean_length(self.after or self.before)

    @property
    def gain(self) -> float:
        """By what fraction of the completions more are right."""
        return fraction_right(self.after or self.before) - fraction_right(self.before)


@dataclass(frozen=True)
class CompletionEntry:
    """A completion as page.js reads it. parts: its text, each piece with 1 where it repeats an earlier one;
    left_out: characters over MOST_CHARACTERS."""

    tokens: int
    right: bool
    answer: str | None
    ran_out: bool
    repeated: float
    parts: list[tuple[str, int]]
    left_out: int


@dataclass(frozen=True)
class SideTotal:
    """All of a problem's completions on one side: how many, how many right, and their mean tokens."""

    count: int
    right: int
    mean: float


@dataclass(frozen=True)
class ProblemEntry:
    """A problem as page.js reads it."""

    id: str
    question: str
    answer: str
    level: str | None
    subject: str | None
    cut: float
    before: list[CompletionEntry]
    after: list[CompletionEntry]
    before_all: SideTotal
    after_all: SideTotal | None

    @property
    def characters(self) -> int:
        return sum(len(text) for c in (*self.before, *self.after) for text, _ in c.parts)


@dataclass(frozen=True)
class BrowserSet:
    """A choice of the browser. total: the problems that there are; samples: the most completions that one has."""

    label: str
    total: int
    samples: int
    problems: list[ProblemEntry]


def pair_up(problems: list[Problem], before: list[Group], after: list[Group]) -> list[Pair]:
    """The problems that both sides have completions of, in the order of `problems`."""
    first, second = ({g.problem: g for g in groups} for groups in (before, after))
    return [Pair(p, first[p.id], second[p.id]) for p in problems if p.id in first and p.id in second]


def browser_set(label: str, pairs: list[Pair], tokenizer: Tokenizer, budget: int) -> BrowserSet:
    """At most MOST_PROBLEMS problems, with about `budget` characters of completions; one problem at least."""
    entries: list[ProblemEntry] = []
    used = 0
    for pair in most_telling(pairs)[:MOST_PROBLEMS]:
        entry = describe(pair, tokenizer)
        used += entry.characters
        if entries and used > budget:
            break
        entries.append(entry)
    entries.sort(key=lambda entry: -entry.cut)
    samples = max(len(group.samples) for pair in pairs for group in (pair.before, pair.after) if group)
    return BrowserSet(clean(label), len(pairs), samples, entries)


def most_telling(pairs: list[Pair]) -> list[Pair]:
    """All pairs, the most telling first."""
    count = len(pairs)
    by_cut = sorted(range(count), key=lambda i: -pairs[i].cut)
    gains = [pair.gain for pair in pairs]
    better = sorted((i for i in range(count) if gains[i] > 0), key=lambda i: -gains[i])
    worse = sorted((i for i in range(count) if gains[i] < 0), key=lambda i: gains[i])
    step = max(1, count // MOST_PROBLEMS)
    anywhere = [i for start in range(step) for i in range(start, count, step)]
    queues = [iter(q) for q in (by_cut, better, worse, anywhere)]
    order: dict[int, None] = {}
    while len(order) < count:
        for queue in queues:
            if (i := next((i for i in queue if i not in order), None)) is not None:
                order[i] = None
    return [pairs[i] for i in order]


def mean_length(group: Group) -> float:
    return sum(s.length for s in group.samples) / len(group.samples)


def fraction_right(group: Group) -> float:
    return sum(s.correct for s in group.samples) / len(group.samples)


def describe(pair: Pair, tokenizer: Tokenizer) -> ProblemEntry:
    problem = pair.problem
    return ProblemEntry(
        id=tidy(problem.id),
        question=tidy(problem.question),
        answer=tidy(problem.answer),
        level=tidy(problem.level) if problem.level else None,
        subject=tidy(problem.subject) if problem.subject else None,
        cut=round(pair.cut, 1),
        before=[describe_completion(s, tokenizer) for s in short_to_long(pair.before, MOST_COMPLETIONS)],
        after=[describe_completion(s, tokenizer) for s in short_to_long(pair.after, MOST_COMPLETIONS)]
        if pair.after
        else [],
        before_all=total(pair.before),
        after_all=total(pair.after) if pair.after else None,
    )


def total(group: Group) -> SideTotal:
    return SideTotal(len(group.samples), sum(s.correct for s in group.samples), round(mean_length(group), 1))


def describe_completion(sample: Sample, tokenizer: Tokenizer) -> CompletionEntry:
    text = text_of(sample, tokenizer)
    parts = repeats(text[:MOST_CHARACTERS])
    return CompletionEntry(
        tokens=sample.length,
        right=bool(sample.correct),
        answer=None if sample.answer is None else tidy(sample.answer),
        ran_out=sample.finish_reason == "length",
        repeated=round(repeated_fraction(parts), 3),
        parts=[(piece, int(again)) for piece, again in parts],
        left_out=max(0, len(text) - MOST_CHARACTERS),
    )


def text_of(sample: Sample, tokenizer: Tokenizer) -> str:
    return tidy(tokenizer.decode(sample.ids.tolist()).strip())


def tidy(text: str) -> str:
    """Without control characters, which could turn the direction of a page's text or hide in it."""
    return clean(text.expandtabs(4).replace("\r\n", "\n"))


def repeated_share(pairs: list[Pair], tokenizer: Tokenizer) -> tuple[float, float]:
    """The mean fraction of a completion that repeats itself, before and after, over the first MEASURED_PROBLEMS."""

    def mean_share(groups: list[Group]) -> float:
        found = [repeated_fraction(repeats(text_of(s, tokenizer))) for g in groups for s in g.samples]
        return sum(found) / len(found)

    measured = pairs[:MEASURED_PROBLEMS]
    return mean_share([p.before for p in measured]), mean_share([p.after or p.before for p in measured])


def normal_form(clause: str) -> str:
    """What two clauses share when they say the same; empty where the clause says too little."""
    text = unicodedata.normalize("NFKC", clause).lower()
    for pattern, plain in LATEX:
        text = re.sub(pattern, plain, text)
    text = re.sub(r"\s*([=+*/<>^-])\s*", r"\1", text)
    words = re.findall(r"[^\s,;:!?\"'`]+", text)
    while words and words[0].strip(".*#") in TURNS:
        del words[0]
    text = " ".join(words).strip(".* ")
    equation = "=" in text and len(text) >= FEWEST_CHARACTERS
    return text if equation or len(words) >= FEWEST_WORDS else ""


def repeats(text: str) -> list[tuple[str, bool]]:
    """The text in parts, each with whether it repeats an earlier one; the parts joined are the text.

    Neighbouring repeats are one part, with what is between them.
    """
    seen: set[str] = set()
    parts: list[tuple[str, bool]] = []  # each with whether it repeats
    start = 0
    while start < len(text):
        found = CUT.search(text, start)
        end, after = found.span() if found else (len(text), len(text))
        form = normal_form(text[start:end])
        again = bool(form) and form in seen
        seen.add(form)
        if parts and parts[-1][1] == again:
            parts[-1] = (parts[-1][0] + text[start:after], again)
        else:
            parts.append((text[start:after], again))
        start = after
    return without_trailing_marks(parts)


def without_trailing_marks(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Move the punctuation and space at the end of a repeat to the part after it."""
    done: list[tuple[str, bool]] = []
    carry = ""
    for text, repeated in parts:
        text, carry = carry + text, ""
        if repeated:
            bare = text.rstrip(" \n\t,.;:!?")
            text, carry = bare, text[len(bare) :]
        if text:
            done.append((text, repeated))
    return [*done, (carry, False)] if carry else done


def repeated_fraction(parts: list[tuple[str, bool]]) -> float:
    """The fraction of the characters that repeat."""
    total = sum(len(text) for text, _ in parts)
    return sum(len(text) for text, repeated in parts if repeated) / total if total else 0.0
