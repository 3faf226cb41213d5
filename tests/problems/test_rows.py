"""Problem files by format: CSV, parquet and gzip hold what JSONL holds; chats, verl's and TRL's rows; fields of other names."""

import csv
import gzip
import importlib.util
import json
import logging

import pyarrow
import pyarrow.parquet
import pytest

from o1core.errors import UserError
from o1core.problems import load_problems, rows

ROWS = [
    {"problem": "1 + 1?", "answer": "2", "level": 3.0},
    {"problem": 'Say "a, b"\nand c', "answer": "0.50", "level": None},
    {"problem": "größer?", "answer": "7", "level": 1.0},
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def comma(path, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def packed(path):
    gz = path.with_name(path.name + ".gz")
    gz.write_bytes(gzip.compress(path.read_bytes()))
    return gz


def test_every_format_holds_the_same_problems(tmp_path):
    expected = load_problems(jsonl(tmp_path / "a.jsonl", ROWS))
    assert [(p.answer, p.level) for p in expected] == [("2", "3"), ("0.50", None), ("7", "1")]
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(ROWS))
    files = [comma(tmp_path / "b.csv", ROWS), comma(tmp_path / "c.tsv", ROWS, "\t"), parquet(tmp_path / "d", ROWS)]
    files += [packed(tmp_path / "a.jsonl"), packed(listed), packed(files[0]), packed(files[1])]
    for file in files:
        assert load_problems(file) == expected, file
    several = load_problems([tmp_path / "a.jsonl", tmp_path / "b.csv"])
    assert [p.id for p in several] == [p.id for p in expected] + [f"{p.id}-2" for p in expected]


def test_ten_thousand_rows_of_csv_and_parquet(tmp_path):
    table = [{"question": f"{n} + {n * n}?", "answer": n + n * n, "level": n % 5 + 1} for n in range(10_000)]
    for file in (parquet(tmp_path / "a.parquet", table), comma(tmp_path / "a.csv", table)):
        problems = load_problems(file)
        held = [{"question": p.question, "answer": int(p.answer), "level": int(p.level)} for p in problems]
        assert held == table and len({p.id for p in problems}) == 10_000


USER, SYSTEM = {"role": "user", "content": "1 + 1?"}, {"role": "system", "content": "Be brief."}
SAYS = {"role": "assistant", "content": r"It is \boxed{2}."}


@pytest.mark.parametrize(
    ("row", "system"),
    [
        ({"messages": [SYSTEM, USER], "ground_truth": "2"}, "Be brief."),
        ({"messages": [USER, SAYS]}, None),
        ({"messages": [{"role": "user", "content": "Hi."}, SAYS, USER], "expected_answer": "2"}, None),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]}], "final_answer": ["2"]},
            None,
        ),
        ({"prompt": "1 + 1?", "completion": " The answer is 2."}, None),  # TRL
        ({"prompt": [SYSTEM, USER], "completion": [SAYS]}, "Be brief."),
        ({"prompt": [USER], "solution": r"\boxed{2}"}, None),
        ({"problem": "1 + 1?", "final_answer": 2, "messages": [USER, SAYS]}, None),
        (
            {
                "data_source": "openai/gsm8k",
                "prompt": [USER],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "2"},
                "extra_info": {
                    "split": "train",
                    "index": 7,
                    "answer": "1 + 1 = <<1+1=2>>2\n#### 2",
                    "level": "Level 4",
                },
            },
            None,
        ),
    ],
)
def test_chats_and_the_rows_of_trainers(tmp_path, row, system):
    for file in (jsonl(tmp_path / "a.jsonl", [row]), parquet(tmp_path / "a.parquet", [row])):
        (problem,) = load_problems(file)
        assert (problem.question, problem.answer, problem.system) == ("1 + 1?", "2", system)
        assert problem.level == ("4" if "extra_info" in row else None)


def test_turns_before_the_last_are_said_to_be_left_out(tmp_path, caplog):
    chat = {"messages": [{"role": "user", "content": "Hi."}, SAYS, USER], "answer": "2"}
    with caplog.at_level(logging.INFO):
        load_problems(jsonl(tmp_path / "a.jsonl", [chat, {"messages": [USER], "answer": "2"}]))
    assert ["of 1 chats the last user turn is asked" in r.getMessage() for r in caplog.records] == [True]


def test_fields_of_other_names(tmp_path):
    row = {"q": "1 + 1?", "problem": "17", "meta": {"gold": 2, "hard": "Level 5"}, "answer": "no", "solution": "none"}
    names = {"question_field": "q", "answer_field": "meta.gold", "level_field": "meta.hard"}
    (problem,) = load_problems(jsonl(tmp_path / "a.jsonl", [row]), **names)
    assert (problem.question, problem.answer, problem.level) == ("1 + 1?", "2", "5")
    chosen = {"stem": "Which?", "options": ["no", "yes"], "answer": "A", "gold letter": "B"}
    (problem,) = load_problems(
        jsonl(tmp_path / "b.jsonl", [chosen]), question_field="stem", answer_field="gold letter", level_field="hard"
    )
    assert (problem.question, problem.answer, problem.level) == ("Which?\n(A) no\n(B) yes", "B", None)
    with pytest.raises(UserError, match=r'line 1: no field "gold", which --answer-field names \(found: "q", "problem"'):
        load_problems(tmp_path / "a.jsonl", answer_field="gold")


@pytest.mark.parametrize(
    "row, field, asked",
    [
        ({"hint": "7"}, "hint", "q"),
        ({"text": "7"}, "text", "q"),
        ({"context": {"of": "7"}}, "context.of", "q"),
        ({"mine": "7", "reward_model": {"ground_truth": "5"}}, "mine", "q"),
    ],
)
def test_a_field_that_is_named_as_the_answer_is_nothing_else(tmp_path, caplog, row, field, asked):
    with caplog.at_level(logging.INFO):
        (problem,) = load_problems(jsonl(tmp_path / "a.jsonl", [{"question": "q"} | row]), answer_field=field)
    assert (problem.question, problem.answer) == (asked, "7") and not caplog.records
    choices = {"question": "q", "mine": "7", "correct_answer": "5", "distractor1": "1", "distractor2": "2"}
    (problem,) = load_problems(jsonl(tmp_path / "b.jsonl", [choices | {"distractor3": "3"}]), answer_field="mine")
    assert f"({problem.answer}) 7" in problem.question and " 5" not in problem.question


def test_a_level_field_that_no_row_has_is_told(tmp_path, caplog):
    load_problems(jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "7", "hardness": 1}]), level_field="hardnes")
    assert 'no row has the field "hardnes", which --level-field names; did you mean hardness?' in caplog.text
    with pytest.raises(UserError, match=r'no field "mine", which --answer-field names \(found: "question"\)$'):
        load_problems(jsonl(tmp_path / "b.jsonl", [{"question": "q", "mine": None}]), answer_field="mine")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "question,result\n1 + 1?,2\n",
            r'a.csv, line 2: no answer; .*found: "question", "result".*--answer-field',
        ),
        (
            "a.csv",
            "question,answer\n1, 2, or 3?,2\n",
            "line 2: 4 cells, but the first line names 2 columns; quote a cell",
        ),
        ("a.csv", 'question,answer\n"1 + 1?,2\n', "a.csv, line 2: not valid CSV: unexpected end"),
        ("a.csv", "question,question,answer\n", "two columns are called 'question'"),
        ("a.csv", b"question,answer\ncaf\xe9,2\n", "a.csv, after line .: not UTF-8"),
        ("a.csv", "question;answer\n1 + 1?;2\n", 'line 2: no question; .*found: "question;answer"'),
        ("a.csv", "", "no problems in this file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"question": "x", "answer": "1"}\n' * 9, mtime=0)[:-12],
            "a damaged or cut-off gzip file",
        ),
        ("a.jsonl.gz", b"\x1f\x8bno gzip", "a damaged or cut-off gzip file"),
        ("a.parquet", b"PAR1 no parquet PAR1", "cannot be read as parquet after row 0"),
        ("a.json", '[{"messages": [{"role": "system", "content": "x"}]}]', '"messages" has no user turn'),
        ("a.json", '[{"messages": ["1 + 1?"]}]', '"messages" must be a list of'),
        ("a.json", '[{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}]', "a turn that is no text"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        load_problems(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_columns_of_types_that_are_no_text(tmp_path):
    table = pyarrow.table({"question": ["x", "y"], "answer": pyarrow.array([b"1", b"2"], pyarrow.binary())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r'a.parquet, row 1: the field "answer" is a bytes; it must be text or a number'
    ):
        load_problems(tmp_path / "a.parquet")
    odd = pyarrow.table({"question": ["x"], "answer": pyarrow.array([10**18], pyarrow.timestamp("us"))})
    pyarrow.parquet.write_table(odd, tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read as parquet after row 0"):
        load_problems(tmp_path / "b.parquet")


def test_a_float_of_32_bits_has_the_digits_that_were_meant(tmp_path):
    table = pyarrow.table({"question": ["x", "y"], "answer": pyarrow.array([0.1, 2.5], pyarrow.float32())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [p.answer for p in load_problems(tmp_path / "a.parquet")] == ["0.1", "2.5"]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    parquet(tmp_path / "a.parquet", ROWS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="which is not installed; pip install pyarrow"):
        load_problems(tmp_path / "a.parquet")


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_UNPACKED", 100_000)
    blank = tmp_path / "bomb.jsonl.gz"
    blank.write_bytes(gzip.compress(b"\n" * 300_000))
    files = [blank, parquet(tmp_path / "a.parquet", [{"question": "x" * 9000, "answer": "1"}] * 100)]
    for file in files:
        with pytest.raises(UserError, match="unpacks to more than"):
            load_problems(file)
