"""What the sample browser of a page holds: some problems of a test, and completions of each before and after.

It is bounded: a page must open on a phone. Which problems: in turn one with a long cut, one that became right, one that
became wrong, and one from anywhere, until the bounds are met. The page says what was left out.
"""

from dataclasses import dataclass

from ...model import Tokenizer
from ...problems import Problem
from ...rollout import Group, Sample
from ...text import clean
from .passages import repeats, share

MOST_PROBLEMS, MOST_COMPLETIONS = 60, 6  # of a test; of a problem and side
MOST_CHARACTERS = 12_000  # of a completion
PAGE_CHARACTERS = 8_000_000  # of all completions on a page
MEASURED_PROBLEMS = 100  # for how much of the text repeats itself


@dataclass(frozen=True)
class Pair:
    """A problem with its completions before and after."""

    problem: Problem
    before: Group
    after: Group


def pair_up(problems: list[Problem], before: list[Group], after: list[Group]) -> list[Pair]:
    """The problems that both sides have completions of, in the order of `problems`."""
    first, second = ({g.problem: g for g in groups} for groups in (before, after))
    return [Pair(p, first[p.id], second[p.id]) for p in problems if p.id in first and p.id in second]


def browser_set(label: str, pairs: list[Pair], tokenizer: Tokenizer, budget: int) -> dict:
    """A choice of the browser, ready for JSON: {"label", "total", "samples", "problems": [...]}, with at most MOST_PROBLEMS
    problems and about `budget` characters of completions; one problem at least."""
    shown, used = [], 0
    for pair in choose(pairs)[:MOST_PROBLEMS]:
        entry = describe(pair, tokenizer)
        used += sum(len(text) for side in ("before", "after") for c in entry[side] for text, _ in c["parts"])
        if shown and used > budget:
            break
        shown.append(entry)
    shown.sort(key=lambda entry: -entry["cut"])
    samples = max(len(group.samples) for pair in pairs for group in (pair.before, pair.after))
    return {"label": label, "total": len(pairs), "samples": samples, "problems": shown}


def choose(pairs: list[Pair]) -> list[Pair]:
    """All pairs, the most telling first."""
    count = len(pairs)
    by_cut = sorted(range(count), key=lambda i: -cut(pairs[i]))
    gains = [right(pairs[i].after) - right(pairs[i].before) for i in range(count)]
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


def right(group: Group) -> float:
    """The fraction of the completions that are right."""
    return sum(s.correct for s in group.samples) / len(group.samples)


def cut(pair: Pair) -> float:
    """By how many tokens the problem's completions became shorter, on average."""
    return mean_length(pair.before) - mean_length(pair.after)


def describe(pair: Pair, tokenizer: Tokenizer) -> dict:
    problem = pair.problem
    entry = {
        "id": tidy(problem.id),
        "question": tidy(problem.question),
        "answer": tidy(problem.answer),
        "level": tidy(problem.level),
        "subject": tidy(problem.subject),
        "cut": round(cut(pair), 1),
    }
    for side, group in (("before", pair.before), ("after", pair.after)):
        ordered = sorted(group.samples, key=lambda s: s.length)
        last = len(ordered) - 1
        count = min(MOST_COMPLETIONS, len(ordered))
        chosen = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
        entry[side] = [completion(ordered[i], tokenizer) for i in chosen]
        entry[f"{side}_all"] = {
            "count": len(ordered),
            "right": sum(s.correct for s in ordered),
            "mean": round(mean_length(group), 1),
        }
    return entry


def completion(sample: Sample, tokenizer: Tokenizer) -> dict:
    """A completion as text in parts, each with 1 where it repeats itself; left_out: characters over MOST_CHARACTERS."""
    text = text_of(sample, tokenizer)
    parts = repeats(text[:MOST_CHARACTERS])
    return {
        "tokens": sample.length,
        "right": bool(sample.correct),
        "answer": tidy(sample.answer),
        "ran_out": sample.finish_reason == "length",
        "repeated": round(share(parts), 3),
        "parts": [[piece, int(again)] for piece, again in parts],
        "left_out": max(0, len(text) - MOST_CHARACTERS),
    }


def text_of(sample: Sample, tokenizer: Tokenizer) -> str:
    return tidy(tokenizer.decode(sample.ids.tolist()).strip())


def tidy(text: str | None) -> str | None:
    """Without control characters, which could turn the direction of a page's text or hide in it."""
    return None if text is None else clean(text.expandtabs(4).replace("\r\n", "\n"))


def repeated_share(pairs: list[Pair], tokenizer: Tokenizer) -> tuple[float, float]:
    """The mean fraction of a completion that repeats itself, before and after, over the first MEASURED_PROBLEMS."""
    found = []
    for groups in ([p.before for p in pairs], [p.after for p in pairs]):
        shares = [share(repeats(text_of(s, tokenizer))) for g in groups[:MEASURED_PROBLEMS] for s in g.samples]
        found.append(sum(shares) / len(shares))
    return found[0], found[1]
