"""A process with limits of time and memory for what a stranger's checkpoint brings along: see worker.py."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 120  # seconds for one reply: the limit of a process that is given no processor time
ALONE = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}  # a thread sets memory aside, which is limited


class Refused(Exception):
    """The worker could not do what it was asked; the message says why."""


class Killed(Refused):
    """Somebody killed the worker."""


class Sandbox:
    """One worker process, started at its first request and again after it died. Thread-safe; a context manager.

    seconds: of processor time, for each request; memory_mib: all that the process may hold.
    """

    def __init__(self, seconds: float, memory_mib: int) -> None:
        self.seconds, self.memory_mib = seconds, memory_mib
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared: dict[str, Any] | None = None  # what the living process has prepared
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any] | None, prepare: dict[str, Any] | None = None) -> dict[str, Any]:
        """The reply to a request, after `prepare` where that is not what the process has prepared already; with None
        that alone is done. Raises Refused."""
        with self._lock:
            try:
                return self._exchange(request, prepare)
            except Killed:  # by an out-of-memory killer perhaps: once more, in another process
                return self._exchange(request, prepare)

    def close(self) -> None:
        """End the process. A later request starts a new one."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _exchange(self, request: dict[str, Any] | None, prepare: dict[str, Any] | None) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        if prepare is not None and prepare != self._prepared:
            self._prepared = None
            self._send(prepare)
            self._prepared = prepare
        return {} if request is None else self._send(request)

    def _send(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply of the living process. Where there is none, the process is ended."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        try:
            line = read_line(process.stdout.fileno(), PATIENCE)
        except TimeoutError:
            self._stop(kill=True)
            raise Refused(f"there was no reply within {PATIENCE} s") from None
        except BaseException:  # Ctrl-C: a late reply must not be taken for that to the next request
            self._stop(kill=True)
            raise
        if line is None:
            status = self._stop()
            if status == -signal.SIGPROF:
                raise Refused(f"it takes more than {self.seconds:g} s of processor time")
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            kind = Killed if status == -signal.SIGKILL else Refused
            raise kind(f"its process {how}: it is broken, or needs more than {self.memory_mib} MiB of memory")
        reply: dict[str, Any] = json.loads(line)
        if "swollen" in reply:
            self._stop()  # the next request is not to suffer for this one
            raise Refused(f"it needs more than {self.memory_mib} MiB of memory")
        if "error" in reply:
            raise Refused(reply["error"])
        return reply

    def _start(self) -> None:
        self._stop()
        script = str(Path(__file__).with_name("worker.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", script, str(self.seconds), str(self.memory_mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ALONE},
        )

    def _stop(self, kill: bool = False) -> int:
        """End the process, if there is one. Returns its exit status (negative: the signal that killed it)."""
        self._prepared = None
        if self._process is None:
            return 0
        process, self._process = self._process, None
        if kill:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            return process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def read_line(fd: int, seconds: float) -> bytes | None:
    """The next line on a pipe, or None where its writer ended before one. Raises TimeoutError."""
    deadline, chunks = time.monotonic() + seconds, [b""]
    while not chunks[-1].endswith(b"\n"):
        readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise TimeoutError
        chunks.append(os.read(fd, 1 << 20))
        if not chunks[-1]:
            return None
    return b"".join(chunks)
