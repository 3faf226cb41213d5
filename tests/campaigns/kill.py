"""Runs that are killed: by SIGKILL just before a file operation, by SIGKILL or SIGTERM at a random moment, or by the death
of one of their worker processes. Then the same command is given again, and the weights, the result and the log must be
those of a run that nobody disturbed, timings aside.

    python -m tests.campaigns kill [--cuts 200] [--seed 0]

The runs are `o1core prune` on a small random checkpoint: two rounds of 10 problems x 4 samples, 16 steps, two evaluations.
Each is a fork of this process, which has torch imported and computes in one thread.
"""

import builtins
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from o1core.cli import main
from o1core.files import file_digest
from o1core.model import checkpoint
from o1core.training import round_files
from tests.conftest import SETTINGS, build

TIMINGS = ("tokens_per_second", "peak_memory_mib", "seconds", "checkpoint", "sha256", "crc32")
KINDS = ("operation", "kill", "term", "worker")
LONGEST = 300  # seconds of one run, on a machine that does other things too


def run_kill(cuts: int, seed: int, folder: Path) -> Counter[str]:
    """Counts of "KIND: ok" and of "KIND: bad: ..." over `cuts` cuts, whose kinds take turns."""
    torch.set_num_threads(1)
    command = [*make_command(folder), "--out"]
    whole = folder / "whole"
    operations = folder / "operations"
    start = time.monotonic()
    status, output = finish(start_run([*command, str(whole)], whole, lambda: count_operations(operations)))
    assert status == 0, output
    seconds, total = time.monotonic() - start, int(operations.read_text())
    wanted = fingerprint(whole)
    rng, counts = random.Random(seed), Counter[str]()
    step = max(1, total // max(1, cuts // len(KINDS)))
    for cut in tqdm(range(cuts), desc="kill", unit="cut"):
        kind = KINDS[cut % len(KINDS)]
        at = (1 + cut // len(KINDS) * step) if kind == "operation" else rng.uniform(0.05, 1.0) * seconds
        verdict = one_cut(kind, at, rng, command, folder / f"cut-{cut}", wanted)
        counts[f"{kind}: {verdict}"] += 1
        if verdict != "ok":
            print(f"cut {cut}, {kind} at {at}: {verdict}", file=sys.stderr, flush=True)
    return counts


def make_command(folder: Path) -> list[str]:
    build(folder / "model")
    rows = (json.dumps({"problem": f"{a} + 5 = ?", "answer": str(a + 5)}) + "\n" for a in range(14))
    (folder / "problems.jsonl").write_text("".join(rows))
    return ["prune", "--model", str(folder / "model"), "--data", str(folder / "problems.jsonl"), *SETTINGS.split()]


def one_cut(kind: str, at: float, rng: random.Random, command: list[str], run: Path, wanted: dict[str, Any]) -> str:
    """Disturb one run, give the command again, and say "ok" or what is bad."""
    prepare: Callable[[], None] = (lambda: kill_before(int(at))) if kind == "operation" else (lambda: None)
    pid = start_run([*command, str(run)], run, prepare)
    if kind != "operation":
        disturb(pid, kind, at, rng)
    status, output = finish(pid)
    if "Traceback" in output:
        return f"bad: a traceback: {output.strip().splitlines()[-1][:200]}"
    if kind == "worker" and status != 0:
        return f"bad: a worker's death ended the run with status {status}"
    if kind == "term" and status not in (0, 128 + signal.SIGTERM):
        return f"bad: SIGTERM ended the run with status {status}"
    status, output = finish(start_run([*command, str(run)], run, lambda: None))
    if status != 0:
        return f"bad: not resumed: {output.strip().splitlines()[-1][:200]}"
    found = fingerprint(run)
    different = [name for name in wanted if found[name] != wanted[name]]
    left = [str(path.relative_to(run)) for path in run.rglob("*.partial")]
    if different or left:
        return f"bad: other {', '.join(different)}" if different else f"bad: left behind: {', '.join(left)}"
    shutil.rmtree(run)
    return "ok"


def start_run(command: list[str], run: Path, prepare: Callable[[], None]) -> int:
    """Fork a process that runs the command, its output in a file beside the run's folder. Returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        with open(output_of(os.getpid()), "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # a test's have files of their own
        tqdm.set_lock(threading.RLock())  # tqdm's own is shared with the parent, which would wait for a killed child's
        prepare()
        status = main(command)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def output_of(pid: int) -> Path:
    return Path(os.environ.get("TMPDIR", "/tmp")) / f"o1core-campaign-{os.getuid()}-{pid}.txt"


def kill_once(pid: int, condition: Callable[[], bool]) -> bool:
    """Send a run SIGKILL once condition() holds; wait until it is gone. Whether it was still running then."""
    deadline = time.monotonic() + LONGEST
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and not condition():
        assert time.monotonic() < deadline, "never came to the point where it was to be killed"
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return finish(pid)[0] == -signal.SIGKILL


def finish(pid: int) -> tuple[int, str]:
    """(exit status, negative for a signal; what was printed) of a run, once it has ended."""
    deadline = time.monotonic() + LONGEST
    while True:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -999, "it hung"
        time.sleep(0.01)
    path = output_of(pid)
    text = path.read_text(errors="replace") if path.exists() else ""
    path.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(code), text


def disturb(pid: int, kind: str, seconds: float, rng: random.Random) -> None:
    """After some seconds, send the run, or one of its worker processes, a signal, if it is still there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.005)
    if kind == "worker":
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            os.kill(int(rng.choice(children)), signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGTERM if kind == "term" else signal.SIGKILL)


def on_operations(before: Callable[[int], None]) -> None:
    """Call before(count) before each operation of this process on files: opening to write, renaming, syncing, removing,
    making folders."""
    count = 0

    def spied(function: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if counts(*args, **kwargs):
                count += 1
                before(count)
            return function(*args, **kwargs)

        return call

    def always(*args: Any, **kwargs: Any) -> bool:
        return True

    def writes(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> bool:
        return not isinstance(file, int) and any(letter in mode for letter in "wax+")

    for name in ("replace", "fsync", "unlink", "rmdir", "mkdir", "ftruncate", "pwrite", "link"):
        setattr(os, name, spied(getattr(os, name), always))
    builtins.open = spied(builtins.open, writes)
    for module in (round_files, checkpoint):  # a tensor file is written outside of Python
        module.save_file = spied(module.save_file, always)


def count_operations(path: Path) -> None:
    plain_open = os.open

    def note(count: int) -> None:
        file = plain_open(path, os.O_WRONLY | os.O_CREAT)
        os.write(file, str(count).encode())
        os.close(file)

    on_operations(note)


def kill_before(operation: int) -> None:
    on_operations(lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == operation else None)


def fingerprint(run: Path) -> dict[str, Any]:
    """What must come out the same: weights bit by bit, result and log without timings."""
    log = [without_timings(json.loads(line)) for line in (run / "log.jsonl").read_text().splitlines()]
    result = without_timings(json.loads((run / "result.json").read_text()))
    return {"weights": file_digest(run / "pruned" / "model.safetensors"), "result": result, "log": log}


def without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_timings(item) for name, item in value.items() if name not in TIMINGS}
    return value
