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

from o1core import sandbox
from o1core.errors import UserError
from o1core.grading import MAX_ANSWER_CHARS, Attempt, Grader
from o1core.grading import worker as grading_worker
from o1core.sandbox import Sandbox
from o1core.types import Problem

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
    line, killed = Sandbox._line, []

    def kill_the_first(self, request, seconds):
        if not killed:
            killed.append(self.process.pid)
            self.process.kill()
        return line(self, request, seconds)

    monkeypatch.setattr(Sandbox, "_line", kill_the_first)
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
    command = [sandbox.__file__, grading_worker.__file__, "5", "1024"]
    run = subprocess.run([sys.executable, "-P", "-X", "importtime", *command], input="", capture_output=True, text=True)
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


SLOW = "(" * 8 + "x" + ")" * 8  # takes the parser a third of a second


def test_a_worker_that_was_stopped_for_a_while_changes_no_verdict():
    with Grader(workers=1, seconds=1) as grader:
        assert graded(grader, [(boxed("1+x"), "x+1")])[0].correct
        pid = worker_pid(grader)
        threading.Timer(0.1, os.kill, (pid, signal.SIGSTOP)).start()
        threading.Timer(4.0, os.kill, (pid, signal.SIGCONT)).start()  # past three times its processor time
        verdict = graded(grader, [(boxed(SLOW), "x")])[0]
        assert (verdict.correct, verdict.fault) == (True, None)
        assert worker_pid(grader) == pid


def test_busy_processes_beside_change_no_verdict():
    mixed = [(boxed(f"{n}+x"), f"x+{n}") for n in range(8)] + [
        (boxed(SLOW), "x"),
        (boxed(HANGS), "5"),
        (boxed("2"), "2"),
    ]
    with Grader(workers=2, seconds=1) as grader:
        graded(grader, [(boxed("1-x"), "-x+1"), (boxed("2-x"), "-x+2")])  # the workers have started
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
        try:
            under_load = graded(grader, mixed)
        finally:
            for process in busy:
                process.kill()
                process.wait()
    assert [(v.correct, v.fault) for v in under_load] == [*[(True, None)] * 9, (False, "timeout"), (True, None)]


def test_an_answer_whose_worker_got_no_time_is_asked_again_alone():
    with Grader(workers=2, seconds=4) as grader:
        rows = [(boxed("1+x"), "x+1"), (boxed("2+x"), "x+2")]
        assert all(v.correct for v in graded(grader, rows))
        for worker in grader._workers:
            worker.patience = 3.0
        stopped = worker_pid(grader)
        os.kill(stopped, signal.SIGSTOP)
        verdicts = graded(grader, [(boxed(f"{n}+x"), f"x+{n}") for n in range(3, 9)])
        assert [(v.correct, v.fault) for v in verdicts] == [(True, None)] * 6
        assert grader.counts["timeout"] == 0


def write(folder, body):
    path = folder / "mine.py"
    path.write_text(body)
    return f"{path}:judge"


def test_the_users_own_grader(tmp_path):
    body = "def judge(text, problem):\n    print('noise')\n    return problem.answer in text and problem.level == '5'\n"
    hard, easy = (Problem("1", "2 + 2?", "4", level=level) for level in "51")
    rows = [Attempt("<think>5</think>It is 4.", "4", problem=hard), Attempt("It is 4.", "4", problem=easy)]
    rows += [Attempt("<think>4</think>It is 5.", "4", problem=hard), Attempt("<think>4", "4", problem=hard)]
    rows += [Attempt("It is 4. And", "4", problem=hard, cut_off=True)]
    with Grader(workers=2, function=write(tmp_path, body)) as grader:
        verdicts = grader.grade_many(rows)
        assert [v.correct for v in verdicts] == [True, False, False, False, False]
        assert [v.fault for v in verdicts] == [None, None, None, "no answer", "cut off"]
        assert verdicts[0].answer == "4"


def test_a_grader_of_ones_own_that_hangs_raises_or_says_nothing_is_counted(tmp_path, caplog):
    body = """
def judge(text, problem):
    if "hang" in text:
        while True:
            pass
    if "raise" in text:
        raise ValueError("no such word")
    if "swell" in text:
        return len(bytearray(10**10)) > 0
    return None if "nothing" in text else 1
"""
    with Grader(workers=1, seconds=1, function=write(tmp_path, body)) as grader:
        verdicts = graded(grader, [(text, "") for text in ("hang", "raise", "swell", "nothing", "fine")])
        assert [v.fault for v in verdicts] == ["timeout", "raised", "memory", "raised", None]
        assert [v.correct for v in verdicts] == [False, False, False, False, True]
        assert (grader.counts["timeout"], grader.counts["raised"], grader.counts["memory"]) == (1, 2, 1)
    assert "mine.py:judge: ValueError: no such word" in caplog.text


@pytest.mark.parametrize(
    ("body", "said"), [(None, "mine.py"), ("x = (", "not Python"), ("def other(): pass", "defines no judge")]
)
def test_a_grader_of_ones_own_that_is_not_there(tmp_path, body, said):
    function = f"{tmp_path / 'mine.py'}:judge" if body is None else write(tmp_path, body)
    with pytest.raises(UserError, match=said):
        Grader(function=function)


def test_a_grader_of_ones_own_whose_file_raises(tmp_path):
    function = write(tmp_path, "def judge(text, problem): return 1\nraise OSError('no dictionary')\n")
    with Grader(workers=1, function=function) as grader, pytest.raises(UserError, match="no dictionary"):
        graded(grader, [("x", "x")])
