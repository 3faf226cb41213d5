"""Problem files: JSON lists and JSONL with the published fields of GSM8K, MATH, MATH-500, GaoKao2023en and O1-Pruner's
own files, multiple choice, and plain {problem, answer}. The fields decide, not the file's name.

Left out on purpose: downloads and the datasets library (a file on disk is the whole interface), and parquet.
"""

import hashlib
import json
import logging
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from o1core.errors import UserError
from o1core.grading import extract_answer

log = logging.getLogger(__name__)

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Problem:
    id: str  # unique within its file, and the same wherever in the file the problem stands
    question: str  # the text of the user turn, choices included
    answer: str  # the bare gold answer: "72", r"\frac{1}{2}", "B"
    level: str | None = None  # MATH: "1" to "5"
    subject: str | None = None
    system: str | None = None  # a system turn of its own


def load_problems(path: str | Path, *, limit: int | None = None, shuffle_seed: int | None = None) -> list[Problem]:
    r"""Reads a problem file: a JSON list of objects, or JSONL (one object a line, blank lines skipped).

    | file | question | answer |
    |---|---|---|
    | GSM8K | question | what follows "####" in answer |
    | MATH | problem | the last \boxed{} of solution (answer, where the file has one) |
    | MATH-500 | problem | answer |
    | GaoKao2023en, plain | question or problem | answer, without dollars around it; its last \boxed{} if it has one |
    | O1-Pruner | problem | ground_truth_answer |
    | multiple choice | question or problem, and choices: [...] | answer: a letter |

    Optional fields: unique_id or id, level ("Level 3" reads as "3"), subject or type, system. A problem without an id
    gets the hash of its text; a repeated id gets "-2", "-3". A few published rows have an empty answer (2 in
    GaoKao2023en, 2 in MATH train): they stay, so that the published counts hold, always grade wrong, and are logged as
    a warning.

    The whole file is checked. Then, if `shuffle_seed` is given, the problems are shuffled, and the first `limit` are
    returned. The paper's selection is limit=5000, shuffle_seed=42 of MATH train; the shuffle here is Python's, so the
    5,000 problems are not those that the datasets library would pick with the same seed.

    Raises UserError naming the file, the line (or the place in the list), the field and the mend.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    problems, empty, ids, repeats = [], [], set(), Counter()
    for where, row in _rows(Path(path)):
        problem = _problem(row, where)
        unique = problem.id
        while unique in ids:
            repeats[problem.id] += 1
            unique = f"{problem.id}-{repeats[problem.id] + 1}"
        ids.add(unique)
        problems.append(replace(problem, id=unique))
        if not problem.answer:
            empty.append(where.rpartition(", ")[2])
    if not problems:
        raise UserError(f"{path}: no problems in this file; it needs at least one object with question and answer")
    if empty:
        places = ", ".join(empty[:4])
        log.warning("%s: %d of %d answers are empty, always wrong: %s", path, len(empty), len(problems), places)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(problems)
    return problems[:limit]


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 over the normalised texts, answers and system turns in their order: what a run folder remembers its data
    by. Ids do not count."""
    digest = hashlib.sha256()
    for problem in problems:
        fields = (_normal(problem.question), _normal(problem.answer), _normal(problem.system or ""))
        digest.update("\x1f".join(fields).encode() + b"\x1e")
    return digest.hexdigest()


def overlap(train: Iterable[Problem], test: Iterable[Problem]) -> list[Problem]:
    """The problems of `test` whose question also stands in `train`, whatever their blanks and capitals."""
    known = {_normal(problem.question) for problem in train}
    return [problem for problem in test if _normal(problem.question) in known]


def _normal(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()


def _rows(path: Path) -> Iterable[tuple[str, dict]]:
    """Yields (where, object) with `where` as an error names it: "FILE, line 3"."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a .json or .jsonl file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
    if text.lstrip().startswith("["):
        for at, row in enumerate(_parse(text, str(path)), 1):
            yield f"{path}, item {at}", row
        return
    # Only "\n" ends a line of JSONL: splitlines would also cut at U+2028, which may stand inside a string.
    for at, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {at}"
            yield where, _parse(line, where)


def _parse(text: str, where: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if ", line " in where else f"{where}, line {error.lineno}"
        raise UserError(
            f"{place}, column {error.colno}: not valid JSON ({error.msg}); mend or delete it (a file is one JSON list, "
            "or JSONL with one whole object a line)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON ({error}); mend or delete it") from None


def _problem(row: dict, where: str) -> Problem:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__} where an object with question and answer is needed")
    question = _first(row, ("problem", "question"), where)
    if question is None or not question.strip():
        raise UserError(f'{where}: no question; give it in the field "question" or "problem" (found: {_fields(row)})')
    answer = _answer(row, where)
    if "choices" in row:
        question, answer = _with_choices(question, row["choices"], answer, where)
    level = _first(row, ("level",), where)
    return Problem(
        id=_first(row, ("unique_id", "id"), where) or hashlib.sha256(question.encode()).hexdigest()[:16],
        question=question,
        answer=answer,
        level=level.removeprefix("Level ") if level else None,
        subject=_first(row, ("subject", "type"), where),
        system=_first(row, ("system",), where),
    )


def _answer(row: dict, where: str) -> str:
    answer = _first(row, ("ground_truth_answer", "answer"), where)
    if answer is not None:
        if "####" in answer or "<<" in answer:  # GSM8K's solution
            final = answer.rpartition("####")[2].strip() if "####" in answer else ""
            if not final:
                raise UserError(f'{where}: no final answer in the field "answer"; end it with a line "#### 72"')
            return final
        if r"\boxed" in answer:
            return extract_answer(answer) or ""
        answer = answer.strip()
        around = len(answer) > 1 and answer[0] == answer[-1] == "$" and answer.count("$") == 2
        return answer[1:-1].strip() if around else answer
    solution = _first(row, ("solution",), where)
    if solution is None:
        raise UserError(
            f'{where}: no answer; give it in the field "answer", "ground_truth_answer" or "solution" '
            f"(found: {_fields(row)})"
        )
    if r"\boxed" not in solution and r"\fbox" not in solution:
        raise UserError(rf'{where}: no \boxed{{}} in the field "solution"; box the answer or add the field "answer"')
    return extract_answer(solution) or ""


def _with_choices(question: str, choices, answer: str, where: str) -> tuple[str, str]:
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f'{where}: the field "choices" must be a list of 2 to {len(LETTERS)} texts')
    letter = answer.strip("()").upper()
    if len(letter) != 1 or letter not in LETTERS[: len(choices)]:
        raise UserError(
            f'{where}: the field "answer" is {answer!r}; with {len(choices)} choices it must be a letter from A to '
            f"{LETTERS[len(choices) - 1]}"
        )
    lines = [f"({name}) {text}" for name, text in zip(LETTERS, choices)]
    return "\n".join([question, *lines]), letter


def _first(row: dict, names: tuple[str, ...], where: str) -> str | None:
    """The first of these fields that is there, as text."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f'{where}: the field "{name}" is a {type(value).__name__}; it must be text or a number')
        value = str(value)
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise UserError(f'{where}: the field "{name}" holds half a surrogate pair; write the whole character')
        return value
    return None


def _fields(row: dict) -> str:
    return ", ".join(map(str, row)) or "none"
