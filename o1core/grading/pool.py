"""Text in, right or wrong out: finds the answer in a completion and compares it with the gold answer.

Three steps, cheap before dear: `extract_answer` (regular expressions, linear in the text), `quick_equal` (equal text,
plain numbers and choice letters, in microseconds), and math-verify for the rest, in worker processes with a limit of
time and of memory each (grading_worker.py). Completions are strangers' text: "9^{9^{9^{9}}}" must cost its time limit
and nothing else.

A problem of reasoning-gym brings a scorer of its own: `extract_final` finds the answer as it was written, line breaks
and all, and the same workers score it.

Left out on purpose: partial credit, a judge model, and tolerance beyond math-verify's six decimals.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from ..errors import UserError

MAX_ANSWER_CHARS = 2000
MAX_TASK_ANSWER_CHARS = 20_000  # a board, a list of moves
_START_SECONDS = 120  # a worker needs about one; a machine under load more

_UNSIGNED = r"(?:[1-9]\d{0,2}(?:,\d{3}){1,9}(?!\d)|\d+)(?:\.\d+)?|\.\d+"  # {1,9}: without a bound, quadratic
_PLAIN = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)?(?:\.\d{1,6})?")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BRACELESS_BOX = re.compile(r"\\(?:boxed|fbox)\s*([-+]?[\d.,/]*\d)")
_GSM8K = re.compile(rf"^[ \t]*####[ \t]*\$?([-+]?\$?(?:{_UNSIGNED})[ \t]*%?)\.?[ \t]*\r?$", re.MULTILINE)
_CHOICE = re.compile(
    r"\b[Aa]nswer(?:\s+is|\s*:|\s+is\s*:)[\s*$]*(?:[Oo]ption\s+|[Cc]hoice\s+)?(?:\\text\{)?"
    r"(?:\(([A-Ja-j])\)|([A-J])(?=[*$}]*(?:\s*$|\s*\n|[.,;:)])))"
)
_LONE_LETTER = re.compile(r"[ \t*(]{0,8}([A-J])[).* \t]{0,8}")
_ANSWER_IS = re.compile(r"\b[Aa]nswer(?:\s*:|\s+is\b(?:\s*:)?)")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_NUMBER = re.compile(
    rf"-?\\[dt]?frac\{{-?\d+\}}\{{\d+\}}|(?<![\w.])(?:(?<![\w)}}])[-−])?(?:{_UNSIGNED})(?:\s?/\s?\d+)?(?:\s?\\?%)?"
)


def extract_answer(text: str) -> str | None:
    r"""The answer of a completion (or of a published solution), or None. In this order:

    1. the last \boxed{...} or \fbox{...} with balanced braces that is not empty (of nested ones the inner; a box cut
       off at the end of the text does not count; "\boxed 17" does);
    2. the last line that is GSM8K's "#### 1,234";
    3. the last "answer is (B)" or "Answer: B", letters A to J; or a last line that is a letter alone, "**B**" or "(B)";
    4. the last bare number: "1,234.5", "-3", "3/4", "\frac{3}{4}", "50%".
    """
    box = _last_box(text)
    if box is not None:
        return box
    if "####" in text and (found := _GSM8K.findall(text)):
        return found[-1].strip()
    if "nswer" in text and (found := _CHOICE.findall(text)):
        return (found[-1][0] or found[-1][1]).upper()
    if (match := _LONE_LETTER.fullmatch(text.rstrip().rpartition("\n")[2])) is not None:
        return match.group(1)
    for line in reversed(text.splitlines()):
        if found := _NUMBER.findall(line):
            return found[-1].strip()
    return None


def extract_final(text: str) -> str | None:
    r"""The answer of a completion to a task whose answer may be anything (a word, a board of several lines), or None.

    In this order: the last \boxed{...} as above, without a \text{} around the whole; the last <answer>...</answer>;
    what follows the last "Answer:" or "answer is" on its line, or below it up to a blank line; the last line.
    """
    box = _last_box(text)
    if box is not None:
        wrapped = _WRAPPED.fullmatch(box)
        return wrapped.group(1).strip() if wrapped else box
    before, tag, _ = text.rpartition("</answer>")
    if tag and "<answer>" in before:
        return before.rpartition("<answer>")[2].strip() or None
    start = max((match.end() for match in _ANSWER_IS.finditer(text)), default=None) if "nswer" in text else None
    if start is not None:
        line, _, below = text[start:].partition("\n")
        answer = line.strip(" \t\r*$`") or _BLANK_LINE.split(below.strip())[0].strip(" \t\r*$`\n")
        if answer:
            return answer
    return text.strip().rpartition("\n")[2].strip() or None


def _last_box(text: str) -> str | None:
    starts = [at for at in (text.find(r"\boxed"), text.find(r"\fbox")) if at >= 0]
    if not starts:
        return None
    # One pass with a stack: looking for the end of each box by itself would be quadratic in a text of open boxes.
    stack: list[int] = []  # where the content of an open box starts, or -1 for another brace
    best = (-1, -1)
    for match in _BRACE.finditer(text, min(starts)):
        token = match.group()
        if token == "{":
            stack.append(-1)
        elif token == "}":
            start = stack.pop() if stack else -1
            if start > best[0] and not text[start : match.start()].isspace() and start < match.start():
                best = (start, match.start())
        elif token[-1] == "{" and len(token) > 2:
            stack.append(match.end())
    for match in _BRACELESS_BOX.finditer(text, max(best[0], min(starts))):
        best = match.span(1)
    return text[slice(*best)].strip() if best[0] >= 0 else None


_THOUSANDS = re.compile(r",\s*\\!\s*(?=\d{3})")
_NOISE = re.compile(r"(?<!\\)\\[!,;:]|\\?\$|[€£¥]|\\displaystyle|\\dollars?\b")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|textrm|mbox|mathit)\{([^{}\\]*)\}")
_LETTER = re.compile(r"\(?\s*([A-Ja-j])\s*\)?(?:[.:)]\s.*)?", re.DOTALL)
_MIXED = re.compile(r"([-+]?\d+)\s+(\d+)\s?/\s?(\d+)")
_BLANK = re.compile(r"(?<!\d) | (?!\d)")
_PERCENT = re.compile(r"\s*(?:percent|percentage points?|pct)$", re.IGNORECASE)
_SET_BUILDER = re.compile(r"\\\{\s*[a-zA-Z]\s*(?:\||:|\\mid|\\vert)\s*(.+)\\\}", re.DOTALL)
_QUANTITY = re.compile(
    r"([-+]?[\d.,/]*\d)(?:\s*(?:cm|mm|km|dm|ft|in|yd|mi|kg|mg|lbs?|oz|hrs?|ml|mL|sq)\b|\s+([A-Za-z]{3,}))"
    r"[A-Za-z\s.]*(?:\^\{?[23]\}?|[²³])?"
)
# Words after a number that are no unit: they change its value.
_NO_UNIT = {
    *("hundred", "thousand", "million", "billion", "trillion", "dozen", "halves", "thirds", "percent", "and", "over"),
    *("plus", "minus", "times", "mod", "choose", "factorial", "base", "sqrt", "sin", "cos", "tan", "log", "exp"),
}


def tidy(answer: str) -> str:
    r"""A bare answer without what does not change its meaning: dollars, spacing commands, a sentence's full stop, bold
    marks, \text{} around the whole, a unit in plain words after a number, the frame of a set builder. The mixed number
    "1 1/2" becomes 1\frac{1}{2}, as math-verify reads it."""
    text = _THOUSANDS.sub(",", answer.replace("−", "-"))
    text = _NOISE.sub("", text).strip().strip("*").rstrip(".").strip()
    if (match := _WRAPPED.fullmatch(text)) is not None:
        text = match.group(1).strip().rstrip(".")
    if (match := _QUANTITY.fullmatch(text)) is not None and (match.group(2) or "").lower() not in _NO_UNIT:
        return match.group(1)
    if (match := _SET_BUILDER.fullmatch(text)) is not None:
        return match.group(1).strip()
    if (match := _MIXED.fullmatch(text)) is not None:
        return r"{}\frac{{{}}}{{{}}}".format(*match.groups())
    return _PERCENT.sub(r"\\%", text)


def _squeeze(text: str) -> str:
    return _BLANK.sub("", " ".join(text.split()).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac"))


def quick_equal(predicted: str, gold: str) -> bool | None:
    """Decides tidied answers that need no algebra, and None for the others. Equal text is equal; plain integers and
    decimals of at most 6 places (as far as math-verify looks) are compared by value; where the gold answer is a choice
    letter, so is the other, in either case. Blanks do not count, except between digits ("1 1/2")."""
    if predicted == gold:
        return gold != ""
    if _PLAIN.fullmatch(predicted) and _PLAIN.fullmatch(gold) and predicted[-1:].isdigit() and gold[-1:].isdigit():
        return Decimal(predicted.replace(",", "")) == Decimal(gold.replace(",", ""))
    if len(gold.strip("()")) == 1 and gold.strip("()") in "ABCDEFGHIJ" and (match := _LETTER.fullmatch(predicted)):
        return match.group(1).upper() == gold.strip("()")
    return True if _squeeze(predicted) == _squeeze(gold) else None


class Verdict(NamedTuple):
    correct: bool
    answer: str | None  # as extracted
    fault: str | None  # what kept it from a comparison: "no answer", "too long", "timeout", "memory", "death"


class _Worker:
    """One worker process, started at its first question and again after it died."""

    def __init__(self, seconds: float, memory_mib: int):
        self.seconds, self.memory_mib = seconds, memory_mib
        self.process: subprocess.Popen | None = None

    def ask(self, predicted: str, gold: str, task: str | None) -> tuple[bool, str | None]:
        """Returns (equal, fault). A death is tried once more in a fresh process: it may have been another's doing (an
        out-of-memory killer). A timeout is not."""
        question = {"predicted": predicted} if task is not None else {"predicted": predicted, "gold": gold}
        for _ in range(2):
            if self.process is None or self.process.poll() is not None:
                self._start()
            try:
                if task is not None:
                    self._send({"task": task})
                    self._await_ready(self.process, "check that reasoning-gym is installed: pip install 'o1core[gym]'")
                self._send(question)
                # The worker's own limit is processor time; this one is for a process that gets none.
                reply = _read_line(self.process.stdout.fileno(), 3 * self.seconds + 1)
            except BrokenPipeError:
                reply = None
            except TimeoutError:
                self.process.kill()
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

    def _send(self, request: dict) -> None:
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def stop(self) -> int | None:
        """Ends the process, if there is one, and returns its exit status (negative: the signal that killed it)."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        return process.wait()

    def _start(self) -> None:
        """Sets self.process once the new worker is ready to be asked."""
        self.stop()
        script = str(Path(__file__).with_name("worker.py"))
        # PYTHONHASHSEED: sympy's order of terms, and so its work, is the same each time. One thread, because numpy would
        # set aside memory for one a processor.
        single = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", script, str(self.seconds), str(self.memory_mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **single},
        )
        self._await_ready(
            process,
            f"check that math-verify is installed for {sys.executable} and that {self.memory_mib} MiB of memory are "
            "enough (256 are)",
        )
        self.process = process

    def _await_ready(self, process: subprocess.Popen, mend: str) -> None:
        """Waits until the process has loaded a library. Raises UserError, and ends it, where it cannot."""
        try:
            reply = _read_line(process.stdout.fileno(), _START_SECONDS) or {"error": "it ended without a word"}
        except TimeoutError:
            reply = {"error": f"it was not ready after {_START_SECONDS} s"}
        if "error" in reply:
            process.kill()
            process.communicate()
            raise UserError(f"the grading worker cannot start: {reply['error']}; {mend}")


def _read_line(fd: int, seconds: float) -> dict | None:
    """The next reply on a pipe, or None if its writer has ended. Raises TimeoutError."""
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
    """Grades completions; the answers that need algebra go to `workers` processes (default: the processors this process
    may use, at most 8), each answer with at most `seconds` of processor time and `memory_mib` of memory.

    An answer that hangs or kills its worker is wrong and holds up that worker alone, which is then replaced. So is a
    worker that has come to hold more than half its memory, since the next answer is not to suffer for the last.
    Processes start at the first answer that needs one. `counts` sums up everything since the beginning, for the
    caller's log: "graded", "algebra" (went to a worker, as a task's answers always do) and each fault of Verdict.
    Usable as a context manager; thread-safe.
    """

    def __init__(self, *, workers: int | None = None, seconds: float = 5.0, memory_mib: int = 1024):
        if workers is None:
            workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        if workers < 1 or seconds <= 0:
            raise UserError(f"a grader needs workers >= 1 and seconds > 0, not {workers} and {seconds}")
        self.counts: Counter[str] = Counter()
        self._workers = [_Worker(seconds, memory_mib) for _ in range(workers)]
        self._lock = threading.Lock()

    def grade_many(self, pairs: list[tuple[str, str] | tuple[str, str, str | None]]) -> list[Verdict]:
        """Verdicts of (completion text, gold answer) pairs, in their order. A third element, where there is one that is
        not None, is Problem.task: its scorer judges the answer, whatever the gold answer."""
        verdicts: list[Verdict | None] = []
        hard: dict[tuple[str, str, str | None], list[int]] = {}  # samples often agree: each pair is compared once
        for at, (text, gold, *task) in enumerate(pairs):
            verdict, open_question = _decide(text, gold) if task in ([], [None]) else _decide_task(text, gold, *task)
            verdicts.append(verdict)
            if open_question is not None:
                hard.setdefault(open_question, []).append(at)
        with self._lock:
            for (equal, fault), places in zip(self._compare(list(hard)), hard.values()):
                for at in places:
                    verdicts[at] = Verdict(equal, verdicts[at].answer, fault)
            self.counts["graded"] += len(pairs)
            self.counts["algebra"] += sum(map(len, hard.values()))
            self.counts.update(verdict.fault for verdict in verdicts if verdict.fault is not None)
        return verdicts

    def _compare(self, questions: list[tuple[str, str, str | None]]) -> list[tuple[bool, str | None]]:
        if not questions:
            return []
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            idle.put(worker)

        def compare(question: tuple[str, str, str | None]) -> tuple[bool, str | None]:
            worker = idle.get()
            try:
                return worker.ask(*question)
            finally:
                idle.put(worker)

        # Threads only wait on pipes here; a thread a worker is the simplest way to wait on several.
        with ThreadPoolExecutor(min(len(questions), len(self._workers))) as pool:
            return list(pool.map(compare, questions))

    def close(self) -> None:
        """Ends the worker processes. A later grade_many starts new ones."""
        with self._lock:
            for worker in self._workers:
                worker.stop()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _decide(text: str, gold: str) -> tuple[Verdict, tuple[str, str, None] | None]:
    """The verdict, and what to ask a worker if that is still needed: the tidied pair of answers."""
    answer = extract_answer(text)
    if answer is None:
        return Verdict(False, None, "no answer"), None
    if len(answer) > MAX_ANSWER_CHARS or len(gold) > MAX_ANSWER_CHARS:
        return Verdict(False, answer, "too long"), None
    equal = quick_equal(answer, gold)  # as they stand: most answers are plain numbers, and tidying costs more than this
    if equal is not None:
        return Verdict(equal, answer, None), None
    tidied = tidy(answer), tidy(gold)
    equal = quick_equal(*tidied) if all(tidied) else False
    return Verdict(equal is True, answer, None), None if equal is not None else (*tidied, None)


def _decide_task(text: str, gold: str, task: str) -> tuple[Verdict, tuple[str, str, str] | None]:
    """The same for an answer that only its task's scorer can judge."""
    answer = extract_final(text)
    if answer is None:
        return Verdict(False, None, "no answer"), None
    if len(answer) > MAX_TASK_ANSWER_CHARS:
        return Verdict(False, answer[:MAX_TASK_ANSWER_CHARS], "too long"), None
    return Verdict(False, answer, None), (answer, gold, task)


@functools.lru_cache(maxsize=1)
def _shared_grader(pid: int) -> Grader:  # by process: a forked child must not write into its parent's pipes
    grader = Grader(workers=1)
    atexit.register(grader.close)
    return grader


def grade(completion_text: str, answer: str, task: str | None = None) -> bool:
    """Whether the completion's answer is the gold `answer` (or, given a Problem.task, is right by its scorer), under the
    default limits of Grader. Its one worker process starts when an answer first needs it and is kept. For many answers,
    Grader is faster and counts the faults."""
    return _shared_grader(os.getpid()).grade_many([(completion_text, answer, task)])[0].correct
