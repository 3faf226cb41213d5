"""One owner of a run's folder: flock on a file in it, which the kernel lets go of when the process ends, however it ends.

The file holds the owner's process id while it is at work and nothing once it has ended with a word. So whoever gets the
lock and finds an id in the file knows that the last owner was killed.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import UserError


class RunLock:
    """A context manager that holds the lock of a folder. killed: id of the last owner, where it ended without a word."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.killed: int | None = None
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock, unless it is held already. Raises UserError naming the owner where another process holds it."""
        if self._file is not None:
            return
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        text = os.read(file, 32).decode(errors="replace").strip()
        owner = int(text) if text.isdecimal() and text.isascii() else None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise UserError(
                f"{self.path.parent}: process {owner or 'unknown'} is at work in this folder; wait for it, or choose "
                "another --out"
            ) from None
        self.killed, self._file = owner, file
        self._write(f"{os.getpid()}\n")

    def release(self) -> None:
        """Let go of the lock, if it is held."""
        if self._file is not None:
            self._write("")
            os.close(self._file)
            self._file = None

    def _write(self, text: str) -> None:
        assert self._file is not None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
