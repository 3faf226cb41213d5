"""Problem files: JSON lists and JSONL with the published fields of GSM8K, MATH, MATH-500, GaoKao2023en and O1-Pruner's
own files, multiple choice in five published forms, and plain {problem, answer}. The fields decide, not the file's name.

Left out on purpose: downloads and the datasets library (a file on disk is the whole interface), and parquet.
"""

import hashlib
import itertools
import logging
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError
from ..files import MAX_JSON_BYTES, decode, open_regular, parse_json
from ..grading import extract_answer, last_box
from ..text import clean
from ..types import Problem

log = logging.getLogger(__name__)

LETTERS = "ABCDEFGHIJ"
MAX_CHARS = 1_000_000  # of a question or a solution: more than any context window
MAX_NAME_CHARS = 1000  # of an id, a level, a subject: names that tables show
MAX_LINE_BYTES = 32 << 20  # of a problem of JSONL
_FIX = "fix or delete it (a file is one JSON list, or JSONL with one whole object a line)"


def load_problems(path: str | Path, *, limit: int | None = None, shuffle_seed: int | None = None) -> list[Problem]:
    r"""Reads a problem file: a JSON list of objects, or JSONL (one object a line, blank lines skipped).

    | file | question | answer |
    |---|---|---|
    | GSM8K | question | what follows "####" in answer |
    | MATH | problem | the last \boxed{} of solution (answer, where the file has one) |
    | MATH-500 | problem | answer |
    | GaoKao2023en, plain | question or problem | answer, without dollars around it; its last \boxed{} if it has one |
    | O1-Pruner | problem | ground_truth_answer |
    | multiple choice | question or problem, and choices: [...] | answer: a letter, or MMLU's index from 0 |
    | ARC | question, and choices: {text: [...], label: [...]} | answerKey: a label |
    | SciQ | question | correct_answer, beside distractor1, distractor2, distractor3 |
    | GPQA | Question | Correct Answer, beside Incorrect Answer 1, 2, 3 |

    Choices become lines "(A) ...", and the answer is the letter. SciQ and GPQA name the right choice and give no order.
    A hash of question and choice gives one, so it is the same in every run and reveals nothing of the answer.

    Optional fields: unique_id or id, level ("Level 3" reads as "3"), subject or type, system. A problem without an id
    gets the hash of its text; a repeated id gets "-2", "-3". A few published rows have an empty answer (2 in
    GaoKao2023en, 2 in MATH train). They stay, so that the published counts hold. They always grade wrong, and a warning
    names them.

    The whole file is checked. Then the problems are shuffled if `shuffle_seed` is given, and the first `limit` are
    returned. The paper's selection is limit=5000, shuffle_seed=42 of MATH train. The shuffle here is Python's, so the
    5,000 problems are not those that the datasets library would select with the same seed.

    Raises UserError, which names the file, the line (or the place in the list), the field and how to fix it.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    problems: list[Problem] = []
    empty: list[str] = []  # places
    ids: set[str] = set()
    repeats: Counter[str] = Counter()
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
        log.warning(
            "%s: %d of %d answers are empty, always wrong: %s", clean(str(path)), len(empty), len(problems), places
        )
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(problems)
    return problems[:limit]


def _rows(path: Path) -> Iterator[tuple[str, object]]:
    """Yields (where, row), with `where` as an error names it: "FILE, line 3"."""
    with open_regular(path) as file:
        if _is_list(file):
            yield from _items(file, path)
            return
        # Only "\n" ends a line of JSONL: splitlines would also cut at U+2028, which may occur inside a string.
        for at in itertools.count(1):
            if not (line := file.readline(MAX_LINE_BYTES + 1)):
                return
            if len(line) > MAX_LINE_BYTES:
                raise UserError(
                    f"{path}, line {at}: longer than {MAX_LINE_BYTES >> 20} MiB; write one problem a line (JSONL)"
                )
            if line.strip():
                where = f"{path}, line {at}"
                text = decode(line, where)
                if text.strip():
                    yield where, parse_json(text, where, _FIX)


def _is_list(file: BinaryIO) -> bool:
    """Whether the first character of a file, white space aside, is "[". Leaves the file at its beginning."""
    first = b""
    while not first and (line := file.readline(4096)):
        first = line.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    file.seek(0)
    return first == b"["


def _items(file: BinaryIO, path: Path) -> Iterator[tuple[str, object]]:
    raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise UserError(
            f"{path}: a JSON list of more than {MAX_JSON_BYTES >> 20} MiB; write it as JSONL, one object a line"
        )
    for at, row in enumerate(parse_json(decode(raw, str(path)), str(path), _FIX), 1):
        yield f"{path}, item {at}", row


def _problem(row: object, where: str) -> Problem:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__} where an object with question and answer is needed")
    question = _text(row, ("problem", "question", "Question"), where)
    if question is None or not question.strip():
        raise UserError(f'{where}: no question; give it in the field "question" or "problem" (found: {_fields(row)})')
    choices = _choices(row, question, where)
    if choices is None:
        answer = _answer(row, where)
    else:
        texts, gold = choices
        question = "\n".join([question, *(f"({name}) {text}" for name, text in zip(LETTERS, texts))])
        answer = LETTERS[gold]
    level = _name(row, ("level",), where)
    return Problem(
        id=_name(row, ("unique_id", "id"), where) or hashlib.sha256(question.encode()).hexdigest()[:16],
        question=question,
        answer=answer,
        level=level.removeprefix("Level ") if level else None,
        subject=_name(row, ("subject", "type"), where),
        system=_text(row, ("system",), where),
    )


def _answer(row: dict[str, Any], where: str) -> str:
    """The gold answer of a row without choices."""
    answer = _text(row, ("ground_truth_answer", "answer"), where)
    if answer is not None:
        if "####" in answer or "<<" in answer:  # GSM8K's solution
            final = answer.rpartition("####")[2].strip() if "####" in answer else ""
            if not final:
                raise UserError(f'{where}: no final answer in the field "answer"; end it with a line "#### 72"')
            return final
        if r"\boxed" in answer:
            return last_box(answer) or extract_answer(answer) or ""
        answer = answer.strip()
        in_dollars = len(answer) > 1 and answer[0] == answer[-1] == "$" and answer.count("$") == 2
        return answer[1:-1].strip() if in_dollars else answer
    solution = _text(row, ("solution",), where)
    if solution is None:
        raise UserError(
            f'{where}: no answer; give it in the field "answer", "ground_truth_answer" or "solution" '
            f"(found: {_fields(row)})"
        )
    if r"\boxed" not in solution and r"\fbox" not in solution:
        raise UserError(rf'{where}: no \boxed{{}} in the field "solution"; box the answer or add the field "answer"')
    return last_box(solution) or extract_answer(solution) or ""


_UNORDERED = {  # the field of the right choice: those of the wrong ones
    "correct_answer": ("distractor1", "distractor2", "distractor3"),
    "Correct Answer": ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
}


def _choices(row: dict[str, Any], question: str, where: str) -> tuple[list[str], int] | None:
    """The choices of a multiple-choice row and the index of the right one; None for another row."""
    for right, wrong in _UNORDERED.items():
        if right in row and any(name in row for name in wrong):
            return _unordered(row, question, where, right, wrong)
    return _ordered(row, where) if "choices" in row else None


def _unordered(
    row: dict[str, Any], question: str, where: str, right: str, wrong: tuple[str, ...]
) -> tuple[list[str], int]:
    texts: dict[str, str] = {}
    for name in (right, *wrong):
        text = _text(row, (name,), where)
        if text is None or not text.strip():
            raise UserError(f'{where}: no text in the field "{name}"; give the choice or delete the line')
        texts[name] = text
    order = sorted(texts.values(), key=lambda text: hashlib.sha256(f"{question}\x1f{text}".encode()).digest())
    return order, order.index(texts[right])


def _ordered(row: dict[str, Any], where: str) -> tuple[list[str], int]:
    choices = row["choices"]
    texts: Any = choices
    labels: Any = list(LETTERS)
    if isinstance(choices, dict):
        texts, labels = choices.get("text"), choices.get("label")
    lists = isinstance(texts, list) and isinstance(labels, list)
    if not lists or not 2 <= len(texts) <= min(len(labels), len(LETTERS)):
        raise UserError(
            f'{where}: the field "choices" must be a list of 2 to {len(LETTERS)} texts, or ARC\'s '
            '{"text": [...], "label": [...]}'
        )
    texts = [_as_text(text, "choices", where) for text in texts]
    labels = [_as_text(label, "label", where, MAX_NAME_CHARS) for label in labels[: len(texts)]]
    gold = row.get("answer", row.get("answerKey"))
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(texts):
        return texts, gold
    key = _name(row, ("answer", "answerKey"), where)
    if key is None:
        raise UserError(f'{where}: no answer; give it in the field "answer" or "answerKey" (found: {_fields(row)})')
    if key.strip(" ()").upper() not in labels:
        raise UserError(
            f'{where}: the field "answer" is {_quoted(key)}; with {len(texts)} choices it must be a letter from '
            f"{_quoted(labels[0])} to {_quoted(labels[-1])}, or a number from 0 to {len(texts) - 1}"
        )
    return texts, labels.index(key.strip(" ()").upper())


def _text(row: dict[str, Any], names: tuple[str, ...], where: str, longest: int = MAX_CHARS) -> str | None:
    """The first of these fields that is there, as text."""
    found = next((name for name in names if row.get(name) is not None), None)
    return None if found is None else _as_text(row[found], found, where, longest)


def _name(row: dict[str, Any], names: tuple[str, ...], where: str) -> str | None:
    """The same for a field that is shown in tables."""
    return _text(row, names, where, MAX_NAME_CHARS)


def _as_text(value: object, field: str, where: str, longest: int = MAX_CHARS) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f'{where}: the field "{field}" is a {type(value).__name__}; it must be text or a number')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f'{where}: the field "{field}" is no finite number; write it as text, in quotes')
    text = str(value)
    if len(text) > longest:
        raise UserError(f'{where}: the field "{field}" has {len(text):,} characters; at most {longest:,} are read')
    return text


def _fields(row: dict[str, Any]) -> str:
    """The names of the fields that there are, for an error."""
    shown = ", ".join(_quoted(name) for name in list(row)[:20]) or "none"
    return f"{shown} and {len(row) - 20} more" if len(row) > 20 else shown


def _quoted(text: str) -> str:
    return f'"{clean(text[:40])}"' if len(text) <= 40 else f'"{clean(text[:40])}..."'
