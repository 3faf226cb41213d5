"""Single attacks, each of which succeeded once: `python -m tests.campaigns attacks [--only NAME]`.

An attack is a function of an empty folder. It says "ok", or what is bad. Most of them work on a small run in that folder,
or on one that was stopped half way.
"""

import functools
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from o1core.files import file_digest, read_json, write_json
from o1core.run_folder import RunFolder
from o1core.training import read_log

from .fuzz_cli import stopped_run
from .harness import ESCAPE, SECONDS, TINY, judged, outcome
from .kill import finish, make_command, start_run


def run_attacks(only: str | None, folder: Path) -> Counter[str]:
    """Counts of "NAME: ok" and "NAME: bad: ..."."""
    counts: Counter[str] = Counter()
    for name, attack in ATTACKS.items():
        if only in (None, name):
            place = folder / name
            place.mkdir()
            counts[f"{name}: {attack(place)}"] += 1
            shutil.rmtree(place, ignore_errors=True)
    return counts


@functools.cache
def finished_run() -> tuple[list[str], Path]:
    """A command without its --out, and the folder of a run that it has made."""
    folder = Path(tempfile.mkdtemp(prefix="o1core-attack-"))
    command = make_command(folder)
    verdict = outcome([*command, "--out", str(folder / "run")])
    assert verdict == "ok", verdict
    return command, folder / "run"


def shell(line: str, **environment: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a line of bash, in which "o1core" is this Python's."""
    line = f'o1core() {{ "{sys.executable}" -m o1core "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=SECONDS, env=os.environ | environment
    )
    return done.returncode, done.stdout, done.stderr


def words(command: list[str]) -> str:
    return " ".join(f"'{word}'" for word in command)


def reader_goes_away(folder: Path) -> str:
    """A run whose output is read no further ends with its result, or not with 0."""
    command = words([*finished_run()[0], "--out", str(folder / "run")])
    status, _, _ = shell(f"o1core {command} 2>&1 | head -c 300 >/dev/null; exit ${{PIPESTATUS[0]}}")
    whole = (folder / "run" / "result.json").exists()
    return "ok" if whole == (status == 0) else f"bad: status {status}, and a result: {whole}"


def streams_closed_or_full(folder: Path) -> str:
    """Standard error that is closed or full does no harm."""
    command, run = finished_run()
    for redirected in ("2>&-", "2>/dev/full", "<&- >&- 2>&-"):
        status, out, errors = shell(f"o1core {words([*command, '--out', str(run)])} {redirected}")
        if status != 0 or "Traceback" in out + errors:
            return f"bad: {redirected}: status {status}: {(out + errors)[-200:]}"
    return "ok"


def link_at_a_temporary_name(folder: Path) -> str:
    """What a link in a stranger's run points to is not overwritten."""
    shutil.copytree(finished_run()[1], folder / "run")
    (folder / "victim").write_text("mine")
    for name in (".report.html.partial", "report.html", ".report.html.0.partial"):
        (folder / "run" / name).unlink(missing_ok=True)
        (folder / "run" / name).symlink_to(folder / "victim")
    verdict = outcome(["report", str(folder / "run")])
    return verdict if (folder / "victim").read_text() == "mine" else "bad: written through"


def link_inside_a_run(folder: Path) -> str:
    """A run does not write out of its folder through a link."""
    command, run, _ = stopped_run()
    for place in ("base", "after", "round-00", "round-00/rollouts", "base/problems/rollouts", "log.jsonl"):
        mine = folder / "run"
        shutil.copytree(run, mine)
        if (mine / place).exists():
            os.rename(mine / place, folder / "elsewhere")
        else:
            (folder / "elsewhere").mkdir()
        (mine / place).symlink_to(folder / "elsewhere")
        before = content_of(folder / "elsewhere")
        verdict = outcome([*command, "--out", str(mine)])
        if verdict != "refused" or content_of(folder / "elsewhere") != before:
            return f"bad: {place} is a link: {verdict}"
        shutil.rmtree(mine)
        shutil.rmtree(folder / "elsewhere") if (folder / "elsewhere").is_dir() else (folder / "elsewhere").unlink()
    return "ok"


def content_of(path: Path) -> dict[str, str]:
    files = [file for file in [path, *path.rglob("*")] if file.is_file()]
    return {str(file): file_digest(file) for file in files}


def escape_in_a_name(folder: Path) -> str:
    """A folder's name does not drive the terminal."""
    run = folder / f"run{ESCAPE}\nrm -r ."
    shutil.copytree(finished_run()[1], run)
    model = folder / f"model{ESCAPE}"
    shutil.copytree(TINY, model)
    for command in (
        ["report", str(run)],
        ["show", str(run)],
        ["plan", "--model", str(model)],
        ["plan", "--model", str(run)],
        [*finished_run()[0], "--out", str(run)],
    ):
        verdict = outcome(command)
        if verdict not in ("ok", "refused"):
            return verdict
    return "ok"


def folder_removed_at_work(folder: Path) -> str:
    """`rm -r RUN/base` while a run goes ends it with one line at most, and the same command mends it."""
    command, run = [*finished_run()[0], "--out", str(folder / "run")], RunFolder(folder / "run")
    pid = start_run(command, run.path, lambda: None)
    deadline = time.monotonic() + SECONDS
    while not run.round(0).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.rmtree(run.path / "base")
    status, output = finish(pid)
    verdict = judged(status, output)
    if verdict not in ("ok", "refused"):
        return verdict
    return outcome(command)


def little_memory(folder: Path) -> str:
    """In 1 GiB of address space small files are read."""
    status, _, errors = shell(f"ulimit -v 1048576; o1core show {finished_run()[1]} --problems 1")
    return judged(status, errors)


def rank_that_is_no_number(folder: Path) -> str:
    """RANK=x is told."""
    status, _, errors = shell(f"o1core prune --out {folder}/run", RANK="x")
    return "ok" if judged(status, errors) == "refused" else f"bad: status {status}, told {errors[-200:]!r}"


def pipe_for_a_lock(folder: Path) -> str:
    """A pipe in place of the lock does not hang a run."""
    command, source, _ = stopped_run()
    shutil.copytree(source, folder / "run")
    (folder / "run" / "lock").unlink(missing_ok=True)
    os.mkfifo(folder / "run" / "lock")
    verdict = outcome([*command, "--out", str(folder / "run")])
    return "ok" if verdict == "refused" else f"bad: {verdict}"


def killed_rank(folder: Path) -> str:
    """Where nobody else watches the ranks, one that was killed is named as dead by the others, at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "o1core", *finished_run()[0], "--out", str(folder / "run")]
    ranks = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
        ranks.append(subprocess.Popen(command, env=os.environ | own, **pipes))  # type: ignore[call-overload]
    begun = time.monotonic()
    while not (folder / "run" / "round-00").exists() and time.monotonic() - begun < SECONDS:
        time.sleep(0.05)
    ranks[1].kill()
    try:
        errors = ranks[0].communicate(timeout=SECONDS)[1]
    except subprocess.TimeoutExpired:
        ranks[0].kill()
        return "bad: rank 0 waits on"
    finally:
        ranks[1].communicate()
    told = errors.replace("\r", "\n").strip().splitlines()[-1]
    said = told.startswith("o1core: error: ") and "rank 1 died" in told and "gave up" not in told
    return "ok" if ranks[0].returncode == 2 and said else f"bad: status {ranks[0].returncode}: {told[-300:]!r}"


def one_bit_of_the_records(folder: Path) -> str:
    """A flipped bit in the settings or the problems is said; in the log, the one line is lost and the rest stays."""
    rng = random.Random(0)
    for name in ("settings.json", "base/problems/problems.json", "log.jsonl"):
        run = RunFolder(folder / "run")
        shutil.copytree(finished_run()[1], run.path)
        file = run.path / name
        raw = bytearray(file.read_bytes())
        raw[rng.randrange(len(raw) // 4, len(raw) // 2)] ^= 1 << rng.randrange(7)
        file.write_bytes(raw)
        status, _, errors = shell(f"o1core report {run.path}")
        if judged(status, errors) not in ("ok", "refused") or f"{name}: " not in errors:
            return f"bad: {name} was changed: status {status}, told {errors[-300:]!r}"
        if name == "log.jsonl" and (status or len(read_log(file)) != len(read_log(finished_run()[1] / name)) - 1):
            return "bad: more than the damaged line of the log is lost"
        shutil.rmtree(run.path)
    return "ok"


def run_of_an_older_version(folder: Path) -> str:
    """Where a default has changed since, a line says which flags continue the run, and they do."""
    command, source, _ = stopped_run()
    run = RunFolder(folder / "run")
    shutil.copytree(source, run.path)
    held = {name: value for name, value in read_json(run.settings).items() if name not in ("sha256", "o1core")}
    write_json(run.settings, held | {"cutoff": 3000, "dynamic_sampling": True})
    status, _, errors = shell(f"o1core {words(command)} --out {run.path}")
    flags = "--dynamic-sampling --cutoff 3000"
    if status != 2 or f"continue it with {flags}, or choose another --out" not in errors:
        return f"bad: status {status}, told {errors[-300:]!r}"
    status, _, errors = shell(f"o1core {words(command)} --out {run.path} {flags}")
    states = "written under other settings"  # the training state's own record was not changed with it
    return "ok" if status == 2 and states in errors else f"bad: status {status}, told {errors[-300:]!r}"


ATTACKS: dict[str, Callable[[Path], str]] = {
    attack.__name__: attack
    for attack in (
        reader_goes_away,
        streams_closed_or_full,
        link_at_a_temporary_name,
        link_inside_a_run,
        escape_in_a_name,
        folder_removed_at_work,
        little_memory,
        rank_that_is_no_number,
        pipe_for_a_lock,
        killed_rank,
        one_bit_of_the_records,
        run_of_an_older_version,
    )
}
