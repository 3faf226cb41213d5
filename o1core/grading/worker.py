"""The process that compares two answers symbolically, and scores those to reasoning-gym's tasks: `python -P
grading_worker.py SECONDS MEMORY_MIB`, started by o1core.grading and never by hand.

It is run by its path and imports nothing of o1core, so that a worker starts in under a second and holds no torch.
One request a line on stdin, one reply a line on stdout, both JSON: {"predicted", "gold"}, or {"task"} and then
{"predicted"}. It ends when stdin closes.

The limits are the kernel's, because sympy sits in C code (integer powers) where no Python handler runs: SIGPROF kills
the process after SECONDS of processor time on one answer, RLIMIT_AS makes memory beyond MEMORY_MIB an error. Processor
time and not wall time, so that a busy machine does not change who is right.

Some of reasoning-gym's scorers hand the answer to Python's eval or sympy's parse_expr, which is eval too. Text that is
no plain expression is never compiled here; and while an answer is worked on, an audit hook refuses processes, sockets,
foreign functions and every change to a file, whatever a library may have been talked into.
"""

import ast
import contextlib
import functools
import json
import logging
import os
import re
import resource
import signal
import sys


def equivalent(predicted: str, gold: str) -> bool:
    """Whether two bare answers (what stands inside the box) mean the same, by math-verify. Takes as long as it takes.

    Neither argument is symmetric to the other: the form of `gold` says what is asked for, so "x = 5" is right where
    "5" is the answer and the other way round. Text that no parser understands is compared as text.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    forms = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    # math-verify's own time limits rest on SIGALRM and Python handlers; the kernel's limit replaces them.
    sides = [parse(rf"\boxed{{{text}}}", forms, parsing_timeout=None) for text in (gold, predicted)]
    return verify(*sides, allow_set_relation_comp=True, timeout_seconds=None)


@functools.cache
def _scorer(dataset: str):
    """The scoring function of a task of reasoning-gym, under the task's default settings, as its problems were made."""
    from reasoning_gym.factory import get_score_answer_fn

    return get_score_answer_fn(dataset)


def scores_full(answer: str, task: dict) -> bool:
    """Whether reasoning-gym gives `answer` 1.0 in the task {"dataset", "entry"}. Takes as long as it takes."""
    gold = str(task["entry"]["answer"] or "")
    # Not a number lies at no distance from any number, for a scorer that looks whether the distance is too great.
    if "nan" in answer.lower() and "nan" not in gold.lower() and re.fullmatch(r"[-+()\d.\s*aijn]*", answer.lower()):
        return False
    with _guarded(may_compile=is_plain_expression(answer), trusted=gold):
        return _scorer(task["dataset"])(answer, task["entry"]) == 1.0


_FUNCTIONS = {
    *("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh"),
    *("atanh", "exp", "log", "ln", "sqrt", "pi", "Abs"),
}


def is_plain_expression(text: str) -> bool:
    """Whether `text` is made of numbers, one-letter names, common functions and + - * / ^ % . , ( ) alone: eval can be
    slow on it, but reaches nothing."""
    words = re.findall(r"[A-Za-z]+", re.sub(r"\b0[xX][0-9a-fA-F]+\b", "0", text))
    known = all(len(word) == 1 or word in _FUNCTIONS for word in words)
    return known and re.fullmatch(r"[A-Za-z0-9\s+\-*/^%.,()]*", text, re.ASCII) is not None


_guard = {"on": False, "may_compile": True, "trusted": ()}
_READS = {"os.listdir", "os.scandir"}  # importing a module does these


@contextlib.contextmanager
def _guarded(may_compile: bool, trusted: str = ""):
    """What may be compiled inside: any text, or none but `trusted` (a scorer may read its gold answer by eval)."""
    _guard.update(on=True, may_compile=may_compile, trusted=(trusted, trusted.encode()))
    try:
        yield
    finally:
        _guard["on"] = False


def _refuse(event: str, args: tuple) -> None:
    """The audit hook."""
    if not _guard["on"]:
        return
    if event == "compile":  # a module's own source comes with the name of its file
        from_text = str(args[1]).startswith(("<", "None"))
        refused = from_text and not _guard["may_compile"] and args[0] not in _guard["trusted"]
    elif event == "open":
        refused = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        room = event.partition(".")[0]
        refused = room in ("os", "subprocess", "socket", "ctypes", "shutil", "pty", "signal") and event not in _READS
    if refused:
        raise PermissionError(event)


def _peak_kib() -> int:
    """The most memory this process has held; 0 where there is no /proc. Not getrusage: its peak is inherited from the
    parent, which may hold a model."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def main(seconds: float, memory_mib: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes stdin
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    for limit, value in (
        (resource.RLIMIT_AS, memory_mib << 20),
        (resource.RLIMIT_FSIZE, 0),  # strangers' text never makes this process write a file
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(limit, (value, value))
    sys.dont_write_bytecode = True
    logging.disable(logging.CRITICAL)
    # The first call builds the parser's tables (a third of a second), which no answer should pay for.
    try:
        assert equivalent(r"\frac{2}{4}", "0.5")
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        return
    sys.addaudithook(_refuse)
    replies.write('{"ready": true}\n')

    for line in sys.stdin:
        request = json.loads(line)
        if "task" in request:  # what the next answer is for; to load its library is no answer's fault and has no limit
            try:
                task = ast.literal_eval(request["task"])
                _scorer(task["dataset"])
                replies.write('{"ready": true}\n')
            except Exception as error:
                replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            continue
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if "gold" not in request:
                equal = scores_full(request["predicted"], task)
            else:
                with _guarded(may_compile=True):  # math-verify lets plain expressions alone through to a parser
                    equal = equivalent(request["predicted"], request["gold"])
        except Exception:
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        # math-verify swallows a MemoryError, so the sign of one is a peak of more than half the limit.
        reply = {"equal": bool(equal), "swollen": _peak_kib() > memory_mib << 9}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
