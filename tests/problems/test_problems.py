import json
import logging
import random
from pathlib import Path

import pytest

from o1core.errors import UserError
from o1core.problems.formats import Problem, fingerprint, load_problems, overlap, parse_levels, parse_subjects, select

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = Path(__file__).parents[3] / "shared" / "data"  # the full data sets, where they lie beside the repository


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
        ([GOOD, '{"question": "1 + 1?", "answ'], r"line 2, column \d+: not valid JSON"),
        ([GOOD, "[1, 2]"], "line 2: a list where an object"),
        (["[", json.dumps(GOOD) + ",", "{"], "line 4, column 1: not valid JSON"),
        ([json.dumps([GOOD, {"question": "x"}])], r'item 2: no answer; .*"answer".*\(found: question\)'),
        ([GOOD, {"prompt": "x", "answer": "1"}], r'line 2: no question; .*"problem" \(found: prompt, answer\)'),
        ([GOOD, {"question": " ", "answer": "1"}], "line 2: no question"),
        ([{"problem": "x", "solution": "It is 5."}], r'line 1: no \\boxed\{\} in the field "solution"'),
        ([{"question": "x", "answer": "2*3 = <<2*3=6>>6"}], 'line 1: no final answer in the field "answer"'),
        ([{"question": "x", "answer": ["1"]}], 'line 1: the field "answer" is a list'),
        ([{"question": "x", "answer": True}], 'line 1: the field "answer" is a bool'),
        ([{"question": "x", "choices": ["1", "2"], "answer": "C"}], "line 1: .*'C'; .* a letter from A to B"),
        ([{"question": "x", "choices": "1, 2", "answer": "A"}], 'line 1: the field "choices" must be a list'),
        ([{"question": "x", "choices": ["1", "2"], "answer": 2}], "line 1: .*'2'; .*, or a number from 0 to 1"),
        ([{"question": "x", "choices": ["1", "2"], "answer": True}], 'line 1: the field "answer" is a bool'),
        ([{"question": "x", "choices": ["1", "2"]}], r'line 1: no answer; .*"answerKey" \(found: question, choices\)'),
        ([{"question": "x", "choices": {"text": ["1", "2"]}, "answerKey": "A"}], 'line 1: the field "choices" must be'),
        ([{"question": "x", "choices": {"text": ["1"], "label": ["A"]}, "answerKey": "A"}], '"choices" must be'),
        ([{"question": "x", "correct_answer": "1", "distractor1": "2"}], 'line 1: no text in the field "distractor2"'),
        ([{"question": "\ud800", "answer": "A"}], 'line 1: the field "question" holds half a surrogate pair'),
        (["[" * 100_000], "not readable as JSON"),
        (["1" * 10_000], "line 1: not readable as JSON"),
        (["", " "], "no problems in this file"),
        (["[]"], "no problems in this file"),
    ],
)
def test_bad_files_are_named_with_place_field_and_mend(tmp_path, rows, message):
    path = write(tmp_path / "data.jsonl", *rows)
    with pytest.raises(UserError, match=message) as caught:
        load_problems(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_problems(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="directory"):
        load_problems(tmp_path)
    path = tmp_path / "latin1.jsonl"
    path.write_bytes(b'{"question": "x", "answer": "1"}\n{"question": "caf\xe9", "answer": "1"}\n')
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        load_problems(path)


def test_a_broken_line_beyond_the_limit_is_told_too(tmp_path):
    with pytest.raises(UserError, match="line 2"):
        load_problems(write(tmp_path / "data.jsonl", GOOD, "{"), limit=1)
    with pytest.raises(UserError, match="limit"):
        load_problems(write(tmp_path / "data.jsonl", GOOD), limit=0)


def test_fingerprint_follows_texts_answers_and_order_but_not_ids_or_blanks():
    one, two = Problem("a", "1 + 1?", "2"), Problem("b", "2 + 2?", "4")
    assert fingerprint([one, two]) == fingerprint([Problem("c", "1+1?\n", " 2"), two])
    changed = [[two, one], [one], [Problem("a", "1 + 1?", "3"), two], [Problem("a", "1 + 1?", "2", system="s"), two]]
    assert len({fingerprint(problems) for problems in [[one, two], *changed]}) == 5


def test_overlap_finds_the_shared_questions():
    train = [Problem("a", "What is  1 + 1?", "2"), Problem("b", "What is 1 - 1?", "0")]
    test = [Problem("c", "what is 1+1?\n", "2"), Problem("d", "What is 1 / 1?", "1")]
    assert overlap(train, test) == [test[0]]
    assert overlap(train, test[1:]) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"Find $\dfrac{1}{2}$ of x.", r"find \frac12 of $x$"),
        (r"Solve \(x^{2} - 3 = 0\).", "Solve $x^2-3=0$"),
        (r"Compute \[\left( 1 + x \right)\]", "Compute $(1+x)$."),
        (r"It costs \$1,234 in all", "It costs $1234 in all"),
        (r"Is $a \leq b,$ or not?", "Is a ≤ b or not"),
        (r"Take $5\,\text{cm}$", "Take 5 cm"),
        (r"x² + 1", "$x^2 + 1$"),
        (r"$3 \times 4$", "3 × 4"),
        ("the “first” one's", 'The "first" one’s'),
        (r"$a_1, a_2, \ldots, a_n$", "$a_{1}, a_{2}, ..., a_{n}$"),
    ],
)
def test_overlap_sees_through_the_ways_to_set_a_problem(one, other):
    one, other = Problem("a", one, "1"), Problem("b", other, "1")
    assert overlap([one], [other]) == [other]
    assert overlap([other], [one]) == [one]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 1 - 1?", "What is 1 + 1?"),
        ("What is -5?", "What is 5?"),
        ("What is 12?", "What is 1 2?"),
        ("Half of 1 1/2", "Half of 11/2"),
        ("What is 1.5?", "What is 15?"),
        ("What is .5?", "What is 5?"),
        (r"$\frac{1}{23}$", r"$\frac{12}{3}$"),
        ("x² + 1", "x2 + 1"),
        ("3½ hours", "31/2 hours"),
        ("the interval $(1,2)$", "the interval $[1,2]$"),
        ("the point (1,2)", "the point (12)"),
        ("the point (1,234)", "the point (1234)"),
        ("What is 5!?", "What is 5?"),
        ("$f'(x)$", "$f(x)$"),
        (r"$x \le 2$", r"$x \ge 2$"),
        (r"$x^{12}$", r"$x^{1}2$"),
        ("x < 2", "x > 2"),
    ],
)
def test_overlap_keeps_different_problems_apart(one, other):
    one, other = Problem("a", one, "1"), Problem("b", other, "1")
    assert overlap([one], [other]) == []
    assert overlap([other], [one]) == []


def test_generated_tasks_are_the_same_to_the_letter_or_others():
    boards = [Problem(str(at), text, "", task="{}") for at, text in enumerate(["A..B", ".A.B", "a..b", "A..B"])]
    assert overlap(boards[:1], boards[1:]) == boards[3:]
    assert len({fingerprint([board]) for board in [*boards[:2], Problem("x", "A..B", "")]}) == 3


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the full data sets do not lie beside the repository")
def test_overlap_of_the_published_files():
    train, test = (load_problems(PUBLISHED / "math" / name) for name in ("train.jsonl", "test.jsonl"))
    assert len(overlap(train, test)) == 5  # two of them to the letter
    assert overlap(train, load_problems(PUBLISHED / "math" / "math500.jsonl")) == []
    assert overlap(*(load_problems(PUBLISHED / "gsm8k" / name) for name in ("train.jsonl", "test.jsonl"))) == []


MIXED = [
    Problem("a", "1?", "1", level="3", subject="Algebra"),
    Problem("b", "2?", "2", level="4", subject="Number Theory"),
    Problem("c", "3?", "3", level="5", subject="Algebra"),
    Problem("d", "4?", "4"),
]


@pytest.mark.parametrize(
    ("levels", "subjects", "ids"),
    [
        (None, None, "abcd"),
        (["3", "5"], None, "ac"),
        ({"4"}, None, "b"),
        (None, ["algebra"], "ac"),
        (["5", "4"], ["ALGEBRA", "number theory"], "bc"),
    ],
)
def test_select(levels, subjects, ids):
    assert "".join(problem.id for problem in select(MIXED, levels, subjects)) == ids


def test_a_selection_that_leaves_nothing_says_what_there_is():
    with pytest.raises(UserError, match=r'level "6"; there are: 3 \(1\), 4 \(1\), 5 \(1\)$'):
        select(MIXED, levels=["3", "6"])
    with pytest.raises(UserError, match=r'subject "Biology"; there are: Algebra \(2\), Number Theory \(1\)$'):
        select(MIXED, subjects=["Biology"])
    with pytest.raises(UserError, match=r"one of these subjects; there are: Algebra, level 3 \(1\), .*, level 4 \(1\)"):
        select(MIXED, levels=["4"], subjects=["Algebra"])
    with pytest.raises(UserError, match="there are: none"):
        select(MIXED[3:], levels=["1"])


def test_parse_levels_and_subjects():
    assert parse_levels("3,4, 5") == parse_levels("3-5") == ["3", "4", "5"]
    assert parse_levels("1,3-4,Level 5,hard") == ["1", "3", "4", "5", "hard"]
    assert parse_subjects("Algebra, Number Theory") == ["Algebra", "Number Theory"]
    with pytest.raises(UserError, match='"5-3" runs backwards; write 3-5'):
        parse_levels("5-3")
    for text in ("", "3,,4", "3,"):
        with pytest.raises(UserError, match="empty place"):
            parse_levels(text)


def test_a_problem_does_not_depend_on_the_order_of_the_file(tmp_path):
    lines = (DATA / "math500.jsonl").read_text().splitlines()
    shuffled = random.Random(1).sample(lines, len(lines))
    assert set(load_problems(write(tmp_path / "m.jsonl", *shuffled))) == set(load_problems(DATA / "math500.jsonl"))
