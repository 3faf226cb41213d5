"""A problem, as every other room knows it: a question, its gold answer, and how a completion of it is judged."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One problem of a file, of the generator or of reasoning-gym."""

    id: str  # unique within its source, and independent of the problem's place there
    question: str  # the text of the user turn, choices included
    answer: str  # the bare gold answer: "72", r"\frac{1}{2}", "B"
    level: str | None = None  # MATH: "1" to "5"
    subject: str | None = None
    system: str | None = None  # a system turn of its own
    task: str | None = None  # how reasoning-gym scores an answer: written by gym.py, read by the grading worker
    budget: int | None = None  # tokens that the question asks to think for, where it states such a budget


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 of the questions, answers, system turns and tasks in their order, by which a run folder recognises its
    data. White space, capitals and ids do not count. It is stricter than `find_overlap`: another text is another prompt.
    """
    digest = hashlib.sha256()
    for problem in problems:
        fields = [problem.question, problem.answer, problem.system or "", *filter(None, [problem.task])]
        digest.update("\x1f".join(map(_without_blanks, fields)).encode() + b"\x1e")
    return digest.hexdigest()


def _without_blanks(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()
