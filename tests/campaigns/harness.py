"""What the campaigns share: hostile values, damage to files, a command run inside this process or a function in a new one,
and what is bad about how it ended.

A case is a function of a random generator and an empty folder. It says "ok", "refused" (one clean line and exit status 2),
or what is bad.
"""

import contextlib
import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import o1core
from o1core.cli import main

TINY = Path(o1core.__file__).parent / "tiny_o1"
SECONDS = 120  # of one command, on a machine that does other things too
ESCAPE = "\x1b]0;title\x07\x9b31m"
TEXTS = (
    *("", "x", ESCAPE, "\u202eright to left", "\ud800", "\0", "a\nb\rc\u2028d\x85e", "a | b", "$\\foo$ $x_1^2$"),
    *("</script><script>alert(1)</script><!--", "&amp;]]>", "\ufffe\uffff", "\U000e0041\u200b", "é" * 300),
    *("x" * 100_000, "../../etc/passwd", "/etc", ".", "{{ x }}{% for %}", "%s%n", "-5", "#0b6e99"),
)
NUMBERS = (
    *(0, 1, -1, 2, 7, 2**31, 2**63, 2**64, 10**9, 10**12, 10**400, -(10**400), 0.5, -0.5, 1e-9, 1e-300, 1e300),
    *(math.inf, -math.inf, math.nan),
)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[2]], {"a": {"b": []}}, ["x", None], *TEXTS, *NUMBERS)
BYTES = (
    *(b"", b"\0", b"[", b"{", b"[]", b"{}", b"null", b"[1,", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000),
    *(b"\n\n", b"1" * 10_000, b"\x1b[2J" * 99),
)
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
OF_A_BAR = ("\r", "\x1b[A")  # what tqdm moves the cursor with


def outcome(command: list[str], page: Path | None = None) -> str:
    """What comes of a command in this process. page: a file that it may write, which must be clean too."""
    printed, errors = io.StringIO(), io.StringIO()
    try:
        with time_limit(SECONDS), redirect_stdout(printed), redirect_stderr(errors):
            status = main(command)
    except SystemExit as stop:  # argparse's own refusal
        status = stop.code if isinstance(stop.code, int) else -1
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {str(error)[:200]!r}"
        return f"bad: {told} from {' '.join(command)[:200]!r}"
    texts = {"stdout": printed.getvalue(), "stderr": errors.getvalue()}
    if page is not None and page.exists():
        texts["the page"] = page.read_text(encoding="utf-8")
    for name, text in texts.items():
        for move in OF_A_BAR if name == "stderr" else ():
            text = text.replace(move, "")
        if found := CONTROL.search(text):
            return f"bad: raw {found[0]!r} in {name} of {' '.join(command)[:200]!r}"
    return judged(status, texts["stderr"])


def judged(status: int, errors: str) -> str:
    """What an exit status and standard error say."""
    if "Traceback" in errors:
        return f"bad: a traceback: {errors.strip().splitlines()[-1][:200]}"
    if status == 2:
        last = errors.rstrip("\n").rpartition("\n")[2].rpartition("\r")[2]
        return "refused" if last.startswith("o1core: error: ") else f"bad: exit status 2 after {errors[-200:]!r}"
    return "ok" if status == 0 else f"bad: exit status {status}: {errors[-200:]!r}"


class TooLong(BaseException):
    """Not an OSError, as TimeoutError is: a command would tell that in one line."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooLong after that time. In the main thread alone, as signals are."""

    def stop(*_: object) -> None:
        raise TooLong(f"longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def start_child(function: Callable[..., Any], *arguments: Any, threads: int | None = None) -> subprocess.Popen[str]:
    """A new Python process that calls a function of a module with JSON arguments and prints what it returns as JSON."""
    program = (
        f"import json, sys; from {function.__module__} import {function.__name__} as function; "
        "print(json.dumps(function(*json.loads(sys.argv[1]))))"
    )
    own = {"OMP_WAIT_POLICY": "PASSIVE"} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | own,
    )


def in_a_child(function: Callable[..., Any], *arguments: Any, threads: int | None = None) -> Any:
    """What the function returns there."""
    child = start_child(function, *arguments, threads=threads)
    output = child.communicate()[0]
    assert child.returncode == 0, f"{function.__name__}{arguments} ended with {child.returncode}"
    return json.loads(output.splitlines()[-1])


# Damage to one file


def cut(rng: random.Random, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content) + 1)])


def flip_bit(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def replace_bytes(rng: random.Random, file: Path) -> None:
    file.write_bytes(rng.choice(BYTES))


def random_bytes(rng: random.Random, file: Path) -> None:
    file.write_bytes(rng.randbytes(rng.randrange(200)))


def remove(rng: random.Random, file: Path) -> None:
    file.unlink()


def make_folder(rng: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()
