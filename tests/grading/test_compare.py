"""Which answers are the same, and which are not."""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o1core.grading import Attempt, Grader, grade, quick_equal
from o1core.grading import worker as grading_worker
from o1core.problems import load_problems

HERE = Path(__file__).parents[1]
PUBLISHED = HERE.parents[1] / "shared" / "data"  # the full data sets, where they lie beside the repository
HANGS = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=2, seconds=20) as grader:
        yield grader


def graded(grader, rows):
    """Verdicts of (completion text, gold answer, task) rows; the task may be missing."""
    return grader.grade_many([Attempt(*row) for row in rows])


def boxed(answer):
    return rf"Some thought. The answer is \boxed{{{answer}}}."


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac12", "1/2"),
        (r"\dfrac{1}{2}", r"\tfrac{1}{2}"),
        ("1 1/2", r"1\frac{1}{2}"),
        ("1.5", r"1\frac{1}{2}"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"\pi/2", r"\frac{\pi}{2}"),
        ("1+2x", "2x+1"),
        ("10^{3}", "1000"),
        (r"2 \cdot 10^3", "2,000"),
        ("x = 5", "5"),
        ("5", "x = 5"),
        ("1,234,567", "1234567"),
        (r"12{,}000", "12000"),
        (r"8,\!424,\!000", "8424000"),
        ("-3", "−3"),
        ("3.0", "3"),
        ("007", "7"),
        (r"50\%", "50"),
        ("50%", "0.5"),
        ("50 percent", r"50\%"),
        (r"\$18", "18"),
        ("$18.00", "18"),
        ("18 dollars", "18"),
        (r"18 \text{ dollars}", r"\$18"),
        ("12 cm^2", "12"),
        (r"12\text{ cm}^2", "12"),
        ("10 miles per hour", "10"),
        ("1/2 cup", r"\frac{1}{2}"),
        (r"90^\circ", "90"),
        (r"\text{Evelyn}", "Evelyn"),
        ("b", "B"),
        ("(B)", "B"),
        (r"\text{(B)}", "B"),
        ("B. 12 apples", "B"),
        ("(1,2)", "(1, 2)"),
        (r"\left( 3, \pi/2 \right)", r"(3, \frac{\pi}{2})"),
        (r"\{2, 1\}", "1,2"),
        ("3 and 5", "5, 3"),
        (r"\pm 2", "2, -2"),
        ("[0,1)", r"\left[ 0, 1 \right)"),
        (r"x \in [0,1)", "[0,1)"),
        ("[-2,1)", r"\{x|-2\leq x < 1\}"),
        (r"-2 \leq x < 1", "[-2,1)"),
        (r"(-\infty,2)\cup(3,\infty)", r"(3, \infty) \cup (-\infty, 2)"),
        ("y = 2x + 1", "2x - y + 1 = 0"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        ("1+2i", "2i+1"),
    ],
)
def test_same_answer_in_another_form_is_right(grader, answer, gold):
    assert graded(grader, [(boxed(answer), gold)])[0].correct


@pytest.mark.parametrize(
    "text",
    [
        "The answer is (B)",
        "so B.\n**Answer: B**",
        r"\boxed{B}",
        r"\boxed{\text{B}}",
        r"\boxed{\textbf{(B)}}",
        r"\boxed{b}",
        r"\boxed{**B**}",
        r"\boxed{B. chloroplasts}",
        "The answer is **B**",
        r"The answer is $\text{(B)}$",
        "It is one of 4.\n\n**B**",
        "I compared A and C.\n(B)",
        "Answer:\nB",
        "B",
    ],
)
def test_a_choice_in_the_ways_that_models_write_it(text):
    with Grader(workers=1) as grader:
        assert [v.correct for v in graded(grader, [(text, "B"), (text, "C")])] == [True, False]
        assert grader.counts["algebra"] == 0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("0.33", "1/3"),
        ("12345678901234567890", "12345678901234567891"),
        ("3xy", "3"),
        ("3", "3xy"),
        ("2 million", "2"),
        ("1 1/2", "11/2"),
        ("1  1/2", "11/2"),
        ("(1,2)", "[1,2]"),
        ("(2,1)", "(1,2)"),
        ("[0,1]", "[0,1)"),
        ("1,2", "1,3"),
        ("C", "B"),
        ("12", "B"),
        ("5", "-5"),
        ("x+1", "x-1"),
        ("5", ""),
        ("50", "0.5"),
        ("x = 5", "y = 5"),
    ],
)
def test_another_answer_is_wrong(grader, answer, gold):
    assert not graded(grader, [(boxed(answer), gold)])[0].correct


# A list of (answer, gold) that math-verify alone calls equal.
WRONG_RIGHT = [
    (r"\neq 5", "5"),
    (r"\not=5", "5"),
    (r"\geq 5", "5"),
    (r"\le 5", "5"),
    ("> 5", "5"),
    (r"x \approx 5", "5"),
    (r"3 \sim 5", "5"),
    (r"\geq 5", "x = 5"),
    (r"\nless 5", "5"),
    ("6 & 5", "5"),
    (r"6 \to 5", "5"),
    ("6=5", "5"),
    ("2+2=5", "5"),
    ("x = 2+2 = 5", "5"),
    (r"3 \equiv 5", "5"),
    ("2x = 5", "5"),
    ("x^2 = 5", "5"),
    ("a + b = 5", "5"),
    ("2+2=5, y=6", "5, 6"),
    ("act", "cat"),
    (r"\text{act}", "cat"),
    ("{act}", "cat"),
    ("Silent", "Listen"),
    ("on", "no"),
    ("function odd", "odd function"),
    ("act, dog", "cat, dog"),
    ("101_3", "101_2"),
    ("101_{3}", "101_2"),
    ("101 (base 3)", "101_2"),
    ("1A_{16}", "1A_{15}"),
    ("5 = 101_3", "101_2"),
    ("A) B) C)", "A"),
    ("(A) (B)", "A"),
    ("A. or B.", "A"),
    ("A) 12 B) 13", "A"),
    ("A. yes; B. no", "A"),
]


@pytest.mark.parametrize(("answer", "gold"), WRONG_RIGHT)
def test_what_algebra_alone_would_take_for_right_is_wrong(grader, answer, gold):
    assert not graded(grader, [(boxed(answer), gold)])[0].correct


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("x = y = 5", "5"),
        ("f(x) = 5", "5"),
        (r"P(A \cap B) = \frac{1}{2}", "1/2"),
        ("a_{10} = 5", "5"),
        ("f'(2) = 5", "5"),
        (r"f^{-1}(3) = 5", "5"),
        (r"\angle ABC = 5^\circ", "5"),
        (r"\overline{AB} = 5", "5"),
        ("|AB| = 5", "5"),
        (r"\text{Area of } ABC = 5", "5"),
        (r"A = \pi r^2 = 25\pi", r"25\pi"),
        (r"x = \frac{10}{2} = 5", "5"),
        (r"x = \frac{1}{3} = 0.33", "0.33"),
        (r"\cos 60^\circ = \frac{1}{2}", "0.5"),
        (r"\frac{dy}{dx} = 2x", "2x"),
        ("(x, y) = (1, 2)", "(1,2)"),
        ("2+3 = 5", "5"),
        ("= 5", "5"),
        ("x := 5", "5"),
        ("x = 5, y = 6", "5, 6"),
        ("x = 5 or x = 6", "5, 6"),
        ("x = 5", "x = 5"),
        (r"x \neq 5", r"(-\infty, 5) \cup (5, \infty)"),
        (r"8.24", r"\approx 8.24"),
        (r"\approx 8.24", r"\approx 8.24"),
        (r"x \geq 5", r"[5, \infty)"),
        (r"\sum_{k \geq 1} \frac{1}{2^k} = 1", "1"),
        ("ba", "ab"),
        (r"a \cdot c \cdot b", "abc"),
        ("Cat", "cat"),
        (r"\text{dog and cat}", "cat, dog"),
        ("101_{2}", "101_2"),
        ("101", "101_2"),
        ("5 = 101_2", "101_2"),
        ("2a_1 + 3a_1", "5a_1"),
        ("5_{10} = 101_2", "101_2"),
        ("A. E. coli", "A"),
        ("A. Carbon (C)", "A"),
        ("A) 12", "A"),
    ],
)
def test_what_states_the_answer_stays_right(grader, answer, gold):
    assert graded(grader, [(boxed(answer), gold)])[0].correct


@st.composite
def plain_numbers(draw):
    # Where the two differ, math-verify is wrong: beyond 15 digits it compares floats of unequal precision (it takes
    # 1000000000.00001 and 1000000000.000010 for different numbers), and it reads +1,000 as the pair of 1 and 0.
    whole = draw(st.one_of(st.integers(0, 120), st.integers(0, 10**8)))
    text = draw(st.sampled_from([f"{whole}", f"{whole:,}", f"0{whole}"]))
    decimals = draw(st.sampled_from(["", "", "", ".0", ".5", ".25", ".00001", ".12345"]))
    return draw(st.sampled_from(["", "", "-"] if "," in text else ["", "-", "+"])) + text + decimals


@settings(max_examples=250, deadline=None)
@given(plain_numbers(), st.one_of(st.none(), plain_numbers()))
def test_quick_path_agrees_with_math_verify_on_plain_numbers(one, other):
    if other is None:
        other = one.replace(",", "").lstrip("+") + ("0" if "." in one else ".0")
    assert quick_equal(one, other) is grading_worker.equivalent(one, other)


def rewritten(answer):
    """The same value in other words: slashes for fractions, powers for roots, no stretched brackets, other blanks."""
    answer = answer.replace(r"\left", "").replace(r"\right", "")
    answer = re.sub(r"(\d) ?\\frac\{(\d+)\}\{(\d+)\}", r"\1 \2/\3", answer)
    answer = re.sub(r"\\[dt]?frac\{(\w+)\}\{(\w+)\}", r"(\1)/(\2)", answer)
    answer = re.sub(r"\\sqrt\{(\d+)\}", r"(\1)^{1/2}", answer)
    return re.sub(r",\s*", r",\\;", answer)


def test_math500_answers_that_are_no_plain_numbers(grader):
    gold = json.loads((HERE / "data" / "math500_answers.json").read_text())
    verdicts = graded(grader, [(boxed(rewritten(answer)), answer) for answer in gold])
    assert (len(gold), sum(verdict.correct for verdict in verdicts)) == (167, 167)
    others = graded(grader, [(boxed(rewritten(answer)), gold[at - 1]) for at, answer in enumerate(gold)])
    assert sum(verdict.correct for verdict in others) == 0


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the full data sets do not lie beside the repository")
def test_published_solutions_grade_right_and_those_of_other_problems_wrong(grader):
    rows = [json.loads(line) for line in (PUBLISHED / "math" / "train.jsonl").read_text().splitlines()]
    rows = random.Random(0).sample(rows, 200)
    verdicts = graded(grader, [(row["solution"], row["answer"]) for row in rows])
    assert sum(verdict.correct for verdict in verdicts) == 200
    others = graded(grader, [(row["solution"], rows[at - 1]["answer"]) for at, row in enumerate(rows)])
    same = [row["answer"] == rows[at - 1]["answer"] for at, row in enumerate(rows)]
    assert [verdict.correct for verdict in others] == same
    assert sum(same) == 3


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the full data sets do not lie beside the repository")
def test_two_editions_of_gaokao_agree(grader):
    # O1-Pruner's gaokao.json has the same 385 problems. Two answers are empty in both; five differ in meaning or in
    # words (one edition says "1", the other "Quadrant I").
    one = load_problems(PUBLISHED / "gaokao2023en" / "test.jsonl")
    other = load_problems(PUBLISHED / "o1pruner" / "gaokao.json")
    verdicts = graded(grader, [(boxed(b.answer), a.answer) for a, b in zip(one, other)])
    assert (len(verdicts), sum(verdict.correct for verdict in verdicts)) == (385, 378)


def test_grade_alone():
    assert grade(r"\boxed{3}, no: \boxed{\frac{2}{4}}", "0.5") is True
    assert grade(boxed("7"), "8") is False
    assert grade("", "8") is False


SAME_AT_EVERY_POINT = [
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\log_2 8", "3"),
    (r"\sqrt{x^2}", "|x|"),
    (r"\binom{10}{3}", "120"),
]


@pytest.mark.parametrize(("one", "other"), SAME_AT_EVERY_POINT)
def test_what_is_equal_does_not_differ_at_the_point_that_is_tried(one, other):
    one, other = (grading_worker._parse(text)[0] for text in (one, other))
    assert not grading_worker.differ_at_a_point(one, other)
    assert grading_worker.differ_at_a_point(one, other + 1)
