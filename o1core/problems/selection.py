"""Which problems are selected: by level and by subject, and those that no test has too; and which lists are the same.

Left out on purpose: fuzzy duplicates. Two problems that differ in one number are two problems.
"""

import hashlib
import json
import re
import unicodedata
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


def find_overlap(train: Iterable[Problem], test: Iterable[Problem]) -> list[Problem]:
    """The problems of `test` whose question also occurs in `train`. White space, capitals, dollars, punctuation and the
    ways to write one formula in LaTeX do not count; every number, sign and operator does."""
    known = {_identity(problem) for problem in train}
    return [problem for problem in test if _identity(problem) in known]


def _identity(problem: Problem) -> str:
    # The question of a generated task may hold a board, where a full stop is a square: there every character counts.
    return _normal_form(problem.question) if problem.task is None else problem.question


# Signs that NFKC would flatten into plain digits ("x²" into "x2", "3½" into "31/2"), or would not turn into LaTeX.
_SIGNS = str.maketrans(
    {char: f"^{digit}" for digit, char in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
    | {char: f"_{digit}" for digit, char in enumerate("₀₁₂₃₄₅₆₇₈₉")}
    | {"½": r"\frac12", "⅓": r"\frac13", "⅔": r"\frac23", "¼": r"\frac14", "¾": r"\frac34"}
    | {"⁄": "/", "−": "-", "–": "-"}
    | {"×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "√": r"\sqrt "}
    | {"π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "…": r"\dots ", "’": "'", "‘": "'", "“": '"', "”": '"'}
)
_SAME = {
    **dict.fromkeys([r"\dfrac", r"\tfrac", r"\cfrac"], r"\frac"),
    **dict.fromkeys([r"\ldots", r"\cdots", "..."], r"\dots"),
    **{r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne", r"\%": "%", r"\#": "#", r"\&": "&", r"\lbrack": "["},
    **{r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\rbrack": "]"},
}
_NO_MEANING = {
    *("$", r"\$", r"\(", r"\)", r"\[", r"\]", r"\left", r"\right", r"\displaystyle", r"\limits", "~", '"', "`", "."),
    *(",", ";", "?", r"\,", r"\!", r"\;", r"\:", r"\ ", r"\quad", r"\qquad", "\\\n", r"\big", r"\bigl", r"\bigr"),
}
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|emph)\s*\{([^{}]*)\}")
_SHORT_GROUP = re.compile(r"(?<!\\)\{\s*(\w)\s*\}")  # \frac{1}{2} is \frac12, and \frac{12}{3} is another
# 1,234; but (1,234) is a pair. At most 1 + 9 groups: without a bound, quadratic in hostile text.
_GROUPED = re.compile(r"(?<![\d.,(\[{])[1-9]\d{0,2}(?:(?:,|\{,\}|,\\!)\d{3}){1,9}(?![\d,])")
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\.\.\.|\d*\.\d+|\d+|[^\W\d_]+|\S", re.DOTALL)


def _normal_form(text: str) -> str:
    """The words, numbers and signs that a question consists of. Numbers stay apart: "1 1/2" is not "11/2"."""
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).casefold()
    text = _GROUPED.sub(lambda match: re.sub(r"\D", "", match.group()), _TEXT.sub(r" \1 ", text))
    tokens = (_SAME.get(token, token) for token in _TOKEN.findall(_SHORT_GROUP.sub(r"\1", text)))
    return " ".join(token for token in tokens if token not in _NO_MEANING)


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 of all that the problems say, to the letter and in their order, by which a run folder recognises its data.
    It is stricter than `find_overlap`: another blank is another prompt, and another id another place in the tables."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps(list(vars(problem).values())).encode() + b"\n")
    return digest.hexdigest()
