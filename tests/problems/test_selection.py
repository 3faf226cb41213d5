"""Selection by level and subject; which problems are the same in two files; the fingerprint of a list."""

from dataclasses import replace
from pathlib import Path

import pytest

from o1core.errors import UserError
from o1core.problems import find_overlap, fingerprint, load_problems, parse_levels, parse_subjects, select
from o1core.types import Problem

PUBLISHED = Path(__file__).parents[3] / "shared" / "data"  # the full data sets, where they lie beside the repository
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
        with pytest.raises(UserError, match="empty entry"):
            parse_levels(text)


def test_fingerprint_follows_every_letter_and_the_order():
    one, two = Problem("a", "1 + 1?", "2"), Problem("b", "2 + 2?", "4")
    assert fingerprint([one, two]) == fingerprint([Problem("a", "1 + 1?", "2"), two])
    changes = {
        "id": "c",
        "question": "1 + 1? ",
        "answer": "2.",
        "level": "1",
        "subject": "x",
        "system": "s",
        "budget": 9,
    }
    changed = [replace(one, **{name: value}) for name, value in changes.items()]
    changed += [replace(one, question="1+1?"), replace(one, level="s"), replace(one, question="1 + 1?\u00a0")]
    lists = [[one, two], [two, one], [one], *([other, two] for other in changed)]
    assert len({fingerprint(problems) for problems in lists}) == len(lists) == 13


def test_overlap_finds_the_shared_questions():
    train = [Problem("a", "What is  1 + 1?", "2"), Problem("b", "What is 1 - 1?", "0")]
    test = [Problem("c", "what is 1+1?\n", "2"), Problem("d", "What is 1 / 1?", "1")]
    assert find_overlap(train, test) == [test[0]]
    assert find_overlap(train, test[1:]) == []


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
    assert find_overlap([one], [other]) == [other]
    assert find_overlap([other], [one]) == [one]


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
    assert find_overlap([one], [other]) == []
    assert find_overlap([other], [one]) == []


@pytest.mark.parametrize(
    "text", [r",\!111" * 160_000 + "1", r"\text{" * 160_000, "{ " * 400_000, "\\text" + " " * 900_000]
)
def test_a_long_question_takes_linear_time(text):
    # Anything quadratic in a million characters would take hours and meet the test's time limit.
    problem = Problem("a", f"1{text}", "1")
    assert find_overlap([problem], [problem]) == [problem]


def test_generated_tasks_are_the_same_to_the_letter_or_others():
    boards = [Problem(str(at), text, "", task="{}") for at, text in enumerate(["A..B", ".A.B", "a..b", "A..B"])]
    assert find_overlap(boards[:1], boards[1:]) == boards[3:]
    assert len({fingerprint([board]) for board in [*boards[:2], Problem("x", "A..B", "")]}) == 3


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the full data sets do not lie beside the repository")
def test_overlap_of_the_published_files():
    train, test = (load_problems(PUBLISHED / "math" / name) for name in ("train.jsonl", "test.jsonl"))
    assert len(find_overlap(train, test)) == 5  # two of them to the letter
    assert find_overlap(train, load_problems(PUBLISHED / "math" / "math500.jsonl")) == []
    assert find_overlap(*(load_problems(PUBLISHED / "gsm8k" / name) for name in ("train.jsonl", "test.jsonl"))) == []
