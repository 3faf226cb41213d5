"""Text in, right or wrong out: the Grader.

Four steps, the cheapest first. `after_thought` finds the part in which the answer is looked for, `extract_answer` the
answer, and `decide` settles equal text, plain numbers, labels, units and times of day in microseconds. What is left goes
to math-verify in worker processes (worker.py) with limits of time and memory (sandbox.py). Completions are untrusted text:
"9^{9^{9^{9}}}" may cost its time limit and nothing else.

A problem of reasoning-gym has a scorer of its own. `extract_final` finds the answer as it was written, line breaks
included, and the same workers score it. So they ask the user's own grader, where there is one.

Left out on purpose: partial credit, and a judge model.
"""

import atexit
import functools
import json
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, NamedTuple

from ..errors import UserError
from ..own_code import own_digest
from ..sandbox import Refused, Sandbox
from ..types import Problem
from .compare import decide
from .extract import THINK, ThoughtTags, after_thought, extract_answer, extract_final, last_box, last_boxes

MAX_ANSWER_CHARS = 2000
MAX_TASK_ANSWER_CHARS = 20_000  # a board, a list of moves
_ROOM = Path(__file__).with_name("worker.py")
_Question = str  # what a worker is asked, as JSON: samples often agree, so each question is asked once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One completion, and what it is to be compared with."""

    text: str
    gold: str
    task: str | None = None  # Problem.task: its scorer judges the answer, and the gold answer does not count
    problem: Problem | None = None  # what the user's own grader is shown
    in_thought: bool = False  # the prompt ends inside a thought (leaves_thought_open)
    cut_off: bool = False  # it met the limit of tokens (finish_reason "length")


class Verdict(NamedTuple):
    """Of one completion."""

    correct: bool
    answer: str | None  # as extracted
    fault: str | None  # why nothing was compared: "no answer", "cut off", "too long", or one of FAULTS


FAULTS = ("timeout", "memory", "death", "raised")  # what answers can do to a worker, and the user's grader to itself


class Grader:
    """Grades completions. The answers that need algebra go to `workers` processes (default: as many as there are
    processors for this process, at most 8), each with at most `seconds` of processor time and `memory_mib` of memory.

    tags: what opens and closes a thought; the answer is looked for behind it. truncated: "wrong", or "keep" to grade a
    completion that was cut off like any other; as a rule it counts only with a whole box behind its thought.
    function: "FILE.py:name", the user's own grader, called in the workers with the text after the thought and a problem
    that has Problem's fields; it returns whether the text is right.

    An answer that hangs or kills its worker is wrong. It holds up that worker alone, which is then replaced. Processor
    time decides, not wall time, so that a busy machine changes no verdict; a question whose worker got no processor time
    for minutes is asked again, alone, before it counts. Processes start at the first answer that needs one. `counts` adds
    up everything since the beginning for the caller's log: "graded", "algebra" (went to a worker, as a task's answers
    always do) and each fault of Verdict. A Grader is a context manager and thread-safe.

    Raises UserError where workers < 1 or seconds <= 0, where the function's file does not exist or define it, and in
    grade_many where a worker cannot start.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        seconds: float = 5.0,
        memory_mib: int = 1024,
        tags: ThoughtTags = THINK,
        truncated: Literal["wrong", "keep"] = "wrong",
        function: str | None = None,
    ):
        if workers is None:
            workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        if workers < 1 or seconds <= 0:
            raise UserError(f"a grader needs workers >= 1 and seconds > 0, not {workers} and {seconds}")
        if truncated not in ("wrong", "keep"):
            raise UserError(f'a grader\'s truncated is "wrong" or "keep", not {truncated!r}')
        if function is not None:
            own_digest("--grader", function)
        self.tags, self.truncated, self.function = tags, truncated, function
        self.counts: Counter[str] = Counter()
        self._workers = [Sandbox(_ROOM, seconds, memory_mib) for _ in range(workers)]
        self._lock = threading.Lock()

    def grade_many(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """Verdicts of the attempts, in their order."""
        verdicts: list[Verdict] = []
        hard: dict[_Question, list[int]] = {}
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
        if self.function is not None:
            problem = asdict(attempt.problem) if attempt.problem else {"answer": attempt.gold, "task": attempt.task}
            question = json.dumps({"text": final, "problem": problem, "function": self.function})
            return Verdict(False, _shown_answer(final), None), question
        if attempt.task is not None:
            return _decide_task(final, attempt.task)
        return _decide(final, attempt.gold)

    def _compare(self, questions: list[_Question]) -> list[tuple[bool, str | None]]:
        if not questions:
            return []
        idle: SimpleQueue[Sandbox] = SimpleQueue()
        for worker in self._workers:
            idle.put(worker)

        def compare(question: _Question) -> tuple[bool, str | None]:
            worker = idle.get()
            try:
                return self._ask(worker, question)
            finally:
                idle.put(worker)

        # These threads only wait on pipes. One thread per worker is the simplest way to wait on several.
        with ThreadPoolExecutor(min(len(questions), len(self._workers))) as pool:
            found = list(pool.map(compare, questions))
        for at, (_, fault) in enumerate(found):
            if fault == "starved":
                equal, fault = self._ask(self._workers[0], questions[at])
                found[at] = equal, "timeout" if fault == "starved" else fault
        return found

    def _ask(self, worker: Sandbox, question: _Question) -> tuple[bool, str | None]:
        """(equal, fault). Raises UserError where the worker cannot start."""
        try:
            reply = worker.ask(json.loads(question))
        except Refused as refused:
            if refused.fault == "setup":
                raise UserError(self._cannot_start(question, refused, worker.memory_mib)) from None
            if refused.fault == "raised" and not self.counts["raised"]:
                log.warning("--grader %s: %s; such answers count as wrong", self.function, refused)
            return False, "death" if refused.fault == "output" else refused.fault
        equal = bool(reply["equal"])
        return equal, "memory" if reply["swollen"] and not equal else None

    def _cannot_start(self, question: _Question, refused: Refused, memory_mib: int) -> str:
        if self.function is not None and "needs more" not in str(refused):
            return f"--grader {self.function}: it cannot be loaded: {refused}; correct the file"
        fix = (
            f"check that math-verify is installed for {sys.executable} and that {memory_mib} MiB of memory are enough "
        )
        fix += "(256 are)"
        if '"task"' in question:
            fix = "check that reasoning-gym is installed: pip install reasoning-gym"
        return f"the grading worker cannot start: {refused}; {fix}"

    def close(self) -> None:
        """Ends the worker processes. A later grade_many starts new ones."""
        with self._lock:
            for worker in self._workers:
                worker.close()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decide(text: str, gold: str) -> tuple[Verdict, _Question | None]:
    """The verdict, and the question for a worker where one is still needed: the tidied pairs of answers that algebra is to
    compare. Several boxes are several values, or one value in several forms: "20:34 or 8:34 p.m."."""
    answer, boxes = extract_answer(text), last_boxes(text)
    if answer is None:
        return Verdict(False, None, "no answer"), None
    if len(answer) > MAX_ANSWER_CHARS or len(gold) > MAX_ANSWER_CHARS:
        return Verdict(False, answer, "too long"), None
    ways = []
    for way in ([answer], boxes) if len(boxes) > 1 else ([answer],):
        decided = [decide(part, gold) for part in way]
        if all(part is True for part in decided):
            return Verdict(True, answer, None), None
        if False not in decided:
            ways.append([part for part in decided if part is not True])
    return Verdict(False, answer, None), json.dumps({"ways": ways}) if ways else None


def _decide_task(text: str, task: str) -> tuple[Verdict, _Question | None]:
    """The same for an answer that its task's scorer judges."""
    answer = extract_final(text)
    if answer is None:
        return Verdict(False, None, "no answer"), None
    if len(answer) > MAX_TASK_ANSWER_CHARS:
        return Verdict(False, answer[:MAX_TASK_ANSWER_CHARS], "too long"), None
    return Verdict(False, answer, None), json.dumps({"predicted": answer, "task": task})


def _shown_answer(text: str) -> str | None:
    """What a table shows of an answer that the user's own grader judges."""
    answer = extract_answer(text)
    return None if answer is None else answer[:MAX_ANSWER_CHARS]


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
