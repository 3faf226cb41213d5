"""Text in, right or wrong out: the Grader and its worker processes.

Three steps, the cheapest first: `extract_answer` finds the answer, `quick_equal` decides equal text, plain numbers and
choice letters in microseconds, and math-verify decides the rest in worker processes (worker.py), each with a limit of
time and memory. Completions are untrusted text: "9^{9^{9^{9}}}" may cost its time limit and nothing else.

A problem of reasoning-gym has a scorer of its own. `extract_final` finds the answer as it was written, line breaks
included, and the same workers score it.

Left out on purpose: partial credit, a judge model, and tolerance beyond math-verify's six decimals.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Literal, NamedTuple

from ..errors import UserError
from .compare import decide
from .extract import THINK, ThoughtTags, after_thought, extract_answer, extract_final, last_box

MAX_ANSWER_CHARS = 2000
MAX_TASK_ANSWER_CHARS = 20_000  # a board, a list of moves
_START_SECONDS = 120  # a worker needs about one; a machine under load more


_Question = tuple[str, str, str | None]  # predicted, gold, task: what a worker is asked


@dataclass(frozen=True)
class Attempt:
    """One completion, and what it is to be compared with."""

    text: str
    gold: str
    task: str | None = None  # Problem.task: its scorer judges the answer, and the gold answer does not count
    in_thought: bool = False  # the prompt ends inside a thought (leaves_thought_open)
    cut_off: bool = False  # it met the limit of tokens (finish_reason "length")


class Verdict(NamedTuple):
    """Of one completion."""

    correct: bool
    answer: str | None  # as extracted
    fault: str | None  # why nothing was compared: "no answer", "cut off", "too long", "timeout", "memory", "death"


class _Killed(UserError):
    """Somebody killed a worker while it loaded a library."""


class _Worker:
    """One worker process. It starts at its first question, and again after it died."""

    def __init__(self, seconds: float, memory_mib: int):
        self.seconds, self.memory_mib = seconds, memory_mib
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, predicted: str, gold: str, task: str | None) -> tuple[bool, str | None]:
        """Returns (equal, fault). A death is tried once more in a fresh process, since its cause may lie elsewhere (the
        kernel ran out of memory). A timeout is not tried again."""
        question = {"predicted": predicted} if task is not None else {"predicted": predicted, "gold": gold}
        for _ in range(2):
            process = self._running()
            try:
                if task is not None:
                    _send(process, {"task": task})
                    _await_ready(process, "check that reasoning-gym is installed: pip install 'o1core[gym]'")
                _send(process, question)
                # The worker's own limit is processor time. This limit is for a process that gets none.
                reply = _read_line(process, 3 * self.seconds + 1)
            except (BrokenPipeError, _Killed):
                reply = None
            except TimeoutError:
                process.kill()
                self.stop()
                return False, "timeout"
            if reply is not None:
                if reply["swollen"]:
                    self.stop()
                    return reply["equal"], None if reply["equal"] else "memory"
                return reply["equal"], None
            if self.stop() == -signal.SIGPROF:
                return False, "timeout"
        return False, "death"

    def stop(self) -> int | None:
        """Ends the process, if there is one, and returns its exit status (negative: the signal that killed it)."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        stdin, stdout = _pipes(process)
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
        stdout.close()
        return process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, started and ready if there was none."""
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.stop()
        try:
            self.process = self._start()
        except _Killed:  # by an out-of-memory killer perhaps: once more, in another process
            self.process = self._start()
        return self.process

    def _start(self) -> subprocess.Popen[bytes]:
        script = str(Path(__file__).with_name("worker.py"))
        # PYTHONHASHSEED fixes sympy's order of terms, and with it the work that a comparison takes. One thread, because
        # numpy would reserve memory for one per processor.
        single = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", script, str(self.seconds), str(self.memory_mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **single},
        )
        _await_ready(
            process,
            f"check that math-verify is installed for {sys.executable} and that {self.memory_mib} MiB of memory are "
            "enough (256 are)",
        )
        return process


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Its stdin and stdout."""
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _send(process: subprocess.Popen[bytes], request: dict[str, str]) -> None:
    stdin, _ = _pipes(process)
    stdin.write(json.dumps(request).encode() + b"\n")
    stdin.flush()


def _await_ready(process: subprocess.Popen[bytes], how_to_fix: str) -> None:
    """Waits until the process has loaded a library. Ends it and raises UserError where it cannot, _Killed where somebody
    else has ended it."""
    kind = UserError
    try:
        reply = _read_line(process, _START_SECONDS)
    except TimeoutError:
        reply = {"error": f"it was not ready after {_START_SECONDS} s"}
    if reply is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            kind = _Killed if process.wait(timeout=2) == -signal.SIGKILL else UserError
        reply = {"error": "it ended without a message"}
    if "error" in reply:
        process.kill()
        process.communicate()
        raise kind(f"the grading worker cannot start: {reply['error']}; {how_to_fix}")


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> dict | None:
    """The next reply of a process, or None if it has ended. Raises TimeoutError."""
    fd = _pipes(process)[1].fileno()
    deadline, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise TimeoutError
        chunk = os.read(fd, 4096)
        if not chunk:
            return None
        line += chunk
    return json.loads(line)


class Grader:
    """Grades completions. The answers that need algebra go to `workers` processes (default: as many as there are
    processors for this process, at most 8), each with at most `seconds` of processor time and `memory_mib` of memory.

    An answer that hangs or kills its worker is wrong. It holds up that worker alone, which is then replaced. A worker
    that has come to hold more than half its memory is replaced too, so that the next answer does not suffer for the
    last. Processes start at the first answer that needs one. `counts` adds up everything since the beginning for the
    caller's log: "graded", "algebra" (went to a worker, as a task's answers always do) and each fault of Verdict.
    A Grader is a context manager and thread-safe.

    Raises UserError where workers < 1 or seconds <= 0, and in grade_many where a worker cannot start.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        seconds: float = 5.0,
        memory_mib: int = 1024,
        tags: ThoughtTags = THINK,
        truncated: Literal["wrong", "keep"] = "wrong",
    ):
        if workers is None:
            workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        if workers < 1 or seconds <= 0:
            raise UserError(f"a grader needs workers >= 1 and seconds > 0, not {workers} and {seconds}")
        if truncated not in ("wrong", "keep"):
            raise UserError(f'a grader\'s truncated is "wrong" or "keep", not {truncated!r}')
        self.tags, self.truncated = tags, truncated
        self.counts: Counter[str] = Counter()
        self._workers = [_Worker(seconds, memory_mib) for _ in range(workers)]
        self._lock = threading.Lock()

    def grade_many(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """Verdicts of the attempts, in their order."""
        verdicts: list[Verdict] = []
        hard: dict[_Question, list[int]] = {}  # samples often agree, so each pair is compared once
        for at, attempt in enumerate(attempts):
            verdict, open_question = self._decide(attempt)
            verdicts.append(verdict)
            if open_question is not None:
                hard.setdefault(open_question, []).append(at)
        with self._lock:
            for (equal, fault), places in zip(self._compare(list(hard)), hard.values()):
                for at in places:
                    verdicts[at] = Verdict(equal, verdicts[at].answer, fault)
            self.counts["graded"] += len(attempts)
            self.counts["algebra"] += sum(map(len, hard.values()))
            self.counts.update(verdict.fault for verdict in verdicts if verdict.fault is not None)
        return verdicts

    def _decide(self, attempt: Attempt) -> tuple[Verdict, _Question | None]:
        """The verdict, and the question for a worker where one is still needed."""
        final = after_thought(attempt.text, self.tags, attempt.in_thought)
        if final is None:
            return Verdict(False, None, "no answer"), None
        if attempt.cut_off and self.truncated == "wrong" and last_box(final) is None:
            return Verdict(False, None, "cut off"), None
        if attempt.task is not None:
            return _decide_task(final, attempt.gold, attempt.task)
        return _decide(final, attempt.gold)

    def _compare(self, questions: list[_Question]) -> list[tuple[bool, str | None]]:
        if not questions:
            return []
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            idle.put(worker)

        def compare(question: _Question) -> tuple[bool, str | None]:
            worker = idle.get()
            try:
                return worker.ask(*question)
            finally:
                idle.put(worker)

        # These threads only wait on pipes. One thread per worker is the simplest way to wait on several.
        with ThreadPoolExecutor(min(len(questions), len(self._workers))) as pool:
            return list(pool.map(compare, questions))

    def close(self) -> None:
        """Ends the worker processes. A later grade_many starts new ones."""
        with self._lock:
            for worker in self._workers:
                worker.stop()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decide(text: str, gold: str) -> tuple[Verdict, _Question | None]:
    """The verdict, and the question for a worker where one is still needed: the tidied pair of answers."""
    answer = extract_answer(text)
    if answer is None:
        return Verdict(False, None, "no answer"), None
    if len(answer) > MAX_ANSWER_CHARS or len(gold) > MAX_ANSWER_CHARS:
        return Verdict(False, answer, "too long"), None
    decided = decide(answer, gold)
    if isinstance(decided, bool):
        return Verdict(decided, answer, None), None
    return Verdict(False, answer, None), (*decided, None)


def _decide_task(text: str, gold: str, task: str) -> tuple[Verdict, _Question | None]:
    """The same for an answer that its task's scorer judges."""
    answer = extract_final(text)
    if answer is None:
        return Verdict(False, None, "no answer"), None
    if len(answer) > MAX_TASK_ANSWER_CHARS:
        return Verdict(False, answer[:MAX_TASK_ANSWER_CHARS], "too long"), None
    return Verdict(False, answer, None), (answer, gold, task)


@functools.lru_cache(maxsize=1)
def _shared_grader(pid: int) -> Grader:  # one per process: a forked child must not write into its parent's pipes
    grader = Grader(workers=1)
    atexit.register(grader.close)
    return grader


def grade(completion_text: str, answer: str, task: str | None = None) -> bool:
    """Whether the completion's answer equals the gold `answer`, or is right by the scorer of `task`, a Problem.task.
    The default limits of Grader apply. One worker process starts when an answer first needs it, and is kept. For many
    answers, Grader is faster and counts the faults.
    """
    return _shared_grader(os.getpid()).grade_many([Attempt(completion_text, answer, task)])[0].correct
