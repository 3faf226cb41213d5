"""A process with limits of time, memory and output, for whatever strangers wrote: answers, templates, tokenizers, libraries.

A room is a Python file that defines `answer(request) -> reply`, both JSON objects. `Sandbox` is the parent's half: it
starts the process, asks, and starts another after a death. Below it stands the child's half, run by its path

    python -P o1core/sandbox.py ROOM.py SECONDS MEMORY_MIB     (never by hand)

which imports nothing of o1core, so that it starts in a tenth of a second and holds no torch.

The limits are the kernel's, since such code spends its time in C and in Rust, where no Python handler runs: SIGPROF
kills the process after SECONDS of processor time on one request, and memory beyond MEMORY_MIB cannot be had. Processor
time is what a request costs whatever else the machine does. Wall time ends only what seems dead (`patience`).

A room may also define `start()`, run once, and `load(request)`, run before each request without a limit of processor
time: loading a library is no request's fault.
"""

import contextlib
import importlib.util
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, Self

START_SECONDS = 300  # to load a room: it needs about one, on a machine under load more
# One thread, as each sets memory aside. A fixed hash seed, since sympy's order of terms and six of reasoning-gym's tasks
# follow it, and with them the work and the problems.
_ALONE = {
    **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
    **{"TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"},
}

# timeout: of processor time; starved: no reply in `patience`; raised: by the room, on this request; setup: it cannot start
Fault = Literal["timeout", "starved", "memory", "output", "death", "raised", "setup"]


class Refused(Exception):
    """A request was not answered; the message says why, and `fault` in one word."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


class _Killed(Refused):
    """Somebody killed the process, an out-of-memory killer perhaps."""


class Sandbox:
    """One process, started at its first request and again after it died. Thread-safe; a context manager.

    room: the file that answers. seconds: of processor time for each request. memory_mib: all that the process may hold;
    one that has held more than half is replaced, so that the next request does not suffer for the last (unless its room
    replies that it has not swollen). patience: seconds
    of wall time for a request (default: a minute and 60 times its processor time). output_mib: the longest reply.
    """

    def __init__(
        self, room: Path, seconds: float, memory_mib: int, patience: float | None = None, output_mib: int = 64
    ) -> None:
        self.room, self.seconds, self.memory_mib = room, seconds, memory_mib
        self.patience = 60 + 60 * seconds if patience is None else patience
        self.output_mib = output_mib
        self.process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The room's reply, with "swollen" for a process that came to hold more than half its memory. Raises Refused."""
        with self._lock:
            try:
                return self._ask(request)
            except _Killed:  # its cause may lie elsewhere: once more, in another process
                return self._ask(request)

    def close(self) -> None:
        """End the process. A later request starts a new one."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self._start()
        reply = self._exchange(json.dumps(request).encode() + b"\n", self.patience)
        if reply.get("swollen"):
            self._stop()
        if "fault" in reply:
            memory = reply["fault"] == "memory"
            raise Refused(self._needs("") if memory else reply["error"], reply["fault"])
        return reply

    def _start(self) -> None:
        self._stop()
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(self.room), str(self.seconds), str(self.memory_mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ALONE},
        )
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        try:
            reply = self._exchange(b"", START_SECONDS)
        except _Killed:
            raise
        except Refused as refused:
            raise Refused(str(refused), "setup") from None
        if "fault" in reply:
            self._stop()
            raise Refused(reply["error"], "setup")

    def _exchange(self, request: bytes, seconds: float) -> dict[str, Any]:
        """Send a line and wait for one. Where none comes, the process is ended."""
        try:
            line = self._line(memoryview(request), seconds)
        except BaseException:  # a timeout or Ctrl-C: a late reply must not be taken for that to the next request
            self._stop(kill=True)
            raise
        if line is None:
            status = self._stop()
            if status == -signal.SIGPROF:
                raise Refused(f"it takes more than {self.seconds:g} s of processor time", "timeout")
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            kind = _Killed if status == -signal.SIGKILL else Refused
            raise kind(self._needs(f"its process {how}: it is broken, or "), "death")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _needs(self, how: str) -> str:
        return f"{how or 'it '}needs more than {self.memory_mib} MiB of memory"

    def _line(self, request: memoryview, seconds: float) -> bytes | None:
        """Write the request and read a line, or None where the process ended before one."""
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin.fileno(), process.stdout.fileno()
        poll, deadline = select.poll(), time.monotonic() + seconds
        poll.register(stdout, select.POLLIN)
        if request:
            poll.register(stdin, select.POLLOUT)
        chunks, size = [b""], 0
        while not chunks[-1].endswith(b"\n"):
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not ready:
                raise Refused(f"there was no reply within {seconds:g} s", "starved")
            if stdin in ready:
                try:
                    request = request[os.write(stdin, request[: 1 << 16]) :]
                except BrokenPipeError:
                    request = request[len(request) :]  # what there is to read says why
                if not request:
                    poll.unregister(stdin)
            if stdout in ready:
                chunks.append(os.read(stdout, 1 << 20))
                size += len(chunks[-1])
                if not chunks[-1]:
                    return None
                if size > self.output_mib << 20:
                    raise Refused(f"its output is longer than {self.output_mib} MiB", "output")
        return b"".join(chunks)

    def _stop(self, kill: bool = False) -> int:
        """End the process, if there is one. Returns its exit status (negative: the signal that killed it)."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        if kill:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            return process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


# The child's half.


def serve(path: str, seconds: float, memory_mib: int) -> None:
    """Answer the requests on stdin, one a line, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes stdin
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not end up among the replies
    _limit(memory_mib)
    sys.dont_write_bytecode = True
    try:
        room = _open(path)
        getattr(room, "start", lambda: None)()
    except BaseException as error:
        replies.write(json.dumps({"fault": "setup", "error": _told(error)}) + "\n")
        return
    replies.write('{"ready": true}\n')
    for line in sys.stdin:
        replies.write(_reply(room, line, seconds, memory_mib) + "\n")


def _reply(room: ModuleType, line: str, seconds: float, memory_mib: int) -> str:
    fault = "setup"
    try:
        request = json.loads(line)
        if hasattr(room, "load"):
            room.load(request)
        fault = "raised"
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = room.answer(request)
        reply.setdefault("swollen", _peak_kib() > memory_mib << 9)
        return json.dumps(reply)
    except MemoryError:
        return '{"fault": "memory", "swollen": true}'
    except BaseException as error:  # a panic in Rust is no Exception
        return json.dumps({"fault": fault, "error": _told(error)})
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:4000]


def _open(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("room", path)
    assert spec is not None and spec.loader is not None
    room = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(room)
    return room


def _limit(memory_mib: int) -> None:
    for limit, value in (
        (resource.RLIMIT_AS, memory_mib << 20),
        (resource.RLIMIT_FSIZE, 0),  # no stranger's program writes a file
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(limit, (value, value))


def _peak_kib() -> int:
    """The most memory that this process has held, or 0 where there is no /proc. getrusage would not do: its peak is
    inherited from the parent, which may hold a model."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
