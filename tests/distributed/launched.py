"""torchrun, as `torchrun FLAGS -m o1core ARGUMENTS` starts it, in processes that have imported everything already.

torchrun's own main() runs in a process of the tests' server, and starts this file in forks of itself (--start-method fork
--run-path). Each of them writes its process id into the launcher's folder, under its rank, and its standard error beside it.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.distributed.run import main as torchrun_main

from o1core.cli import main
from tests.distributed.worlds import SERVER

FOLDER = "O1CORE_TEST_LAUNCHER"


class Torchrun:
    """A torchrun at work in `folder`, where the standard error and the ids of its processes are."""

    def __init__(self, folder: Path, flags: list[str], arguments: list[str], **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        flags = [*flags, "--start-method", "fork", "--run-path", __file__]
        self.process = SERVER.Process(target=launch, args=(folder, [*flags, *arguments], environment))
        self.process.start()

    def told(self) -> str:
        """What it and its ranks have written to standard error."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("stderr*")))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.is_alive(), self.told()
            assert time.monotonic() < deadline, f"it never came to this point: {self.told()}"
            time.sleep(0.002)

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(int((self.folder / str(rank)).read_text()), number)

    def fill_disk(self, rank: int, room: int) -> None:
        """From here on the rank can write no file beyond `room` bytes."""
        limit = resource.RLIMIT_FSIZE
        pid = int((self.folder / str(rank)).read_text())
        resource.prlimit(pid, limit, (room, resource.prlimit(pid, limit)[1]))

    def end(self) -> int:
        """Wait for it; returns its exit status. No process is left."""
        self.process.join(200)
        if self.process.exitcode is None:
            self.process.kill()
        for path in self.folder.glob("[0-9]*"):
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)
        self.process.join()
        return self.process.exitcode


def launch(folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
    os.environ |= environment | {FOLDER: str(folder)}
    write_errors_to(folder / "stderr")
    torchrun_main(arguments)


def write_errors_to(path: Path) -> None:
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)


if __name__ == "__main__":
    note = Path(os.environ[FOLDER], os.environ["RANK"])
    write_errors_to(note.with_name(f"stderr-{note.name}"))
    note.with_suffix(".new").write_text(str(os.getpid()))
    note.with_suffix(".new").rename(note)
    torch.set_num_threads(1)
    if status := main(sys.argv[1:]):
        sys.exit(status)
