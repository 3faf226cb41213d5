"""Hostile problem files, and hostile pairs of completion and gold answer: `python -m tests.campaigns fuzz` draws from here.

A case is good where the file is read, or is refused by a UserError of one clean line that names it, within LIMIT seconds.
Whatever was read must then survive what a run does with it: fingerprints, overlaps, filters, prompts and JSON.
"""

import csv
import functools
import gzip
import json
import os
import random
import unicodedata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from o1core.errors import UserError
from o1core.problems import (
    FORMS,
    ask_in_form,
    find_overlap,
    fingerprint,
    instruct,
    load_problems,
    parse_levels,
    parse_subjects,
    select,
)
from o1core.text import LONGEST_LINE

from .fuzz_answers import grade_hostile, items
from .harness import TooLong, time_limit

LIMIT = 60  # seconds: a busy machine takes some to start a worker, and what is quadratic takes hours
HUGE = 40_000_000  # characters of the largest field
Row = dict[str, Any]
Damage = Callable[[random.Random, Path], Path]  # writes a file in the folder and returns its path

GOOD: tuple[Row, ...] = (
    {"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
    {"problem": "2 + 2?", "level": "Level 3", "type": "Algebra", "solution": r"It is \boxed{4}."},
    {"problem": "3 + 3?", "answer": "6", "subject": "Algebra", "level": 1, "unique_id": "a/1.json"},
    {"question": "4 + 4?", "answer": "$8$", "system": "Be brief."},
    {"problem": "5 + 5?", "ground_truth_answer": "10"},
    {"question": "Which is even?", "choices": ["1", "2"], "answer": 1},
    {"question": "Which is odd?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answerKey": "A"},
    {"question": "Which is prime?", "options": {"A": "6", "B": "7"}, "answer": "7", "answer_idx": "B", "src": "own"},
    {"article": "Tom has 3 pens.", "question": "How many?", "options": ["2", "3"], "answer": "B", "answer_index": 1},
    {"Body": "Tom has 3 pens.", "Question": "How many?", "Answer": 3.0, "Type": "Addition", "level": 3.0},
    {"question": "6 + 6?", "answer": "#### Step 1\nAdd.\n#### 12 pens\nThe answer is: 12", "hint": "", "image": None},
    {"question": "Which?", "option_a": "1", "option_b": "2", "correct": "b"},
    {"question": "Which?", "correct_answer": "a", "distractor1": "b", "distractor2": "c", "distractor3": "d"},
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "7 + 7?"}],
        "ground_truth": "14",
    },
    {
        "prompt": [{"role": "user", "content": "8 + 8?"}],
        "reward_model": {"ground_truth": "16"},
        "extra_info": {"level": 1},
    },
    {"prompt": "9 + 9?", "completion": [{"role": "assistant", "content": [{"type": "text", "text": r"\boxed{18}"}]}]},
)
PLAIN = items(r"""<script>alert(1)</script> {} {{7*7}} {0.__class__} %s%n ../../etc/passwd |a|b| `rm` \ \boxed{ \boxed{}
    \boxed{\boxed{1}} #### << $ $$ Level nan -0 1e999 3-1 1-999 text label""")
CONTROLS = [
    "\x00",
    "\x1b]0;title\x07",
    "\x1b[2J",
    "a\nb",
    "a\u2028b",
    "\u202eabc",
    "\ufeff",
    "\udcff",
    "\ud800",
    "\U0010ffff",
]
TEXTS = ["", " ", "#### ", *PLAIN, *CONTROLS]
NUMBERS = [0, -1, 1.5, 10**18, 10**400, 10**5000, float("nan"), float("inf")]
VALUES = [None, True, False, [], {}, [[]], [None], {"": ""}, *NUMBERS]
REPEATED = items(r"""\boxed{ } { ( 1,111 1{,}111 ,\!111 #### answer answer( <<
    \text{ - 1/ 9^{ \frac{ = x= , a_ ^ A) \ | _{ f(""")
REPEATED += [" ", "\n", "x ", "{ ", r"\text ", "answer is ", "answer is (", "####\n", "and "]


def fuzz_data(rng: random.Random, folder: Path) -> str:
    """Run one case in an empty folder. Returns "ok", "refused", or a description of what is bad."""
    try:
        with time_limit(LIMIT):
            return grade_hostile(rng, folder) if rng.random() < 0.3 else load_hostile(rng, folder)
    except TooLong:
        return f"bad: longer than {LIMIT} s"
    except Exception as error:
        return f"bad: {type(error).__name__}: {str(error)[:300]!r}"


# Problem files


def load_hostile(rng: random.Random, folder: Path) -> str:
    damage = rng.choice(DAMAGES)
    path = damage(rng, folder)
    try:
        problems = load_problems(path, shuffle_seed=rng.choice([None, 0]))
    except UserError as error:
        return judge_message(str(error), damage.__name__)
    fingerprint(problems)
    assert len(find_overlap(problems, problems)) == len(problems)
    for problem in problems:
        asked = instruct(ask_in_form(problem, rng.choice([*FORMS]), None), "max", 7)
        json.dumps(asdict(asked), ensure_ascii=False).encode()
        assert problem.question in asked.question
    assert len({problem.id for problem in problems}) == len(problems)
    try:
        select(
            problems, parse_levels(rng.choice([*TEXTS, problems[0].level or "3-5"])), parse_subjects(rng.choice(TEXTS))
        )
    except UserError as error:
        return judge_message(str(error), damage.__name__) if "bad" in judge_message(str(error), "") else "ok"
    return "ok"


def judge_message(message: str, damage: str) -> str:
    if any(unicodedata.category(char)[0] == "C" for char in message):
        return f"bad: {damage}: control characters in {message[:300]!r}"
    return "refused" if 10 < len(message) <= LONGEST_LINE else f"bad: {damage}: a message of {len(message)} characters"


def write_rows(rng: random.Random, folder: Path, rows: list[Row]) -> Path:
    path = folder / "data.jsonl"
    escape = rng.random() < 0.5
    encode = functools.partial(json.dumps, ensure_ascii=escape)
    text = encode(rows) if rng.random() < 0.3 else "\n".join(map(encode, rows))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def some_rows(rng: random.Random) -> list[Row]:
    return [dict(row) for row in rng.choices(GOOD, k=rng.randint(1, 5))]


def flip_bytes(rng: random.Random, folder: Path) -> Path:
    path = write_rows(rng, folder, some_rows(rng))
    raw = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    path.write_bytes(raw)
    return path


def cut_or_repeat(rng: random.Random, folder: Path) -> Path:
    path = write_rows(rng, folder, some_rows(rng))
    raw = path.read_bytes()
    start, end = sorted(rng.choices(range(len(raw) + 1), k=2))
    path.write_bytes(
        rng.choice([raw[:start], raw[start:], raw[:start] + raw[end:], raw + raw[start:end], raw[:end] * 3])
    )
    return path


def other_format(rng: random.Random, folder: Path) -> Path:
    """CSV, parquet or gzip, sometimes with bytes that are wrong."""
    rows, kind = some_rows(rng), rng.randrange(3)
    path = folder / ("data.jsonl.gz", "data.csv", "data.parquet")[kind]
    if kind == 0:
        path.write_bytes(gzip.compress(write_rows(rng, folder, rows).read_bytes()))
    elif kind == 1:
        with open(path, "w", newline="") as file:
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1] * rng.randint(1, 3)), path)
    raw = bytearray(path.read_bytes())
    for _ in range(rng.choice([0, 1, 4])):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    path.write_bytes(raw[: rng.choice([len(raw), rng.randrange(len(raw))])])
    return path


def hostile_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind == 2:
        return rng.choice(VALUES)
    if kind == 3:
        return rng.choice(REPEATED) * rng.choice([2, 50, 2000, 200_000])
    items = [hostile_value(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 4, 11]))]
    return items if kind == 4 else {rng.choice([*TEXTS, "text", "label"]): item for item in items}


def replace_values(rng: random.Random, folder: Path) -> Path:
    rows = some_rows(rng)
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows)
        name = rng.choice([*row, "id", "system", "level", "subject", "answer", "choices"])
        row[name] = hostile_value(rng)
    return write_hostile(folder, rows)


def write_hostile(folder: Path, rows: list[Row]) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes("\n".join(map(dump, rows)).encode("utf-8", "surrogatepass"))
    return path


def dump(row: Row) -> str:
    """As JSON, with integers of any length, which json.dumps refuses from 4,301 digits on."""
    text = json.dumps(row, default=str, ensure_ascii=len(row) % 2 == 0) if not _holds_long(row) else None
    return text if text is not None else '{"question": "x", "answer": 1' + "0" * 5000 + "}"


def _holds_long(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_long, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and value >= 10**4300


def rename_fields(rng: random.Random, folder: Path) -> Path:
    rows = some_rows(rng)
    for row in rows:
        for name in rng.sample(sorted(row), rng.randint(0, len(row))):
            row[rng.choice([*TEXTS, "problem", "question", "answer", "choices", "solution", "label"])] = row.pop(name)
        if rng.random() < 0.1:
            row.update({f"field {n}\x1b": n for n in range(10_000)})
    return write_hostile(folder, rows)


def nest(rng: random.Random, folder: Path) -> Path:
    path = folder / "data.json"
    depth = rng.choice([100, 900, 990, 1000, 100_000])
    opening, closing = rng.choice([("[", "]"), ('{"question":', "}"), ('{"question": "x", "choices":[', "]}")])
    path.write_text(opening * depth + "1" + rng.choice([closing * depth, ""]))
    return path


def recode(rng: random.Random, folder: Path) -> Path:
    path = write_rows(rng, folder, [*some_rows(rng), {"question": "café ½ 日本", "answer": "1"}])
    text = path.read_bytes().decode("utf-8", "surrogatepass")
    coding = rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp1252", "utf-7", "punycode"])
    ending = rng.choice(["\n", "\r\n", "\r", "\n\n\n", "\u2028", "\x00"])
    path.write_bytes(text.replace("\n", ending).encode(coding, "replace"))
    return path


def swell(rng: random.Random, folder: Path) -> Path:
    path = folder / "data.jsonl"
    kind = rng.randrange(5)
    if kind == 0 and rng.random() < 0.1:
        text = json.dumps({rng.choice(["question", "answer", "id", "system"]): "x" * HUGE, "problem": "x"})
    elif kind == 1:
        text = "\n".join(
            [json.dumps({"question": "x", "answer": "1", "id": rng.choice(["a", "a-2"])}) for _ in range(5000)]
        )
    elif kind == 2:
        text = rng.choice([" ", "\n", "\x00", "\t", "[", "{", "\ufeff"]) * 1_000_000
    elif kind == 3:
        text = "[" + ",".join(["{}"] * 100_000) + "]"
    else:
        text = json.dumps({"question": rng.choice(REPEATED) * 100_000, "answer": rng.choice(REPEATED) * 1000})
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path


def odd_path(rng: random.Random, folder: Path) -> Path:
    good = write_rows(rng, folder, some_rows(rng))
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "dangling").symlink_to(folder / "nowhere")
    named = folder / "a\x1b]0;b\x07\u202e\n.jsonl"
    named.write_bytes(rng.choice([b"{", good.read_bytes()]))
    odd = [
        folder,
        folder / "missing",
        folder / "a\0b",
        folder / "\ud800",
        folder / "\udcff",
        folder / ("x" * 5000),
        named,
    ]
    return rng.choice(
        [*odd, *(folder / name for name in ("pipe", "loop", "zero", "dangling")), good / "below", Path("")]
    )


DAMAGES: list[Damage] = [
    flip_bytes,
    cut_or_repeat,
    rename_fields,
    nest,
    recode,
    swell,
    odd_path,
    other_format,
    *[replace_values] * 3,
]
