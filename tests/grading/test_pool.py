"""The worker processes: limits, deaths, and what is counted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from o1core.errors import UserError
from o1core.grading import MAX_ANSWER_CHARS, Attempt, Grader, pool
from o1core.grading import worker as grading_worker

HERE = Path(__file__).parents[1]
PUBLISHED = HERE.parents[1] / "shared" / "data"  # the full data sets, where they lie beside the repository
HANGS = "9^{9^{9^{9}}}"


def graded(grader, rows):
    """Verdicts of (completion text, gold answer, task) rows; the task may be missing."""
    return grader.grade_many([Attempt(*row) for row in rows])


def boxed(answer):
    return rf"Some thought. The answer is \boxed{{{answer}}}."


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hanging_answer_is_wrong_and_delays_nobody(workers):
    easy = [(boxed(rf"\frac{{{n}}}{{7}}"), f"{2 * n}/14") for n in range(1, 40) if n % 7]
    with Grader(workers=workers, seconds=1) as grader:
        verdicts = graded(grader, [*easy[:3], (boxed(HANGS), "5"), *easy[3:]])
        assert [verdict.correct for verdict in verdicts] == [True] * 3 + [False] + [True] * (len(easy) - 3)
        assert verdicts[3].fault == "timeout"
        assert grader.counts == {"graded": len(easy) + 1, "algebra": len(easy) + 1, "timeout": 1}


def test_an_answer_that_eats_memory_is_wrong_and_counted():
    with Grader(workers=1, seconds=20, memory_mib=300) as grader:
        verdicts = graded(grader, [(boxed("2^{10^{10}}"), "x^2"), (boxed("1+x"), "x+1"), (boxed("2+x"), "x+1")])
        faults = [(verdict.correct, verdict.fault) for verdict in verdicts]
        assert faults == [(False, "memory"), (True, None), (False, None)]


def test_memory_of_the_parent_is_not_the_worker_s():
    ballast = bytes(range(256)) * (300 << 12)  # 300 MiB
    with Grader(workers=1, memory_mib=300) as grader:
        assert graded(grader, [(boxed("2+x"), "x+1")])[0].fault is None
        assert grader._workers[0].process is not None
    assert len(ballast) == 300 << 20


def worker_pid(grader):
    while (process := grader._workers[0].process) is None:
        time.sleep(0.01)
    return process.pid


def test_a_worker_killed_from_outside_is_replaced_and_its_answer_tried_again():
    slow = "(" * 20 + "x" + ")" * 20  # takes the parser a second
    with Grader(workers=1, seconds=60) as grader:
        assert graded(grader, [(boxed("1+x"), "x+1")])[0].correct
        first = worker_pid(grader)
        threading.Timer(0.2, os.kill, (first, signal.SIGKILL)).start()
        verdicts = graded(grader, [(boxed(slow), "x"), (boxed("2+x"), "x+2")])
        assert [verdict.correct for verdict in verdicts] == [True, True]
        assert worker_pid(grader) != first


def test_a_worker_killed_while_it_starts_is_replaced(monkeypatch):
    await_ready, killed = pool._await_ready, []

    def kill_the_first(process, how_to_fix):
        if not killed:
            killed.append(process.pid)
            process.kill()
        await_ready(process, how_to_fix)

    monkeypatch.setattr(pool, "_await_ready", kill_the_first)
    with Grader(workers=1) as grader:
        assert graded(grader, [(boxed("1+x"), "x+1")])[0].correct
        assert [worker_pid(grader)] != killed


def test_an_answer_that_kills_two_workers_is_wrong_and_counted():
    with Grader(workers=1, seconds=60) as grader:
        done = threading.Event()

        def kill_whoever_works():
            while not done.wait(0.1):
                if (process := grader._workers[0].process) is not None:
                    process.kill()

        killer = threading.Thread(target=kill_whoever_works)
        killer.start()
        verdict = graded(grader, [(boxed(HANGS), "5")])[0]
        done.set()
        killer.join()
        assert (verdict.correct, verdict.fault) == (False, "death")
        assert graded(grader, [(boxed("1+x"), "x+1")])[0].correct


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
from o1core.grading import Attempt, Grader
grader = Grader(workers=2, seconds=3)
grader.grade_many([Attempt(r"\\boxed{{x+1}}", "1+x"), Attempt(r"\\boxed{{x+2}}", "2+x")])
print(*(worker.process.pid for worker in grader._workers), flush=True)
grader.grade_many([Attempt(r"\\boxed{{{HANGS}}}", "5")])
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
    graded(grader, [(boxed("1+x"), "x+1"), (boxed("2+x"), "x+2")])
    processes = [worker.process for worker in grader._workers if worker.process]
    grader.close()
    assert processes
    assert all(process.returncode == 0 for process in processes)


def test_plain_answers_start_no_process():
    with Grader() as grader:
        verdicts = graded(grader, [(boxed("12"), "12"), (boxed("13"), "12"), ("#### 1,000", "1000")])
        assert [verdict.correct for verdict in verdicts] == [True, False, True]
        assert all(worker.process is None for worker in grader._workers)


def test_answers_that_are_not_compared_are_counted():
    with Grader() as grader:
        verdicts = graded(
            grader, [("I give up.", "5"), (boxed("1" * (MAX_ANSWER_CHARS + 1)), "1" * (MAX_ANSWER_CHARS + 1))]
        )
        assert [verdict.fault for verdict in verdicts] == ["no answer", "too long"]
        assert not any(verdict.correct for verdict in verdicts)
        assert grader.counts == {"graded": 2, "algebra": 0, "no answer": 1, "too long": 1}


def test_a_worker_that_cannot_start_is_an_error_and_not_a_wrong_answer():
    with Grader(workers=1, memory_mib=20) as grader, pytest.raises(UserError, match="20 MiB"):
        graded(grader, [(boxed("1+x"), "x+1")])
