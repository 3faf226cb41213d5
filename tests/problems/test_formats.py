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


PRIME = "Which of these is a prime number?"
TEN = ["4", "6", "7", "8", "9", "10", "12", "14", "15", "16"]


@pytest.mark.parametrize(
    "row",
    [
        {"options": TEN, "answer": "C", "answer_index": 2, "cot_content": "", "category": "math"},  # MMLU-Pro
        {"options": dict(zip("ABCDEFGHIJ", TEN)), "answer": "7", "meta_info": "step1", "answer_idx": "C"},  # MedQA
        {"options": dict(zip("JIHGFEDCBA", TEN[::-1])), "answer_idx": "C"},
        {"options": [f"{name}){text}" for name, text in zip("ABCDEFGHIJ", TEN)], "correct": "C"},  # AQuA
        {"options": [f"({name}) {text}" for name, text in zip("ABCDEFGHIJ", TEN)], "answer": "C."},
        {"choices": [{"label": name, "text": text} for name, text in zip("ABCDEFGHIJ", TEN)], "answerKey": "C"},
        {"choices": {"text": TEN, "label": list("abcdefghij")}, "answer": "Option C"},
        dict(zip("ABCDEFGHIJ", TEN)) | {"Answer": "(C)"},
        {f"option_{name}": text for name, text in zip("abcdefghij", TEN)} | {"answer": "7"},
        {f"option{at}": text for at, text in enumerate(TEN, 1)} | {"answer": "c"},
        {"options": [4, 6, 7, 8, 9, 10, 12, 14, 15, 16], "choices": None, "answer": "7"},
    ],
)
def test_options_are_asked_whatever_their_form(tmp_path, row):
    (problem,) = load_problems(write(tmp_path / "data.jsonl", {"question": PRIME} | row))
    lines = [f"({name}) {text}" for name, text in zip("ABCDEFGHIJ", TEN)]
    assert (problem.question, problem.answer) == ("\n".join([PRIME, *lines]), "C")


def test_an_answer_that_is_a_label_and_a_text_follows_the_index(tmp_path):
    """MedQA states the text and the label: a text that looks like another choice's label names its own."""
    row = {"question": "Which?", "options": {"A": "B", "B": "A", "C": "D", "D": "C"}, "answer": "A", "answer_idx": "B"}
    texts = {"question": "Which?", "options": ["3", "1", "2"], "answer": "2"}
    first = {"question": "Which?", "choices": {"label": ["1", "2", "3"], "text": ["3", "1", "2"]}, "answerKey": 2}
    problems = load_problems(write(tmp_path / "data.jsonl", row, texts, first))
    assert [problem.answer for problem in problems] == ["B", "C", "B"]


@pytest.mark.parametrize(
    ("row", "before"),
    [
        ({"article": "Tom bought three apples.", "question": "What did Tom buy?", "options": ["nuts", "apples"]}, 1),
        ({"Body": "Tom has 3 pens.", "Question": "How many?", "Equation": "( 3.0 )", "Type": "Addition"}, 1),
        ({"question": "How many?", "context": "Tom has 3 pens."}, 1),
        ({"passage": "Tom has 3 pens.", "problem": "How many?", "hint": "Count them."}, 2),
        ({"context": "Tom has 3 pens.", "question": "Tom has 3 pens. How many?"}, 0),  # said already
        ({"context": "", "question": "How many?", "image": None, "text": "Q: How many? A: 3"}, 0),
    ],
)
def test_what_a_question_is_about_is_asked_before_it(tmp_path, row, before):
    (problem,) = load_problems(write(tmp_path / "data.jsonl", row | {"answer": "B"}))
    question = row.get("question") or row.get("Question") or row["problem"]
    parts = problem.question.split("\n(A)")[0].split("\n\n")
    assert parts[-1] == question and len(parts) == before + 1
    names = ("article", "Body", "context", "passage", "hint")
    assert all(row[name] in problem.question for name in names if name in row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": "a ) 38 , b ) 27", "answer": "a"}, '"options" must be a list of 2 to 10 texts'),
        ({"options": {"A": "1"}, "answer": "A"}, '"options" must be a list of 2 to 10 texts'),
        ({"options": [str(at) for at in range(11)], "answer": "A"}, '"options" must be a list of 2 to 10 texts'),
        ({"options": ["1", "2"], "choices": ["1", "3"], "answer": "A"}, '"choices", "options" differ; take one'),
        ({"options": ["1", "2"], "answer": "A", "answer_index": 1}, '"answer_index", "answer" name different choices'),
        ({"options": ["same", "same"], "answer": "same"}, '"answer" is "same"; with 2 choices it must be a letter'),
        ({"context": ["Tom has 3 pens."], "answer": "3"}, 'the field "context" is a list; it must be text'),
        ({"image": "a.png", "answer": "3"}, 'the field "image" belongs to the question and cannot be asked as text'),
        ({"input": "3, 4", "answer": "3"}, 'the field "input" may belong to the question; rename it to context'),
        ({"Answer": "3", "answer": "4"}, '"Answer" and "answer" are one field and differ; take one of them out'),
        ({"Question": "y", "answer": "4"}, '"question" and "Question" are one field and differ'),
    ],
)
def test_half_a_question_is_refused(tmp_path, row, message):
    path = write(tmp_path / "data.jsonl", GOOD, {"question": "x"} | row)
    with pytest.raises(UserError, match=rf"^{path}, line 2: .*{message}"):
        load_problems(path)


def test_fields_that_are_not_read_are_named_once(tmp_path, caplog):
    rows = [GOOD | {"cot_content": "x", "src": None}, GOOD | {"cot_content": "y", "\x1b[2J": 1}, GOOD]
    with caplog.at_level(logging.INFO):
        load_problems(write(tmp_path / "data.jsonl", *rows))
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
        'fields that are not read: "cot_content", "\ufffd[2J"'
    ]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("2+3=<<2+3=5>>5\n#### 5\nThe answer is: 5", "5"),
        ("2+3 is 5.\n#### 5 apples\n\nNote: count them.", "5"),
        ("#### Step 1\nAdd 2 and 3.\n#### Step 2\nSo the answer is 5.", "5"),
        ("The answer is 5.", "5"),
        ("#### Step 1\nAdd.\n#### 5\n#### Note\nDone.", "5"),
        ("#### 1. Add 2 and 3\nIt is 5.\n#### 2. Conclude\nThe final answer is $5$.", "5"),
        ("Add.\n#### Answer: 5", "5"),
        ("Add.\n#### Final Answer\n**5**\nThat is all.", "5"),
        ("It is 5.\n#### **5**", "5"),
        ("<<2+3=5>>\n####5.", "5"),
        ("It is.\n#### $1,234.50", "$1,234.50"),
        ("It is.\n#### -3", "-3"),
        ("It is.\n#### 3/4 cups", "3/4"),
        ("It is.\n#### 5 million", "5 million"),
        ("It is.\n#### 5 p.m.", "5 p.m."),
        ("It is.\n#### 2 hours 30 minutes", "2 hours 30 minutes"),
        ("It is.\n#### 3 tenths", "3 tenths"),
        ("It is.\n#### x + 1", "x + 1"),
        ("It is.\n#### Yes", "Yes"),
        ("#### Step 1\nAdd.\n#### Step 2\nSo it is \\boxed{5}.", "5"),
        ("Add. So the answer is $x^2 + 1$.", "x^2 + 1"),
        ("The answer is: 2 apples", "2"),
        ("### Step 1\nAnswer: 7\nThen more.\nAnswer: 8", "8"),
        ("x + 1", "x + 1"),
        ("Paris", "Paris"),
        ("5 apples", "5 apples"),
    ],
)
def test_the_answer_in_a_solution(tmp_path, answer, gold):
    (problem,) = load_problems(write(tmp_path / "data.jsonl", {"question": "?", "answer": answer}))
    assert problem.answer == gold


@pytest.mark.parametrize("answer", ["#### Step 1\nAdd 2.\n#### Step 2\nIt is 5.", "####", "<<2+3=5>>5", "#### Answer:"])
def test_a_solution_without_a_final_answer_is_refused(tmp_path, answer):
    with pytest.raises(UserError, match='line 1: no final answer in the field "answer"; end it with a line "#### 72"'):
        load_problems(write(tmp_path / "data.jsonl", {"question": "?", "answer": answer}))


def test_a_solution_is_searched_as_an_answer_is(tmp_path):
    rows = [{"problem": "?", "solution": text} for text in ("Add.\n#### 5", "So the answer is 5.", r"It is \boxed{5}.")]
    assert [p.answer for p in load_problems(write(tmp_path / "data.jsonl", *rows))] == ["5"] * 3


@pytest.mark.parametrize(
    "digits",
    ["0.00005", "1e16", "5E-5", "0.50", "-0.0", "1234567890123456789012", "0.1000000000000000055511151231257827"],
)
def test_a_number_keeps_the_digits_of_the_file(tmp_path, digits):
    choices = f'{{"question": "?", "choices": [{digits}, 7], "answer": "A"}}'
    plain, chosen = load_problems(write(tmp_path / "data.jsonl", f'{{"question": "?", "answer": {digits}}}', choices))
    assert (plain.answer, chosen.question) == (digits, f"?\n(A) {digits}\n(B) 7")


@pytest.mark.parametrize(
    ("level", "read"),
    [("3.0", "3"), ("3", "3"), ('"Level 3"', "3"), ('"3.0"', "3"), ("null", None), ('"hard"', "hard"), ("2.5", "2.5")],
)
def test_a_level_is_a_whole_number_where_it_is_one(tmp_path, level, read):
    (problem,) = load_problems(write(tmp_path / "d.jsonl", f'{{"question": "?", "answer": 1, "level": {level}}}'))
    assert problem.level == read


@pytest.mark.parametrize("text", ["answer " * 140_000, "final " * 160_000, "####" * 240_000, "#### 1" + "9" * 900_000])
def test_a_long_solution_takes_linear_time(tmp_path, text):
    # Anything quadratic in a million characters would take hours and meet the test's time limit.
    load_problems(write(tmp_path / "d.jsonl", {"question": "?", "answer": text + "\nThe answer is 5."}))


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
        ([GOOD, {"query": "x", "answer": "1"}], r'line 2: no question; .*"problem" \(found: "query", "answer"\)'),
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
        (["1" * 10_000], "line 1: a number where an object"),
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
