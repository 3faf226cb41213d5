"""A run's folder: every path in it is named here, once, and so are its claim and its lock.

    settings.json    the settings of the run, with fingerprints of everything else that decides a result
    base/TEST/       evaluations before training      after/TEST/     evaluations after it
    round-00/        a round's rollouts/, reference.safetensors (while CRISP trains on it, teacher/ too) and samples.jsonl
    state-*/         the newest training state        log.jsonl       one JSON line per optimiser step
    pruned/          the result, a Hugging Face folder; pruned.json has the checksums of its files
    adapter/         with --lora-rank, the same as a PEFT adapter; dial/ has its evaluations at other scales
    validation/      with --eval-every, an evaluation after each round (round-00: before the first), and the best's weights
    result.json      the comparison of before and after, with plot.png
    rounds-N/        what a run of N rounds had come to before it was given more
    seconds.json     how long the run has taken so far
    lock             held by the process that owns the folder

An evaluation's folder holds problems.json, rollouts/, samples.jsonl and result.json. `o1core eval` makes one that is a run by
itself. samples.jsonl is the text of the rollouts beside it (rollout/text.py).

The lock is flock on a file, which the kernel lets go of when the process ends, however it ends. The file holds the owner's
process id while it is at work and nothing once it has ended properly. So whoever gets the lock and finds an id in the file
knows that the previous process was killed.

Rank 0 alone takes the lock and writes records here; all ranks call these functions, and get what it found. Rollouts,
states and the pruned model are written by several ranks.
"""

import contextlib
import fcntl
import json
import logging
import os
import shlex
import shutil
import stat
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from . import __version__
from .distributed import on_rank0
from .errors import UserError
from .files import damaged_file, digests, read_record, refuse_links, write_record
from .types import Problem

log = logging.getLogger(__name__)

T = TypeVar("T")

SIDES = ("base", "after")  # the evaluations before and after training
SHOWN = ("id", "question", "answer", "level", "subject")  # fields of a problem that problems.json keeps


class EvaluationFolder:
    """The paths of one test's evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems, self.rollouts, self.result = path / "problems.json", path / "rollouts", path / "result.json"
        self.samples = path / "samples.jsonl"

    def alone(self, act: Callable[[], T]) -> T:
        """As RunFolder's."""
        return on_rank0("the evaluation", act)

    def begin(self, problems: Sequence[Problem]) -> None:
        """Write problems.json: what a page or a study says of a problem beside its rollouts."""

        def write() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            shown = [{name: getattr(p, name) for name in SHOWN} for p in problems]
            write_record(self.problems, {"problems": shown})

        self.alone(write)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        self.alone(lambda: write_record(self.result, result))


class RunFolder:
    """The paths of a run, whether they exist or not. A context manager that lets go of the lock. killed: id of the last
    owner, where it ended without letting go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings, self.result, self.plot = path / "settings.json", path / "result.json", path / "plot.png"
        self.log, self.lock, self.clock = path / "log.jsonl", path / "lock", path / "seconds.json"
        self.pruned, self.pruned_record, self.adapter = path / "pruned", path / "pruned.json", path / "adapter"
        self.own_evaluation = EvaluationFolder(path)  # of a folder made by `o1core eval` or a study of samples
        self.killed: int | None = None
        self._before: float | None = None  # seconds of earlier processes, once they have been read
        self._opened = time.monotonic()
        self._lock: int | None = None  # file descriptor

    @property
    def dials(self) -> Path:
        return self.path / "dial"

    def dial(self, scale: float) -> Path:
        """The evaluations, and the checkpoint, of the adapter at a scale."""
        return self.dials / f"scale-{scale:g}"

    def round(self, index: int) -> Path:
        return self.path / f"round-{index:02d}"

    def rollouts(self, round_index: int) -> Path:
        return self.round(round_index) / "rollouts"

    def samples(self, round_index: int) -> Path:
        return self.round(round_index) / "samples.jsonl"

    def validation(self, rounds: int) -> EvaluationFolder:
        """The evaluation after so many rounds of training, on problems held out of it."""
        return EvaluationFolder(self.path / "validation" / f"round-{rounds:02d}")

    def kept(self, rounds: int) -> Path:
        """The checkpoint after so many rounds, while it is the best."""
        return self.validation(rounds).path / "checkpoint"

    def reference(self, round_index: int) -> Path:
        return self.round(round_index) / "reference.safetensors"

    def teacher(self, round_index: int) -> Path:
        return self.round(round_index) / "teacher"

    def state(self, steps: int, round_index: int) -> Path:
        """The training state after `steps` optimiser steps, the next of which belongs to the round."""
        return self.path / f"state-{steps:06d}-{round_index:02d}"

    def states(self) -> list[Path]:
        """The training states, oldest first."""
        return sorted(path for path in self.path.glob("state-*") if path.is_dir())

    def evaluation(self, side: str, test: str) -> EvaluationFolder:
        """The evaluation of a test on one of the SIDES."""
        assert side in SIDES
        return EvaluationFolder(self.path / side / test)

    def evaluations(self, side: str) -> dict[str, EvaluationFolder]:
        """test: its evaluation, of those on one of the SIDES that have rollouts."""
        folders = sorted((self.path / side).glob("*/rollouts"))
        return {folder.parent.name: EvaluationFolder(folder.parent) for folder in folders}

    def acquire(self) -> None:
        """Take the lock, unless it is held already. Raises UserError naming the owner where another process holds it."""
        if self._lock is not None:
            return
        file = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise UserError(f"{self.lock}: is not a file; remove it")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = lock_owner(file)
            os.close(file)
            raise UserError(
                f"{self.path}: process {owner or 'unknown'} is at work in this folder; wait for it, or choose another --out"
            ) from None
        # Read only now: before the lock was ours, an owner that was just ending well had its id there still.
        self.killed, self._lock = lock_owner(file), file
        self._write_lock(f"{os.getpid()}\n")

    def _write_lock(self, text: str) -> None:
        assert self._lock is not None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, text.encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            if self._before is not None:
                with contextlib.suppress(UserError, OSError):  # the disk is full: the rest of the run says so
                    write_record(self.clock, {"seconds": self.seconds(), "since": None})
            self._write_lock("")
            os.close(self._lock)
            self._lock = None

    def check(self, settings: dict[str, Any], free: Collection[str], defaults: dict[str, Any]) -> bool:
        """Whether the folder holds the result of this run already. Where it holds an unfinished part, the lock is taken.

        free: names of settings that decide no result and may differ. `rounds` may be more than it was. defaults: of
        settings that a folder made by an older version does not name. Raises UserError where the folder belongs to another
        run, to none, or to a process at work in it.
        """

        def act() -> bool:
            held = self._held(settings, free, defaults)
            finished = self.result.exists() and held.get("rounds") == settings.get("rounds")
            if held and not finished:
                self.acquire()
            return finished

        return self.alone(act)

    def claim(
        self, settings: dict[str, Any], free: Collection[str], defaults: dict[str, Any], origin: dict[str, Any]
    ) -> None:
        """Own the folder from here on; files may be written to it. Raises UserError as `check` does. Changes of free
        settings are logged, and where there are more rounds than before, what the run had come to is moved to rounds-N.
        origin: what else settings.json keeps, of where the model and the problems came from and of the command that began the
        run or gave it more rounds."""

        def act() -> None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"--out: {self.path} cannot be made ({reason}); name another folder") from None
            self.acquire()
            if self.killed is not None:
                log.warning(
                    "%s: the previous process here (%d) was killed. If the machine ran out of memory, use a smaller "
                    "--micro-tokens or --slots, or --checkpointing",
                    *(self.path, self.killed),
                )
            held = self._held(settings, free, defaults)
            changed = {name for name in settings if held and held.get(name) != settings[name]}
            for name in sorted(changed & set(free)):
                if held[name] is None:  # chosen since; it has decided nothing yet
                    continue
                log.warning(
                    "%s: %s was %s and is now %s; the last bits of the weights may differ from an undisturbed run's",
                    *(self.path, name, json.dumps(held[name]), json.dumps(settings[name])),
                )
            if "rounds" in changed:
                self._archive(held["rounds"])
            self._start_clock()
            if changed or not held:
                same = {} if "rounds" in changed else {name: held[name] for name in origin if name in held}
                same.pop("checkpoint", None)  # the folder may have moved with the run
                write_record(self.settings, settings | origin | same | {"o1core": __version__})
            self._sweep()

        self.alone(act)

    def seconds(self) -> float:
        """How long the run has taken so far, over all processes that worked on it one after the other."""
        return (self._before or 0.0) + time.monotonic() - self._opened

    def _start_clock(self) -> None:
        """Read how long earlier processes took. One that was killed had worked at least until it last wrote something."""
        if self._before is not None:
            return
        self._before = 0.0
        with contextlib.suppress(UserError, OSError):
            held = read_record(self.clock) if self.clock.exists() else {}
            before, since = (float(held.get(name) or 0) for name in ("seconds", "since"))
            others = [path for path in self.path.rglob("*") if path not in (self.clock, self.lock) and path.is_file()]
            newest = max((path.stat().st_mtime for path in others), default=0.0)
            self._before = max(0.0, before) + (max(0.0, newest - since) if since else 0.0)
        write_record(self.clock, {"seconds": self._before, "since": time.time() - (time.monotonic() - self._opened)})

    def finish(self, result: dict[str, Any], plot: Callable[[], None]) -> None:
        """Write what the run has come to: the plot, and result.json last, by which a finished run is known."""

        def act() -> None:
            plot()
            write_record(self.result, result)

        on_rank0("the result", act)

    def held(self, name: str) -> Any:
        """A setting of the run that the folder holds; None where it holds none."""
        return self.alone(lambda: self.read_settings().get(name) if self.settings.exists() else None)

    def alone(self, act: Callable[[], T]) -> T:
        """Let one process act on the folder's files while the others wait; all get what it returns, a JSON value."""
        return on_rank0("the run's folder", act)

    def drop_reference(self, round_index: int) -> None:
        """Delete the round's reference log-probs, which belong to rollouts that are gone."""
        on_rank0("the reference", lambda: self.reference(round_index).unlink(missing_ok=True))

    def pruned_state(self) -> tuple[bool, bool]:
        """Whether there is a pruned checkpoint, and whether nothing about it is left to do: all of its files are there as
        they were written, or no state is there to make it again from."""

        def act() -> tuple[bool, bool]:
            exists = self.pruned.exists()
            return exists, exists and (self._pruned_is_intact() or not self.states())

        exists, done = on_rank0("the pruned checkpoint", act)
        return exists, done

    def write_pruned(self, save: Callable[[Path], None]) -> None:
        """Let all ranks save the pruned checkpoint, and keep the checksums of its files, unless it is there intact."""
        what = "the pruned checkpoint"
        if on_rank0(what, self._pruned_is_intact):
            return
        on_rank0(what, lambda: shutil.rmtree(self.pruned, ignore_errors=True))
        save(self.pruned)
        on_rank0(what, lambda: write_record(self.pruned_record, {"files": digests(self.pruned)}))

    def write_adapter(self, save: Callable[[Path], None]) -> None:
        """Let rank 0 save the adapter."""
        on_rank0("the adapter", lambda: save(self.adapter))

    def _pruned_is_intact(self) -> bool:
        if not self.pruned.exists() or not self.pruned_record.exists():
            return False
        files = read_record(self.pruned_record).get("files")
        return isinstance(files, dict) and damaged_file(self.pruned, files) is None

    def is_begun(self) -> bool:
        """Whether a run has claimed the folder before."""
        return self.alone(self.settings.exists)

    def _held(self, settings: dict[str, Any], free: Collection[str], defaults: dict[str, Any]) -> dict[str, Any]:
        """The settings that the folder holds."""
        refuse_links(self.path)
        if not self.settings.exists():
            if holds_something(self.path):
                raise UserError(f"{self.path}: is not empty and holds no settings.json; choose another --out")
            return {}
        held = defaults | self.read_settings()
        grown = isinstance(held.get("rounds"), int) and held["rounds"] < settings.get("rounds", 0)
        other = {name for name in settings if name not in free and held.get(name) != settings[name]}
        other -= {"rounds"} if grown else set()
        if other:
            name = next(name for name in settings if name in other)
            part, there, here = differing(name, held.get(name), settings[name])
            both = f"{part}: {json.dumps(there)} there, {json.dumps(here)} requested"
            flags = " ".join(as_flag(name, held[name]) for name in settings if name in other and name in defaults)
            way = f"continue it with {flags}, or choose" if other <= defaults.keys() else "choose"
            raise UserError(f"{self.path}: holds a run with other settings ({both}); {way} another --out")
        return held

    def read_settings(self) -> dict[str, Any]:
        """What settings.json says. Raises UserError where it was altered."""
        return read_record(self.settings, "restore it from a copy, or make the run again in another folder")

    def _archive(self, rounds: int) -> None:
        """Move what depends on the last round out of the way of further rounds."""
        earlier = self.path / f"rounds-{rounds}"
        for path in (
            self.result,
            self.plot,
            self.pruned_record,
            self.pruned,
            self.adapter,
            self.dials,
            self.path / SIDES[1],
        ):
            if path.exists():
                earlier.mkdir(exist_ok=True)
                os.replace(path, earlier / path.name)

    def _sweep(self) -> None:
        """Remove what killed writes left behind."""
        for path in [*self.path.rglob(".*.partial")]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def lock_owner(file: int) -> int | None:
    """The process id in a lock file, given as a descriptor; None where there is none."""
    text = os.pread(file, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdecimal() and text.isascii() else None


def as_flag(name: str, value: Any) -> str:
    """The flag that asks for a recipe's setting: "--cutoff 512", "--no-checkpointing", "--template a=1 --template b=2"."""
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    if isinstance(value, dict):
        return " ".join(f"--{words} {key}={json.dumps(item)}" for key, item in value.items())
    return f"--{words} {'none' if value is None else shlex.quote(str(value))}"


def differing(name: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    """The setting, and its two values; of fingerprints of several files the first file that differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        key = min(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
        return f"{name}: {key}", there.get(key), here.get(key)
    return name, there, here


def holds_something(folder: Path) -> bool:
    """Whether a folder holds more than what a kill left of a first write."""
    return folder.exists() and any(
        not path.name.endswith(".partial") and path.name != "lock" for path in folder.iterdir()
    )
