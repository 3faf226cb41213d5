"""Problem files: JSON lists and JSONL with the published fields of GSM8K, MATH, MATH-500, GaoKao2023en and O1-Pruner's
own files, multiple choice in five published forms, and plain {problem, answer}. The fields decide, not the file's name.
Here too: which problems are selected, and which stand in two files.

Left out on purpose: downloads and the datasets library (a file on disk is the whole interface), parquet, and fuzzy
duplicates (two problems that differ in one number are two problems).
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

from ..errors import UserError
from ..grading.pool import extract_answer

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
    task: str | None = None  # how a library scores the answer (o1core.gym writes it, the grading worker reads it)


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

    Choices become lines "(A) ...", and the answer is the letter. SciQ and GPQA name the right choice and have no order:
    theirs comes from a hash of question and choice, so it is the same in every run and says nothing of the answer.

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


def parse_levels(text: str) -> list[str]:
    """The levels of "3,4,5", "3-5" or "1,3-5", in their order. Raises UserError where the text names none."""
    levels = []
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
        raise UserError(f'{what}: "{text}" has an empty place; separate the {what} with single commas')
    return parts


def select(
    problems: list[Problem], levels: Iterable[str] | None = None, subjects: Iterable[str] | None = None
) -> list[Problem]:
    """The problems of these levels and of these subjects (in any case), in their order; None selects all.

    Raises UserError with what there is, where a value is no problem's or nothing is left.
    """
    kept = problems
    for name, wanted in (("level", levels), ("subject", subjects)):
        if wanted is None:
            continue
        wanted = {value.casefold(): value for value in wanted}
        there = Counter(value for problem in problems if (value := getattr(problem, name)) is not None)
        known = {value.casefold() for value in there}
        if missing := [value for folded, value in wanted.items() if folded not in known]:
            raise UserError(f'no problem has the {name} "{missing[0]}"; there are: {_counts(there)}')
        kept = [problem for problem in kept if (getattr(problem, name) or "").casefold() in wanted]
    if problems and not kept:
        pairs = Counter(f"{problem.subject}, level {problem.level}" for problem in problems)
        raise UserError(f"no problem has one of these levels and one of these subjects; there are: {_counts(pairs)}")
    return kept


def _counts(values: Counter) -> str:
    pairs = sorted(values.items())[:40]
    shown = ", ".join(f"{value if value.isprintable() else repr(value)} ({count})" for value, count in pairs)
    return (shown or "none") + (f" and {len(values) - 40} more" if len(values) > 40 else "")


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 over the texts (whatever their blanks and capitals), answers, system turns and tasks in their order: what
    a run folder remembers its data by. Ids do not count. Stricter than `overlap`: another text is another prompt."""
    digest = hashlib.sha256()
    for problem in problems:
        fields = [problem.question, problem.answer, problem.system or "", *filter(None, [problem.task])]
        digest.update("\x1f".join(map(_without_blanks, fields)).encode() + b"\x1e")
    return digest.hexdigest()


def overlap(train: Iterable[Problem], test: Iterable[Problem]) -> list[Problem]:
    """The problems of `test` whose question also stands in `train`, however it is set: blanks, capitals, dollars,
    punctuation and the ways to write one formula in LaTeX do not count; every number, sign and operator does."""
    known = {_same_as(problem) for problem in train}
    return [problem for problem in test if _same_as(problem) in known]


def _same_as(problem: Problem) -> str:
    # A generated task's question may be a board, where a point is a square: it is the same to the letter or another.
    return _normal(problem.question) if problem.task is None else problem.question


def _without_blanks(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()


# What NFKC would flatten into plain digits ("x²" into "x2", "3½" into "31/2") or leave apart from its LaTeX name.
_SIGNS = str.maketrans(
    {char: f"^{digit}" for digit, char in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
    | {char: f"_{digit}" for digit, char in enumerate("₀₁₂₃₄₅₆₇₈₉")}
    | {
        "½": r"\frac12",
        "⅓": r"\frac13",
        "⅔": r"\frac23",
        "¼": r"\frac14",
        "¾": r"\frac34",
        "⁄": "/",
        "−": "-",
        "–": "-",
    }
    | {"×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "√": r"\sqrt "}
    | {"π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "…": r"\dots ", "’": "'", "‘": "'", "“": '"', "”": '"'}
)
_SAME = {
    **dict.fromkeys([r"\dfrac", r"\tfrac", r"\cfrac"], r"\frac"),
    **dict.fromkeys([r"\ldots", r"\cdots", "..."], r"\dots"),
    **{r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne", r"\%": "%", r"\#": "#", r"\&": "&", r"\lbrack": "["},
    **{r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\rbrack": "]"},
}
_SAYS_NOTHING = {
    *("$", r"\$", r"\(", r"\)", r"\[", r"\]", r"\left", r"\right", r"\displaystyle", r"\limits", "~", '"', "`", "."),
    *(",", ";", "?", r"\,", r"\!", r"\;", r"\:", r"\ ", r"\quad", r"\qquad", "\\\n", r"\big", r"\bigl", r"\bigr"),
}
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|emph)\s*\{([^{}]*)\}")
_SHORT_GROUP = re.compile(r"(?<!\\)\{\s*(\w)\s*\}")  # \frac{1}{2} is \frac12, and \frac{12}{3} is another
_GROUPED = re.compile(r"(?<![\d.,(\[{])[1-9]\d{0,2}(?:(?:,|\{,\}|,\\!)\d{3})+(?![\d,])")  # 1,234; but (1,234) is a pair
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\.\.\.|\d*\.\d+|\d+|[^\W\d_]+|\S", re.DOTALL)


def _normal(text: str) -> str:
    """A question as the words, numbers and signs that it consists of. Numbers stay apart ("1 1/2" is not "11/2")."""
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).casefold()
    text = _GROUPED.sub(lambda match: re.sub(r"\D", "", match.group()), _TEXT.sub(r" \1 ", text))
    tokens = (_SAME.get(token, token) for token in _TOKEN.findall(_SHORT_GROUP.sub(r"\1", text)))
    return " ".join(token for token in tokens if token not in _SAYS_NOTHING)


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
    question = _first(row, ("problem", "question", "Question"), where)
    if question is None or not question.strip():
        raise UserError(f'{where}: no question; give it in the field "question" or "problem" (found: {_fields(row)})')
    choices = _choices(row, question, where)
    if choices is not None:
        texts, gold = choices
        question = "\n".join([question, *(f"({name}) {text}" for name, text in zip(LETTERS, texts))])
    answer = _answer(row, where) if choices is None else LETTERS[gold]
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


_UNORDERED = {  # the field of the right choice: those of the wrong ones
    "correct_answer": ("distractor1", "distractor2", "distractor3"),
    "Correct Answer": ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
}


def _choices(row: dict, question: str, where: str) -> tuple[list[str], int] | None:
    """The choices of a multiple-choice row and the place of the right one; None for another row."""
    for right, wrong in _UNORDERED.items():
        if right in row and any(name in row for name in wrong):
            texts = {name: _first(row, (name,), where) for name in (right, *wrong)}
            for name, text in texts.items():
                if not (text or "").strip():
                    raise UserError(f'{where}: no text in the field "{name}"; give the choice or delete the line')
            order = sorted(texts.values(), key=lambda text: hashlib.sha256(f"{question}\x1f{text}".encode()).digest())
            return order, order.index(texts[right])
    if "choices" not in row:
        return None
    texts, labels = row["choices"], list(LETTERS)
    if isinstance(texts, dict):
        texts, labels = texts.get("text"), texts.get("label")
    lists = isinstance(texts, list) and isinstance(labels, list)
    if not lists or not 2 <= len(texts) <= min(len(labels), len(LETTERS)):
        raise UserError(
            f'{where}: the field "choices" must be a list of 2 to {len(LETTERS)} texts, or ARC\'s '
            '{"text": [...], "label": [...]}'
        )
    labels = [str(label) for label in labels[: len(texts)]]
    key = row.get("answer", row.get("answerKey"))
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(texts):
        return texts, key
    key = _first(row, ("answer", "answerKey"), where)
    if key is None:
        raise UserError(f'{where}: no answer; give it in the field "answer" or "answerKey" (found: {_fields(row)})')
    if key.strip(" ()").upper() not in labels:
        raise UserError(
            f'{where}: the field "answer" is {key!r}; with {len(texts)} choices it must be a letter from {labels[0]} to '
            f"{labels[-1]}, or a number from 0 to {len(texts) - 1}"
        )
    return texts, labels.index(key.strip(" ()").upper())


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
