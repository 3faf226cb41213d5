"""The process that compares two answers symbolically: `python -P grading_worker.py SECONDS MEMORY_MIB`, started by
o1core.grading and never by hand.

It is run by its path and imports nothing of o1core, so that a worker starts in under a second and holds no torch.
One request a line on stdin, one reply a line on stdout, both JSON. It ends when stdin closes.

The limits are the kernel's, because sympy sits in C code (integer powers) where no Python handler runs: SIGPROF kills
the process after SECONDS of processor time on one answer, RLIMIT_AS makes memory beyond MEMORY_MIB an error. Processor
time and not wall time, so that a busy machine does not change who is right.
"""

import contextlib
import json
import logging
import os
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
    replies.write('{"ready": true}\n')

    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            equal = equivalent(request["predicted"], request["gold"])
        except (Exception, RecursionError):
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        # math-verify swallows a MemoryError, so the sign of one is a peak of more than half the limit.
        reply = {"equal": bool(equal), "swollen": _peak_kib() > memory_mib << 9}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
