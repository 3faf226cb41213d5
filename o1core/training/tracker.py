"""--tracker: what log.jsonl holds, sent to trackio, wandb or TensorBoard as well, each an optional extra; and at the end
accuracy, tokens and AES before and after, with a table of samples.

Left out on purpose: checkpoints and system figures; log.jsonl stays the record that a run resumes from. Steps that
a resumed run repeats have the same numbers as before, apart from timings; TensorBoard drops the older ones.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..distributed import is_lead
from ..errors import UserError
from ..tables import Cell, Column, Table, to_markdown

log = logging.getLogger(__name__)

Send = Callable[[int, Mapping[str, Any]], None]  # a step and its metrics: numbers, and Rows
Close = Callable[[], None]


@dataclass(frozen=True)
class Rows:
    """A table as a tracker shows it."""

    columns: list[str]
    rows: list[list[str | float]]


def check_installed(name: str) -> None:
    """Raise UserError where the library of a tracker is missing: at the start, not after hours of sampling."""
    if find_spec(name) is None:
        raise UserError(f"--tracker {name}: {name} is not installed; run pip install {name}")


def send_nothing(step: int, metrics: Mapping[str, Any]) -> None:
    """No tracker."""


@contextmanager
def open_tracker(name: str | None, folder: Path, settings: Mapping[str, Any]) -> Iterator[Send]:
    """A function that sends a step's metrics to the tracker (None: to none), which is closed at the end.

    folder: of the run, which names it there; the same folder and settings continue the same run. Raises UserError where
    the library refuses to start. One that fails later is switched off with a warning, and training continues.
    """
    if name is None or not is_lead():  # one rank tells for all
        yield send_nothing
        return
    try:
        send, close = OPENERS[name](folder, settings)
    except Exception as error:
        raise UserError(f"--tracker {name}: {error}") from None
    failed = False

    def send_or_warn(step: int, metrics: Mapping[str, Any]) -> None:
        nonlocal failed
        try:
            if not failed:
                send(step, metrics)
        except Exception as error:
            failed = True
            log.warning("--tracker %s: switched off, it failed at step %d: %s", name, step, error)

    try:
        yield send_or_warn
    finally:
        try:
            close()
        except Exception as error:
            log.warning("--tracker %s: could not be closed: %s", name, error)


class TensorBoard:
    """Event files in RUN/tensorboard. They open at the first step, from which on an interrupted run's older events are
    dropped."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open = partial(SummaryWriter, str(folder / "tensorboard"))
        self.writer: Any = None

    def send(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.writer = self.writer or self.open(purge_step=step)
        for name, value in metrics.items():
            if isinstance(value, Rows):
                columns = [Column(column) for column in value.columns]
                cells = [[Cell(str(cell)) for cell in row] for row in value.rows]
                self.writer.add_text(name, to_markdown(Table(name, columns, cells)), step)
            else:
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def open_tensorboard(folder: Path, settings: Mapping[str, Any]) -> tuple[Send, Close]:
    board = TensorBoard(folder)
    return board.send, board.close


def open_wandb(folder: Path, settings: Mapping[str, Any]) -> tuple[Send, Close]:
    """A run in wandb's project o1core, its local files in the run's folder. WANDB_MODE=offline keeps it there."""
    wandb = import_module("wandb")
    run = wandb.init(
        project="o1core",
        name=folder.name,
        id=identity(folder, settings),
        resume="allow",
        dir=str(folder),
        config=dict(settings),
    )
    return lambda step, metrics: run.log(with_tables(wandb, metrics), step=step), run.finish


def open_trackio(folder: Path, settings: Mapping[str, Any]) -> tuple[Send, Close]:
    """A run in trackio's project o1core, in its local database."""
    name = f"{folder.name}-{identity(folder, settings)}"  # by which trackio resumes
    trackio = import_module("trackio")
    run = trackio.init(project="o1core", name=name, resume="allow", config=dict(settings))
    return lambda step, metrics: run.log(with_tables(trackio, metrics), step=step), run.finish


def with_tables(library: Any, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with the library's own tables. Both have one of the same form."""
    return {
        name: library.Table(columns=value.columns, data=value.rows) if isinstance(value, Rows) else value
        for name, value in metrics.items()
    }


OPENERS = {"trackio": open_trackio, "wandb": open_wandb, "tensorboard": open_tensorboard}


def identity(folder: Path, settings: Mapping[str, Any]) -> str:
    """What tells one run from another of the same name: a hash of its place and settings."""
    text = json.dumps([str(folder.resolve()), dict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
