"""Problem files: every published form, and what is refused."""

import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from o1core.errors import UserError
from o1core.problems import load_problems

DATA = Path(__file__).parents[1] / "data"


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_gsm8k():
    problems = load_problems(DATA / "gsm8k.jsonl")
    assert [problem.answer for problem in problems] == ["18", "3", "276,000"]
    assert problems[0].question.startswith("Janet’s ducks lay 16 eggs per day.")
    assert (problems[0].level, problems[0].subject, problems[0].system) == (None, None, None)


def test_math_takes_the_last_box_of_the_solution():
    problems = load_problems(DATA / "math.jsonl")
    assert [problem.answer for problem in problems] == ["0", "8+4i", "2", "(8,38)"]
    assert (problems[0].level, problems[0].subject) == ("5", "Algebra")


def test_math500():
    problems = load_problems(DATA / "math500.jsonl")
    assert problems[0].id == "test/precalculus/807.json"
    assert problems[0].answer == r"\left( 3, \frac{\pi}{2} \right)"
    assert (problems[0].level, problems[0].subject) == ("2", "Precalculus")


def test_gaokao_keeps_its_rows_without_an_answer(caplog):
    with caplog.at_level(logging.WARNING):
        problems = load_problems(DATA / "gaokao2023en.jsonl")
    assert [problem.answer for problem in problems] == [r"\{x|-2\leq x < 1\}", "80", "D", ""]
    assert problems[2].id == "052023SATS3_14"
    assert "1 of 4 answers are empty" in caplog.text
    assert "line 4" in caplog.text


def test_o1_pruner_json_list():
    problems = load_problems(DATA / "o1pruner.json")
    assert [problem.answer for problem in problems] == [r"\{x|-2\leq x < 1\}", r"\frac{\pi}{3}", "28800"]
    assert problems[2].question.startswith("A Senate committee")


def test_plain_fields(tmp_path):
    path = write(
        tmp_path / "data.jsonl",
        {"problem": "1 + 1?", "answer": 2, "system": "Be brief."},
        {"question": "2 + 2?", "answer": r"It is \boxed{4}."},
        "",
        {"question": "In dollars?", "answer": "$5"},
    )
    assert [(p.question, p.answer, p.system) for p in load_problems(path)] == [
        ("1 + 1?", "2", "Be brief."),
        ("2 + 2?", "4", None),
        ("In dollars?", "$5", None),
    ]


def test_choices_become_lettered_lines(tmp_path):
    path = write(tmp_path / "data.jsonl", {"question": "Which is even?", "choices": ["1", "2", 3], "answer": "b"})
    (problem,) = load_problems(path)
    assert (problem.question, problem.answer) == ("Which is even?\n(A) 1\n(B) 2\n(C) 3", "B")


CHOSEN = ("Which is even?\n(A) 1\n(B) 2\n(C) 3", "B")


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["1", "2", "3"], "answer": "(b)"},
        {"choices": ["1", "2", "3"], "answer": 1},
        {"choices": {"text": ["1", "2", "3"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"choices": {"text": ["1", "2", "3"], "label": ["1", "2", "3"]}, "answerKey": "2"},
    ],
)
def test_published_forms_of_multiple_choice(tmp_path, row):
    (problem,) = load_problems(write(tmp_path / "data.jsonl", {"question": "Which is even?"} | row))
    assert (problem.question, problem.answer) == CHOSEN


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [("question", "correct_answer", "distractor{}"), ("Question", "Correct Answer", "Incorrect Answer {}")],
)
def test_forms_that_name_the_right_choice_get_an_order(tmp_path, question, right, wrong):
    def row(text, *others):
        return {question: text, right: "two"} | {wrong.format(at): other for at, other in enumerate(others, 1)}

    rows = [row(f"Which is even, {n}?", "one", "three", "five") for n in range(60)]
    problems = load_problems(write(tmp_path / "data.jsonl", *rows))
    for problem in problems:
        lines = problem.question.split("\n")[1:]
        assert [line[:4] for line in lines] == ["(A) ", "(B) ", "(C) ", "(D) "]
        assert {line[4:] for line in lines} == {"one", "two", "three", "five"}
        assert f"({problem.answer}) two" in lines
    assert {problem.answer for problem in problems} == set("ABCD")
    assert load_problems(write(tmp_path / "data.jsonl", *rows)) == problems
    turned = [row(f"Which is even, {n}?", "five", "one", "three") for n in range(60)]
    assert load_problems(write(tmp_path / "data.jsonl", *turned)) == problems


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes('\ufeff{"question": "a\u2028b", "answer": "1"}\r\n{"question": "c", "answer": "2"}'.encode())
    assert [problem.question for problem in load_problems(path)] == ["a\u2028b", "c"]


def test_ids_are_distinct_and_do_not_depend_on_the_place(tmp_path):
    one, two = {"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}
    named = [{**two, "id": "x"}, {**two, "id": "x-2"}, {**two, "id": "x"}]
    problems = load_problems(write(tmp_path / "a.jsonl", one, one, two, *named))
    ids = [problem.id for problem in problems]
    assert len(set(ids)) == 6
    assert ids[1] == ids[0] + "-2"
    assert ids[3:] == ["x", "x-2", "x-3"]
    assert load_problems(write(tmp_path / "b.jsonl", two, one))[1].id == ids[0]


def test_shuffle_is_seeded_and_precedes_the_limit(tmp_path):
    path = write(tmp_path / "data.jsonl", *({"question": f"{n}?", "answer": n} for n in range(100)))
    in_order = [problem.answer for problem in load_problems(path)]
    shuffled = [problem.answer for problem in load_problems(path, shuffle_seed=42)]
    assert in_order == [str(n) for n in range(100)]
    assert shuffled != in_order
    assert sorted(shuffled) == sorted(in_order)
    assert [problem.answer for problem in load_problems(path, limit=7, shuffle_seed=42)] == shuffled[:7]
    assert [problem.answer for problem in load_problems(path, limit=7)] == in_order[:7]
    assert [problem.answer for problem in load_problems(path, shuffle_seed=43)] != shuffled


GOOD = {"question": "1 + 1?", "answer": "2"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, '{"question": "1 + 1?", "answ'], r"line 2: not valid JSON: .* \(column \d+\)"),
        ([GOOD, "[1, 2]"], "line 2: a list where an object"),
        (["[", json.dumps(GOOD) + ",", "{"], r"jsonl: not valid JSON: .* \(line 4, column 1\)"),
        ([json.dumps([GOOD, {"question": "x"}])], r'item 2: no answer; .*"answer".*\(found: "question"\)'),
        ([GOOD, {"prompt": "x", "answer": "1"}], r'line 2: no question; .*"problem" \(found: "prompt", "answer"\)'),
        ([GOOD, {"question": " ", "answer": "1"}], "line 2: no question"),
        ([{"problem": "x", "solution": "It is 5."}], r'line 1: no \\boxed\{\} in the field "solution"'),
        ([{"question": "x", "answer": "2*3 = <<2*3=6>>6"}], 'line 1: no final answer in the field "answer"'),
        ([{"question": "x", "answer": ["1"]}], 'line 1: the field "answer" is a list'),
        ([{"question": "x", "answer": True}], 'line 1: the field "answer" is a bool'),
        ([{"question": "x", "choices": ["1", "2"], "answer": "C"}], 'line 1: .*"C"; .* a letter from "A" to "B"'),
        ([{"question": "x", "choices": "1, 2", "answer": "A"}], 'line 1: the field "choices" must be a list'),
        ([{"question": "x", "choices": ["1", "2"], "answer": 2}], 'line 1: .*"2"; .*, or a number from 0 to 1'),
        ([{"question": "x", "choices": ["1", "2"], "answer": True}], 'line 1: the field "answer" is a bool'),
        (
            [{"question": "x", "choices": ["1", "2"]}],
            r'line 1: no answer; .*"answerKey" \(found: "question", "choices"\)',
        ),
        ([{"question": "x", "choices": {"text": ["1", "2"]}, "answerKey": "A"}], 'line 1: the field "choices" must be'),
        ([{"question": "x", "choices": {"text": ["1"], "label": ["A"]}, "answerKey": "A"}], '"choices" must be'),
        ([{"question": "x", "correct_answer": "1", "distractor1": "2"}], 'line 1: no text in the field "distractor2"'),
        ([{"question": "\ud800", "answer": "A"}], "line 1: a text holds half a surrogate pair"),
        ([{"question": "x", "choices": ["\ud800", "y"], "answer": "A"}], "line 1: a text holds half a surrogate pair"),
        (
            [{"question": "x", "choices": ["1", []], "answer": "A"}],
            'line 1: the field "choices" is a list; it must be text',
        ),
        (
            [{"question": "x", "choices": {"text": ["1", "2"], "label": [[], {}]}, "answerKey": "A"}],
            '"label" is a list',
        ),
        (['{"question": "x", "answer": 1' + "0" * 400 + "}"], 'line 1: the field "answer" is no finite number'),
        (['{"question": "x", "answer": NaN}'], 'line 1: the field "answer" is no finite number'),
        ([{"question": "x" * 1_000_001, "answer": "1"}], '"question" has 1,000,001 characters; at most 1,000,000'),
        ([{"question": "x", "answer": "1", "id": "i" * 1001}], '"id" has 1,001 characters; at most 1,000 are read'),
        ([{"question": "x", "answer": "1", "level": "\udfff"}], "line 1: a text holds half a surrogate pair"),
        ([{"quest\x1b]0;ion\x07": "x"}], 'line 1: no question; .*found: "quest\ufffd]0;ion\ufffd"'),
        (["[" * 100_000], "not readable as JSON"),
        (["1" * 10_000], "line 1: a float where an object"),
        (["", " "], "no problems in this file"),
        (["[]"], "no problems in this file"),
    ],
)
def test_a_bad_file_is_refused_with_place_field_and_fix(tmp_path, rows, message):
    path = write(tmp_path / "data.jsonl", *rows)
    with pytest.raises(UserError, match=message) as caught:
        load_problems(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_problems(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        load_problems(tmp_path)
    path = tmp_path / "latin1.jsonl"
    path.write_bytes(b'{"question": "x", "answer": "1"}\n{"question": "caf\xe9", "answer": "1"}\n')
    with pytest.raises(UserError, match="line 2: not valid JSON: not UTF-8"):
        load_problems(path)


def test_a_pipe_and_a_path_with_a_nul_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe"):
        load_problems(tmp_path / "pipe")
    with pytest.raises(UserError, match="no path can hold such characters"):
        load_problems(f"{tmp_path}/a\0b.jsonl")


@pytest.mark.parametrize("rows", [True, False])
def test_a_question_of_100_mb_is_refused_in_bounded_memory(tmp_path, rows):
    path = tmp_path / "data.jsonl"
    with path.open("w") as file:
        file.write('{"question": "' if rows else '[{"question": "')
        for _ in range(100):
            file.write("x" * 2**20)
        file.write('", "answer": "1"}' if rows else '", "answer": "1"}]')
    program = f"""
import resource
from o1core.problems import load_problems
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    load_problems({str(path)!r})
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = "line 1: longer than 32 MiB" if rows else 'item 1: the field "question" has 104,857,600 characters'
    assert run.stderr == "" and expected in run.stdout and run.stdout.count("\n") == 1


def test_a_broken_line_beyond_the_limit_is_refused_too(tmp_path):
    with pytest.raises(UserError, match="line 2"):
        load_problems(write(tmp_path / "data.jsonl", GOOD, "{"), limit=1)
    with pytest.raises(UserError, match="limit"):
        load_problems(write(tmp_path / "data.jsonl", GOOD), limit=0)


def test_a_problem_does_not_depend_on_the_order_of_the_file(tmp_path):
    lines = (DATA / "math500.jsonl").read_text().splitlines()
    shuffled = random.Random(1).sample(lines, len(lines))
    assert set(load_problems(write(tmp_path / "m.jsonl", *shuffled))) == set(load_problems(DATA / "math500.jsonl"))
