"""Which problems are selected: by level and by subject."""

import re
from collections import Counter
from collections.abc import Iterable

from ..errors import UserError
from ..types import Problem


def parse_levels(text: str) -> list[str]:
    """The levels of "3,4,5", "3-5" or "1,3-5", in their order. Raises UserError where the text names none."""
    levels: list[str] = []
    for part in _parts(text, "levels"):
        ends = re.fullmatch(r"(\d{1,3})\s*-\s*(\d{1,3})", part)
        if ends and int(ends[1]) > int(ends[2]):
            raise UserError(f'levels: "{part}" runs backwards; write {ends[2]}-{ends[1]}')
        levels += map(str, range(int(ends[1]), int(ends[2]) + 1)) if ends else [part.removeprefix("Level ")]
    return levels


def parse_subjects(text: str) -> list[str]:
    """The subjects of "Algebra, Number Theory". Raises UserError where the text names none."""
    return _parts(text, "subjects")


def _parts(text: str, what: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f'{what}: "{text}" has an empty entry; separate the {what} with single commas')
    return parts


def select(
    problems: list[Problem], levels: Iterable[str] | None = None, subjects: Iterable[str] | None = None
) -> list[Problem]:
    """The problems of these levels and of these subjects, in their order. Case does not count; None selects all.

    Raises UserError, listing the values there are, where no problem has one of the values or no problem is left.
    """
    kept = problems
    for name, wanted in (("level", levels), ("subject", subjects)):
        if wanted is None:
            continue
        asked = {value.casefold(): value for value in wanted}
        present = Counter(value for problem in problems if (value := getattr(problem, name)) is not None)
        known = {value.casefold() for value in present}
        if missing := [value for folded, value in asked.items() if folded not in known]:
            raise UserError(f'no problem has the {name} "{missing[0]}"; there are: {_counts(present)}')
        kept = [problem for problem in kept if (getattr(problem, name) or "").casefold() in asked]
    if problems and not kept:
        pairs = Counter(f"{problem.subject}, level {problem.level}" for problem in problems)
        raise UserError(f"no problem has one of these levels and one of these subjects; there are: {_counts(pairs)}")
    return kept


def _counts(values: Counter[str]) -> str:
    """ "3 (10), 4 (12)", of at most 40 values."""
    shown = ", ".join(f"{value} ({count})" for value, count in sorted(values.items())[:40])
    return (shown or "none") + (f" and {len(values) - 40} more" if len(values) > 40 else "")
