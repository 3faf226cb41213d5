"""Which problems are the same: in two files, however each file typesets them, and in a run and its rerun.

Left out on purpose: fuzzy duplicates. Two problems that differ in one number are two problems.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable

from ..types import Problem


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
