import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o1core.errors import UserError
from o1core.grading import worker as grading_worker
from o1core.grading.pool import MAX_ANSWER_CHARS, Grader, extract_answer, grade, quick_equal
from o1core.problems.formats import load_problems

HERE = Path(__file__).parents[1]
PUBLISHED = HERE.parents[1] / "shared" / "data"  # the full data sets, where they lie beside the repository
HANGS = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=2, seconds=20) as grader:
        yield grader


def boxed(answer):
    return rf"Some thought. The answer is \boxed{{{answer}}}."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First \boxed{3}. Wait, that is wrong: \boxed{4}", "4"),
        (r"\boxed{\frac{1}{\sqrt{2}}} holds.", r"\frac{1}{\sqrt{2}}"),
        (r"so \boxed{\{ x | x > \frac{1}{2} \}}", r"\{ x | x > \frac{1}{2} \}"),
        (r"\boxed{\left\{ 3 \right.}", r"\left\{ 3 \right."),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"so \fbox{7}", "7"),
        (r"\boxed{12} and then \boxed{13", "12"),
        (r"\boxed{12 and then \boxed{13}", "13"),
        (r"a stray } and { around \boxed{5} }", "5"),
        (r"the answer is $\boxed 2$.", "2"),
        (r"Put it in \boxed{}. It is \boxed{6}. I used \boxed{}.", "6"),
        (r"The answer is \boxed{}, that is 8", "8"),
        ("18 + 2 = 20\n#### 1,234", "1,234"),
        ("#### Step 3: add\nso we get 17", "17"),
        ("The answer is (b).", "B"),
        ("Answer: C", "C"),
        ("**Answer: B**\n", "B"),
        ("Answer: A train leaves at 5", "5"),
        ("The answer is B. There were 12 of them", "B"),
        ("It makes 1,234.5 in all.", "1,234.5"),
        ("so x = -3.", "-3"),
        ("10-3=7 and 10-3", "3"),
        ("about 3/4 of it", "3/4"),
        (r"which leaves \frac{3}{4} of it", r"\frac{3}{4}"),
        ("we have 3, 4, and 5 apples.", "5"),
        ("Water is H2O and costs $6", "6"),
        ("it grew by 50%", "50%"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 100_000,
        r"\boxed" + " " * 500_000,
        "####" + "\n" * 500_000 + "x",
        "#### " * 100_000,
        "answer is " + " " * 500_000 + "x",
        "the answer is (" * 50_000,
        "answer is B" + "*" * 500_000 + "x",
    ],
)
def test_extraction_takes_linear_time(text):
    # Anything quadratic in half a million characters would take hours and meet the test's time limit.
    assert extract_answer(text) is None


def test_finding_the_last_number_takes_linear_time():
    assert extract_answer("1" + ",111" * 100_000 + "1") == "1111"


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
    assert grader.grade_many([(boxed(answer), gold)])[0].correct


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
        assert [v.correct for v in grader.grade_many([(text, "B"), (text, "C")])] == [True, False]
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
    assert not grader.grade_many([(boxed(answer), gold)])[0].correct


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
    verdicts = grader.grade_many([(boxed(rewritten(answer)), answer) for answer in gold])
    assert (len(gold), sum(verdict.correct for verdict in verdicts)) == (167, 167)
    others = grader.grade_many([(boxed(rewritten(answer)), gold[at - 1]) for at, answer in enumerate(gold)])
    assert sum(verdict.correct for verdict in others) == 0


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the full data sets do not lie beside the repository")
def test_published_solutions_grade_right_and_those_of_other_problems_wrong(grader):
    rows = [json.loads(line) for line in (PUBLISHED / "math" / "train.jsonl").read_text().splitlines()]
    rows = random.Random(0).sample(rows, 200)
    verdicts = grader.grade_many([(row["solution"], row["answer"]) for row in rows])
    assert sum(verdict.correct for verdict in verdicts) == 200
    others = grader.grade_many([(row["solution"], rows[at - 1]["answer"]) for at, row in enumerate(rows)])
    same = [row["answer"] == rows[at - 1]["answer"] for at, row in enumerate(rows)]
    assert [verdict.correct for verdict in others] == same
    assert sum(same) == 3


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the full data sets do not lie beside the repository")
def test_two_editions_of_gaokao_agree(grader):
    # O1-Pruner's gaokao.json has the same 385 problems. Two answers are empty in both; five differ in meaning or in
    # words (one edition says "1", the other "Quadrant I").
    one = load_problems(PUBLISHED / "gaokao2023en" / "test.jsonl")
    other = load_problems(PUBLISHED / "o1pruner" / "gaokao.json")
    verdicts = grader.grade_many([(boxed(b.answer), a.answer) for a, b in zip(one, other)])
    assert (len(verdicts), sum(verdict.correct for verdict in verdicts)) == (385, 378)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hanging_answer_is_wrong_and_delays_nobody(workers):
    easy = [(boxed(rf"\frac{{{n}}}{{7}}"), f"{2 * n}/14") for n in range(1, 40) if n % 7]
    with Grader(workers=workers, seconds=1) as grader:
        verdicts = grader.grade_many([*easy[:3], (boxed(HANGS), "5"), *easy[3:]])
        assert [verdict.correct for verdict in verdicts] == [True] * 3 + [False] + [True] * (len(easy) - 3)
        assert verdicts[3].fault == "timeout"
        assert grader.counts == {"graded": len(easy) + 1, "algebra": len(easy) + 1, "timeout": 1}


def test_an_answer_that_eats_memory_is_wrong_and_counted():
    with Grader(workers=1, seconds=20, memory_mib=300) as grader:
        verdicts = grader.grade_many([(boxed("2^{10^{10}}"), "x^2"), (boxed("1+x"), "x+1"), (boxed("2+x"), "x+1")])
        faults = [(verdict.correct, verdict.fault) for verdict in verdicts]
        assert faults == [(False, "memory"), (True, None), (False, None)]


def test_memory_of_the_parent_is_not_the_worker_s():
    ballast = bytes(range(256)) * (300 << 12)  # 300 MiB
    with Grader(workers=1, memory_mib=300) as grader:
        assert grader.grade_many([(boxed("2+x"), "x+1")])[0].fault is None
        assert grader._workers[0].process is not None
    assert len(ballast) == 300 << 20


def worker_pid(grader):
    while (process := grader._workers[0].process) is None:
        time.sleep(0.01)
    return process.pid


def test_a_worker_killed_from_outside_is_replaced_and_its_answer_tried_again():
    slow = "(" * 20 + "x" + ")" * 20  # takes the parser a second
    with Grader(workers=1, seconds=60) as grader:
        assert grader.grade_many([(boxed("1+x"), "x+1")])[0].correct
        first = worker_pid(grader)
        threading.Timer(0.2, os.kill, (first, signal.SIGKILL)).start()
        verdicts = grader.grade_many([(boxed(slow), "x"), (boxed("2+x"), "x+2")])
        assert [verdict.correct for verdict in verdicts] == [True, True]
        assert worker_pid(grader) != first


def test_an_answer_that_kills_two_workers_is_wrong_and_counted():
    with Grader(workers=1, seconds=60) as grader:
        done = threading.Event()

        def kill_whoever_works():
            while not done.wait(0.1):
                if (process := grader._workers[0].process) is not None:
                    process.kill()

        killer = threading.Thread(target=kill_whoever_works)
        killer.start()
        verdict = grader.grade_many([(boxed(HANGS), "5")])[0]
        done.set()
        killer.join()
        assert (verdict.correct, verdict.fault) == (False, "death")
        assert grader.grade_many([(boxed("1+x"), "x+1")])[0].correct


def test_the_worker_imports_no_torch():
    script = Path(grading_worker.__file__)
    run = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", script, "5", "1024"], input="", capture_output=True, text=True
    )
    assert json.loads(run.stdout) == {"ready": True}
    assert "sympy" in run.stderr
    assert "torch" not in run.stderr


def is_running(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_workers_end_when_their_parent_is_killed():
    program = f"""
from o1core.grading.pool import Grader
grader = Grader(workers=2, seconds=3)
grader.grade_many([(r"\\boxed{{x+1}}", "1+x"), (r"\\boxed{{x+2}}", "2+x")])
print(*(worker.process.pid for worker in grader._workers), flush=True)
grader.grade_many([(r"\\boxed{{{HANGS}}}", "5")])
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.5)  # one of them is busy now, and does not look at its stdin
        assert all(map(is_running, pids))
        parent.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, pids))


def test_closing_leaves_no_process():
    grader = Grader(workers=2)
    grader.grade_many([(boxed("1+x"), "x+1"), (boxed("2+x"), "x+2")])
    processes = [worker.process for worker in grader._workers if worker.process]
    grader.close()
    assert processes
    assert all(process.returncode == 0 for process in processes)


def test_plain_answers_start_no_process():
    with Grader() as grader:
        verdicts = grader.grade_many([(boxed("12"), "12"), (boxed("13"), "12"), ("#### 1,000", "1000")])
        assert [verdict.correct for verdict in verdicts] == [True, False, True]
        assert all(worker.process is None for worker in grader._workers)


def test_answers_that_are_not_compared_are_counted():
    with Grader() as grader:
        verdicts = grader.grade_many(
            [("I give up.", "5"), (boxed("1" * (MAX_ANSWER_CHARS + 1)), "1" * (MAX_ANSWER_CHARS + 1))]
        )
        assert [verdict.fault for verdict in verdicts] == ["no answer", "too long"]
        assert not any(verdict.correct for verdict in verdicts)
        assert grader.counts == {"graded": 2, "algebra": 0, "no answer": 1, "too long": 1}


def test_a_worker_that_cannot_start_is_an_error_and_not_a_wrong_answer():
    with Grader(workers=1, memory_mib=20) as grader, pytest.raises(UserError, match="20 MiB"):
        grader.grade_many([(boxed("1+x"), "x+1")])


def test_grade_alone():
    assert grade(r"\boxed{3}, no: \boxed{\frac{2}{4}}", "0.5") is True
    assert grade(boxed("7"), "8") is False
    assert grade("", "8") is False
