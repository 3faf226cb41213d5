"""Problem files: rows with the published fields of GSM8K, MATH, MATH-500, GaoKao2023en and O1-Pruner's own files, multiple
choice in its published forms, chats, verl's and TRL's rows, and plain {problem, answer}. The fields decide, not the file's
name. rows.py reads the formats, download.py finds the files of a data set on the hub.

What a row holds of the question is asked whole, its passage and its choices too, or the row is refused: a model that is
asked half a question learns to guess. Fields that are not read are named once a file.
"""

import hashlib
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..text import clean, nearest
from ..types import Problem
from .download import download_data, hub_data
from .golds import gold_in, gold_of
from .rows import Number, rows_of

log = logging.getLogger(__name__)

LETTERS = "ABCDEFGHIJ"
QUESTION, CHAT = ("problem", "question", "prompt"), ("messages", "prompt")  # a prompt may be a text or a chat
ANSWER = ("ground truth answer", "ground truth", "expected answer", "final answer", "answer")
SOLUTION = ("solution", "completion", "last turn")  # the last is the chat's assistant turn, by a name of our own
CHOICES = ("choices", "options", "answer choices", "answer options")
INDEX = ("answer index", "answer idx")
RIGHT = (*INDEX, *ANSWER[1:], "answerkey", "correct", "correct option", "label")  # which of the choices is right
WRONG = (  # the choices beside "correct_answer"
    ("distractor1", "distractor2", "distractor3"),
    ("incorrect answer 1", "incorrect answer 2", "incorrect answer 3"),
)
PASSAGES = (  # what a question is about: asked before it
    *("article", "passage", "context", "body", "story", "background", "paragraph", "document", "premise", "scenario"),
    *("table", "hint"),
)
UNPLACED = ("text", "input", "instruction", "sentence", "statement", "facts", "dialogue")  # what else may be asked
UNSEEN = ("image", "images", "picture", "pictures", "figure", "figures", "diagram", "image path", "audio", "video")
ID, LEVEL, SUBJECT, SYSTEM = ("unique id", "id"), ("level",), ("subject", "type"), ("system",)
COLUMNS = ("{0}", "option {1}", "choice {1}", "op{1}", "option{2}", "option {2}", "choice{2}", "choice {2}")  # A, a, 1
READ = {"correct answer", *WRONG[0], *WRONG[1]}.union(
    *(QUESTION, CHAT, ANSWER, SOLUTION, CHOICES, RIGHT, PASSAGES, UNPLACED, UNSEEN, ID, LEVEL, SUBJECT, SYSTEM),
    *(("reward model", "extra info"),),  # verl's
    [form.format(name, name, at) for form in COLUMNS for at, name in enumerate(LETTERS.lower(), 1)],
)
USUAL = {  # role of a problem: the published names of its field
    "question": (*QUESTION, *CHAT),
    "answer": (*ANSWER, *RIGHT, *SOLUTION, "correct answer"),
    "level": LEVEL,
}
MAX_CHARS = 1_000_000  # of a question or a solution: more than any context window
MAX_NAME_CHARS = 1000  # of an id, a level, a subject: names that tables show


@dataclass(frozen=True)
class Fields:
    """The names of fields where a file has names of its own (None: the published ones). "a.b" is the field b of the object
    in the field a."""

    question: str | None = None
    answer: str | None = None
    level: str | None = None


def load_problems(
    path: str | Path | Sequence[Path],
    *,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    question_field: str | None = None,
    answer_field: str | None = None,
    level_field: str | None = None,
) -> list[Problem]:
    r"""Reads problems: a file, several files, or a data set on the Hugging Face hub ("openai/gsm8k", "openai/gsm8k:test").

    A file is a JSON list of objects, JSONL (one object a line, blank lines skipped), CSV with a first line of names, or
    parquet (which needs pyarrow); all but parquet may be gzipped.

    | file | question | answer |
    |---|---|---|
    | GSM8K | question | what follows "####" in answer |
    | MATH | problem | the last \boxed{} of solution (answer, where the file has one) |
    | MATH-500 | problem | answer |
    | GaoKao2023en, plain | question or problem | answer, without dollars around it; its last \boxed{} if it has one |
    | O1-Pruner | problem | ground_truth_answer |
    | multiple choice | question or problem, and choices or options | answer: a letter, the text, or the index from 0 |
    | ARC | question, and choices: {text: [...], label: [...]} | answerKey: a label |
    | MMLU-Pro, MedQA, AQuA | question, and options: [...] or {A: ...} | answer, answer_index, answer_idx or correct |
    | SciQ | question | correct_answer, beside distractor1, distractor2, distractor3 |
    | GPQA | Question | Correct Answer, beside Incorrect Answer 1, 2, 3 |
    | RACE, SVAMP | article, Body or context, then question | answer |
    | a chat | messages: the last user turn, with the system turn | a field of its own, or in the last assistant turn |
    | verl | prompt: a chat | reward_model: {ground_truth: ...} |
    | TRL | prompt: a text or a chat | ground_truth, answer or solution, or in completion |
    | OpenMathReasoning, DeepMath | problem or question | expected_answer, final_answer |

    question_field, answer_field, level_field: the fields' names where a file has names of its own; "a.b" is the field b of
    the object in a. Capitals and underscores of a published name do not count. A passage (PASSAGES) stands before its
    question. Choices become lines "(A) ...", and the answer is the letter. SciQ and GPQA name the right choice and give no
    order. A hash of question and choice gives one, so it is the same in every run and reveals nothing of the answer.
    Numbers keep the digits that the file has: 0.00005 is "0.00005".

    Optional fields: unique_id or id, level ("Level 3" and 3.0 read as "3"), subject or type, system. A problem without an
    id gets the hash of its text; a repeated id gets "-2", "-3". A few published rows have an empty answer (2 in
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
    unread: dict[str, None] = {}  # names of fields, in their order
    earlier_turns = levels = 0
    fields = Fields(question_field, answer_field, level_field)
    paths = _paths(path)
    path = path if isinstance(path, str | Path) else ", ".join(map(str, paths))
    for where, value in (row for file in paths for row in rows_of(file)):
        row = _row(value, where, fields)
        problem = _problem(row)
        earlier_turns += row.earlier_turns
        levels += "level" in row.fields
        unread |= dict.fromkeys(name for folded, (name, _) in row.fields.items() if folded not in READ)
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
    if earlier_turns:
        log.warning(
            "%s: of %d chats the last user turn is asked, without the turns before it", clean(str(path)), earlier_turns
        )
    if level_field is not None and not levels:  # of a test file that has no levels it is no error
        missing, near = _quoted(level_field), nearest(level_field, unread)
        log.warning("%s: no row has the field %s, which --level-field names%s", clean(str(path)), missing, near)
    if unread:
        log.info("%s: fields that are not read: %s", clean(str(path)), _names(unread))
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(problems)
    return problems[:limit]


def _paths(path: str | Path | Sequence[Path]) -> list[Path]:
    if not isinstance(path, str | Path):
        return list(path)
    named = hub_data(str(path))
    return [Path(path)] if named is None else download_data(named)[1]


@dataclass(frozen=True)
class Row:
    """An object of a file: where it stands, and its fields that are not null, by folded name: name, value. earlier_turns:
    whether its chat has user turns before the one that is asked."""

    where: str
    fields: dict[str, tuple[str, Any]]
    earlier_turns: bool = False

    def text(self, names: tuple[str, ...], longest: int = MAX_CHARS) -> str | None:
        """The first of these fields that is there, as text."""
        found = next((self.fields[name] for name in names if name in self.fields), None)
        return None if found is None else _as_text(found[1], found[0], self.where, longest)

    def name(self, names: tuple[str, ...]) -> str | None:
        """The same for a field that is shown in tables."""
        return self.text(names, MAX_NAME_CHARS)

    @property
    def found(self) -> str:
        """The names of the fields, for an error."""
        return f"(found: {_names([name for name, _ in self.fields.values()])})"


def _row(value: object, where: str, named: Fields) -> Row:
    if not isinstance(value, dict):
        kind = "number" if isinstance(value, Number) else type(value).__name__
        raise UserError(f"{where}: a {kind} where an object with question and answer is needed")
    fields: dict[str, tuple[str, Any]] = {}
    for name, content in value.items():
        if content is None:
            continue
        other, same = fields.setdefault(fold(name), (name, content))
        if other != name and same != content:
            raise UserError(
                f"{where}: {_quoted(other)} and {_quoted(name)} are one field and differ; take one of them out"
            )
    _open_verl(fields)
    _name(fields, value, named, where)
    for folded in ("final answer", "ground truth"):  # a list where a problem may have several; one is meant here
        name, content = fields.get(folded, ("", None))
        if isinstance(content, list) and len(content) == 1:
            fields[folded] = name, content[0]
    return Row(where, fields, _open_chat(fields, where))


def _name(fields: dict[str, tuple[str, Any]], row: dict[str, Any], named: Fields, where: str) -> None:
    """Let the fields of the user's choice have the roles that they are named for. The usual ones of a role then mean nothing,
    and a field that has a role has no other, as "hint" would be asked before the question."""
    roles: dict[str, tuple[str, Any]] = {}
    for role, name in vars(named).items():
        if name is None:
            continue
        outer, _, inner = name.partition(".")
        content, there = row.get(name), name
        if content is None and isinstance(row.get(outer), dict):
            content, there = row[outer].get(inner), outer
        if content is not None:
            roles[role] = name, content
            fields.pop(fold(there), None)
        elif role != "level":  # a row may have none
            names = [str(key) for key, held in row.items() if held is not None]
            raise UserError(
                f"{where}: no field {_quoted(name)}, which --{role}-field names (found: {_names(names)})"
                f"{nearest(name, names)}"
            )
        for other in USUAL[role]:
            fields.pop(other, None)
    fields |= roles
    if "answer" in roles:  # beside distractors
        fields["correct answer"] = roles["answer"]


def _open_verl(fields: dict[str, tuple[str, Any]]) -> None:
    """The answer in verl's reward_model, and what its extra_info says of the problem, as fields of the row."""
    for outer, names in (
        ("reward model", ("ground_truth",)),
        ("extra info", ("level", "subject", "type", "unique_id")),
    ):
        name, content = fields.get(outer, ("", None))
        for inner in names if isinstance(content, dict) else ():
            if content.get(inner) is not None:
                fields.setdefault(fold(inner), (f"{name}.{inner}", content[inner]))


def _open_chat(fields: dict[str, tuple[str, Any]], where: str) -> bool:
    """Make question, system and solution of the row's chat, if it has one and no question beside it. Returns whether there
    are user turns before the one that is asked."""
    found = next((fields[name] for name in ("question", *CHAT) if isinstance(fields.get(name, ("", 0))[1], list)), None)
    asked = [name for name in QUESTION if name in fields and not isinstance(fields[name][1], list)]
    if found is None or asked:
        return False
    name, chat = found
    turns: list[tuple[str, str]] = []
    for turn in chat:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or "content" not in turn:
            raise UserError(f'{where}: the field {_quoted(name)} must be a list of {{"role": ..., "content": ...}}')
        turns.append((turn["role"], _turn_text(turn["content"], name, where)))
    users = [at for at, (role, _) in enumerate(turns) if role == "user"]
    if not users:
        raise UserError(f"{where}: the field {_quoted(name)} has no user turn, which is what is asked")
    for other in CHAT:
        fields.pop(other, None)
    fields["question"] = name, turns[users[-1]][1]
    if systems := [text for role, text in turns if role == "system"]:
        fields.setdefault("system", (name, systems[0]))
    if after := [text for role, text in turns[users[-1] :] if role == "assistant"]:
        fields.setdefault("last turn", (name, after[-1]))
    name, completion = fields.get("completion", ("", None))
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        fields["completion"] = name, _turn_text(completion[-1].get("content"), name, where)
    return len(users) > 1


def _turn_text(content: Any, name: str, where: str) -> str:
    """The text of a turn, which may be a list of parts."""
    texts: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str):
            raise UserError(
                f"{where}: the field {_quoted(name)} has a turn that is no text and cannot be asked; take it out"
            )
        texts.append(text)
    return "\n".join(texts)


def fold(name: str) -> str:
    """A field's name as it is looked up."""
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


def _problem(row: Row) -> Problem:
    question = row.text(QUESTION)
    if question is None or not question.strip():
        raise UserError(
            f'{row.where}: no question; give it in the field "question" or "problem" {row.found}, or name its field by '
            "--question-field"
        )
    choices = _choices(row, question)
    asked = "\n\n".join([*_passages(row, question), question])
    if choices is None:
        answer = _answer(row)
    else:
        texts, gold = choices
        asked = "\n".join([asked, *(f"({name}) {text}" for name, text in zip(LETTERS, texts))])
        answer = LETTERS[gold]
    return Problem(
        id=row.name(ID) or hashlib.sha256(asked.encode()).hexdigest()[:16],
        question=asked,
        answer=answer,
        level=_level(row),
        subject=row.name(SUBJECT),
        system=row.text(SYSTEM),
    )


def _level(row: Row) -> str | None:
    level = row.name(LEVEL)
    whole = re.fullmatch(r"(?:Level )?(\d+)\.0+", level or "")  # a table with a gap turns its whole numbers into floats
    return whole[1] if whole else level.removeprefix("Level ") if level else None


def _passages(row: Row, question: str) -> list[str]:
    """What stands before the question, in the row's order, unless the question says it already. Raises UserError where a
    field may belong to the question and cannot be asked."""
    found = []
    for folded, (name, content) in row.fields.items():
        if folded in UNSEEN and content:
            raise UserError(
                f"{row.where}: the field {_quoted(name)} belongs to the question and cannot be asked as text; take the "
                "problem out"
            )
        if folded in UNPLACED and isinstance(content, str) and content.strip() and not _overlap(content, question):
            raise UserError(
                f"{row.where}: the field {_quoted(name)} may belong to the question; rename it to context, to be asked "
                "before the question, or take it out"
            )
        if folded in PASSAGES and content not in ("", [], {}):
            text = _as_text(content, name, row.where).strip()
            if text and text not in question:
                found.append(text)
    return found


def _overlap(one: str, other: str) -> bool:
    return one.strip() in other or other.strip() in one


def _answer(row: Row) -> str:
    """The gold answer of a row without choices."""
    answer = row.text(ANSWER)
    if answer is not None:
        gold = gold_of(answer)
        if gold is None:
            raise UserError(f'{row.where}: no final answer in the field "answer"; end it with a line "#### 72"')
        return gold
    solution = row.text(SOLUTION)
    if solution is None:
        raise UserError(
            f'{row.where}: no answer; give it in the field "answer", "ground_truth" or "solution" {row.found}, or name its '
            "field by --answer-field"
        )
    gold = gold_in(solution)
    if gold is None:
        name = next(row.fields[name][0] for name in SOLUTION if name in row.fields)
        raise UserError(
            rf'{row.where}: no \boxed{{}} in the field {_quoted(name)}; box the answer or add the field "answer"'
        )
    return gold


def _choices(row: Row, question: str) -> tuple[list[str], int] | None:
    """The choices of a multiple-choice row and the index of the right one; None for another row."""
    if "correct answer" in row.fields:
        for wrong in WRONG:
            if any(name in row.fields for name in wrong):
                return _unordered(row, question, wrong)
    stated = [row.fields[name] for name in CHOICES if name in row.fields and row.fields[name][1] not in ([], {}, "")]
    if not stated:
        columns = _columns(row)
        return None if columns is None else (columns, _right(row, columns, list(LETTERS[: len(columns)])))
    if any(content != stated[0][1] for _, content in stated):
        raise UserError(f"{row.where}: {_names([name for name, _ in stated])} differ; take one of them out")
    texts, labels = _listed(*stated[0], row.where)
    return texts, _right(row, texts, labels)


def _unordered(row: Row, question: str, wrong: tuple[str, ...]) -> tuple[list[str], int]:
    texts: list[str] = []
    for folded in ("correct answer", *wrong):
        text = row.text((folded,))
        if text is None or not text.strip():
            name = row.fields[folded][0] if folded in row.fields else folded
            raise UserError(f"{row.where}: no text in the field {_quoted(name)}; give the choice or delete the line")
        texts.append(text)
    order = sorted(texts, key=lambda text: hashlib.sha256(f"{question}\x1f{text}".encode()).digest())
    return order, order.index(texts[0])


def _columns(row: Row) -> list[str] | None:
    """Choices in fields of their own: A, B, C, D, or option_a and option_b, or option1 and option2."""
    for form in COLUMNS:
        keys = [form.format(name, name, at) for at, name in enumerate(LETTERS.lower(), 1)]
        held = [row.fields[key] for key in keys if key in row.fields]
        if form == COLUMNS[0]:  # a row may have numbers a and b
            held = [(name, content) for name, content in held if name.isupper()]
        if len(held) > 1 and [fold(name) for name, _ in held] == keys[: len(held)]:
            return [_as_text(content, name, row.where) for name, content in held]
    return None


def _listed(name: str, choices: Any, where: str) -> tuple[list[str], list[str]]:
    """The texts and the labels of a field of choices."""
    texts: Any = choices
    labels: Any = list(LETTERS)
    if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        texts, labels = ([choice.get(part) for choice in choices] for part in ("text", "label"))
    elif isinstance(choices, dict) and "text" in choices:
        texts, labels = choices["text"], choices.get("label")
    elif isinstance(choices, dict):  # {"A": ..., "B": ...}, in whatever order
        labels = sorted(choices)
        texts = [choices[label] for label in labels]
    lists = isinstance(texts, list) and isinstance(labels, list)
    if not lists or not 2 <= len(texts) <= min(len(labels), len(LETTERS)):
        raise UserError(
            f"{where}: the field {_quoted(name)} must be a list of 2 to {len(LETTERS)} texts, or ARC's "
            '{"text": [...], "label": [...]}'
        )
    texts = [_as_text(text, name, where) for text in texts]
    labels = [_as_text(label, "label", where, MAX_NAME_CHARS).strip().upper() for label in labels[: len(texts)]]
    own = [re.match(rf"\(?{re.escape(label)}\s?[).:]\s*", text) for label, text in zip(labels, texts)]
    if all(own):  # AQuA's "A)21"
        texts = [text[match.end() :] for text, match in zip(texts, own) if match]
    return texts, labels


def _right(row: Row, texts: list[str], labels: list[str]) -> int:
    """The index of the right choice. Raises UserError where the fields that name it name none, or two."""
    named = [row.fields[folded] for folded in RIGHT if folded in row.fields]
    if not named:
        raise UserError(f'{row.where}: no answer; give it in the field "answer" or "answerKey" {row.found}')
    readings = [_readings(content, name, row.where, texts, labels) for name, content in named]
    known = [found for found in readings if found]
    if not known:
        name, content = named[0]
        raise UserError(
            f"{row.where}: the field {_quoted(name)} is {_quoted(str(content))}; with {len(texts)} choices it must be a "
            f"letter from {_quoted(labels[0])} to {_quoted(labels[-1])}, or a number from 0 to {len(texts) - 1}"
        )
    agreed = [at for at in known[0] if all(at in found for found in known)]
    if not agreed:
        raise UserError(
            f"{row.where}: {_names([name for name, _ in named])} name different choices; correct one of them"
        )
    return agreed[0]


def _readings(content: Any, name: str, where: str, texts: list[str], labels: list[str]) -> list[int]:
    """The choices that a value may name, the likeliest first: by its label, by its index from 0, by its text."""
    text = _as_text(content, name, where, MAX_CHARS).strip()
    letter = re.fullmatch(r"(?:option|choice)?\s*[(\[]?\s*(\w+)\s*[)\].:]?", text, re.IGNORECASE)
    found = [labels.index(letter[1].upper())] if letter and letter[1].upper() in labels else []
    if isinstance(content, Number):
        found = [] if fold(name) in INDEX else found
        return found or ([int(text)] if text.isdecimal() and len(text) < 3 and int(text) < len(texts) else [])
    same = [at for at, choice in enumerate(texts) if choice.strip() == text]
    return found + [at for at in same if len(same) == 1 and at not in found]


def _as_text(value: object, field: str, where: str, longest: int = MAX_CHARS) -> str:
    if isinstance(value, bool) or not isinstance(value, str | float):
        raise UserError(f'{where}: the field "{field}" is a {type(value).__name__}; it must be text or a number')
    if isinstance(value, float) or (isinstance(value, Number) and not math.isfinite(float(value))):  # NaN; 1e999
        raise UserError(f'{where}: the field "{field}" is no finite number; write it as text, in quotes')
    if len(value) > longest:
        raise UserError(f'{where}: the field "{field}" has {len(value):,} characters; at most {longest:,} are read')
    return str(value)


def _names(names: Iterable[str]) -> str:
    """Names of fields, for an error."""
    listed = list(names)
    shown = ", ".join(_quoted(name) for name in listed[:20]) or "none"
    return f"{shown} and {len(listed) - 20} more" if len(listed) > 20 else shown


def _quoted(text: str) -> str:
    return f'"{clean(text[:40])}"' if len(text) <= 40 else f'"{clean(text[:40])}..."'
