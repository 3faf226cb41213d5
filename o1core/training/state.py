"""The training state on disk: everything that a killed run needs to end with the same bits as an undisturbed one.

A state is a folder state-000123-01 (optimiser steps done, round of the next one): the fp32 weights and both moments of the
optimiser as safetensors (training.safetensors; of many processes or a large model several files) and progress.json (round,
step, settings, checksums). Any number of processes can resume from it. A thread writes it while the next step's gradient
is made; the step waits for it before it changes a weight, and a round before it samples. It is named once all of it is on
the disk. Two are kept: the newest, and the one that its round started from, since a round whose rollouts are lost has to be
sampled from that again. There is no generator state to keep: every random choice is seeded by what it is for
(o1core.seeds).
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..distributed import BackgroundSave, damaged_by_all, digests_by_all, is_lead, load_tensors, on_rank0, save_tensors
from ..errors import UserError
from ..files import publish_folder, read_record, unwritable, write_record
from ..rewards import State
from ..run_folder import RunFolder
from .round_files import log_digest
from .update import Updater

log = logging.getLogger(__name__)

PROGRESS = "progress.json"
BATCHES = "by problem"  # how a round's batches are drawn (Picked.split)


@dataclass(frozen=True)
class Progress:
    """How far training is: `round_index` (from 0), `step` in it (that many are done), `steps` over all rounds, the state
    that the reward returned for this round, and whether its batches are drawn as they are now: those of versions before 0.2
    held other samples."""

    round_index: int = 0
    step: int = 0
    steps: int = 0
    reward: State = field(default_factory=dict)
    same_batches: bool = True


def save_state(run: RunFolder, updater: Updater, progress: Progress, settings: dict[str, Any]) -> None:
    """Start to write the state after `progress.steps` optimiser steps; updater.written() waits for its end. settings: those
    that decide the weights.

    Raises UserError, here or from there, where it cannot be written; the older states stay.
    """
    updater.written()
    folder = run.state(progress.steps, progress.round_index)
    partial = folder.with_name(f".{folder.name}.partial")

    def begin() -> bool:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            if folder.exists():  # a run that resumes at a round's start has just read it
                remove_older(run, folder)
                return False
            partial.mkdir(parents=True)
        except OSError as error:
            raise unwritable(folder, error) from None
        return True

    where = {"round": progress.round_index, "step": progress.step, "steps": progress.steps}
    record: dict[str, Any] = where | {"recipe": settings, "batches": BATCHES}
    if progress.reward:
        record["memory"] = progress.reward
    if is_lead():
        record |= {"log": log_digest(run.log, progress.steps)}
    if not on_rank0("the training state", begin):
        return
    tensors = trained_tensors(updater)
    updater.writing = BackgroundSave(
        lambda: write_state(run, tensors, partial, folder, record), updater.model.embed.device
    )


def write_state(
    run: RunFolder, tensors: dict[str, torch.Tensor], partial: Path, folder: Path, record: dict[str, Any]
) -> None:
    """Write a state into `partial`, name it `folder` once all of it is on the disk, and then remove older ones."""

    def publish() -> None:
        write_record(partial / PROGRESS, record | {"files": files})
        publish_folder(partial, folder)
        remove_older(run, folder)

    try:
        save_tensors(tensors, partial)
        files = digests_by_all("the training state", partial)
        on_rank0("the training state", publish)
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from None
    finally:
        if is_lead():
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def durable(updater: Updater) -> Iterator[None]:
    """On leaving, the newest state is on the disk: also where the run is stopped, or an error ends it."""
    try:
        yield
    except BaseException:  # also of torch: out of memory, or a rank that is gone
        with suppress(Exception):
            updater.written()
        raise
    updater.written()


def trained_tensors(updater: Updater) -> dict[str, torch.Tensor]:
    """The trained weights by their names, and the optimiser's moments as "MOMENT.NAME"."""
    tensors = {}
    for name, (_, master) in updater.pairs.items():
        tensors[name] = master.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in updater.optimiser.state[master]:
                tensors[f"{moment}.{name}"] = updater.optimiser.state[master][moment]
    return tensors


def remove_older(run: RunFolder, newest: Path) -> None:
    """Keep the newest state and the one that its round started from."""
    kept = {newest, round_start(run, newest)}
    for folder in run.states():
        if folder not in kept:
            shutil.rmtree(folder)


def round_start(run: RunFolder, state: Path) -> Path:
    """The oldest state of the same round: the policy that the round's rollouts are sampled from."""
    round_name = state.name.rpartition("-")[2]
    return min(folder for folder in [*run.states(), state] if folder.name.endswith(f"-{round_name}"))


def has_states(run: RunFolder) -> bool:
    """Whether the folder holds a training state."""
    return run.alone(lambda: bool(run.states()))


def rewind(run: RunFolder) -> bool:
    """Drop the states after the start of the newest one's round. False where that start is not there any more."""

    def act() -> bool:
        newest = run.states()[-1]
        start = round_start(run, newest)
        if read_record(start / PROGRESS).get("step") != 0:
            return False
        for folder in run.states():
            if folder > start:
                shutil.rmtree(folder)
        return True

    return run.alone(act)


def load_state(run: RunFolder, updater: Updater, settings: dict[str, Any]) -> Progress | None:
    """Load the newest state into the updater and its model. None where there is none.

    Raises UserError where it is damaged or was written under other settings.
    """
    newest = run.alone(lambda: [path.name for path in run.states()[-1:]])
    if not newest:
        return None
    folder = run.path / newest[0]
    raw = read_progress(run, folder)
    held = {name: raw["recipe"].get(name, settings[name]) for name in settings}
    if held != settings:
        raise UserError(f"{folder / PROGRESS}: written under other settings; use them, or another --out")
    if (damaged := damaged_by_all("the training state", folder, raw.get("files", {}))) is not None:
        raise UserError(f"{damaged}: damaged (its checksum differs); {how_to_go_back(run)}")
    progress = Progress(raw["round"], raw["step"], raw["steps"], raw.get("memory", {}), raw.get("batches") == BATCHES)
    if raw.get("log") not in (None, log_digest(run.log, progress.steps)):
        log.warning("%s: damaged or cut; it no longer shows what the first %d steps did", run.log, progress.steps)
    try:
        updater.reset(progress.steps)
        load_tensors(trained_tensors(updater), folder)
        updater.follow_masters()
    except OSError as error:
        raise UserError(f"{folder}: broken ({error}); {how_to_go_back(run)}") from None
    return progress


def read_progress(run: RunFolder, folder: Path) -> dict[str, Any]:
    """progress.json, of the shape that save_state writes."""
    try:
        raw = read_record(folder / PROGRESS)
    except UserError as error:
        raise UserError(f"{str(error).partition(';')[0]}; {how_to_go_back(run)}") from None
    counts = [raw.get(name) for name in ("round", "step", "steps")]
    whole = all(type(count) is int and 0 <= count < 2**62 for count in counts)
    files = raw.get("files", {})
    objects = (raw.get("recipe"), files, raw.get("memory", {}))
    if not whole or not all(isinstance(part, dict) for part in objects):
        raise UserError(f"{folder / PROGRESS}: not what a run writes; {how_to_go_back(run)}")
    if any(not isinstance(digest, str) or Path(name).name != name for name, digest in files.items()):
        raise UserError(
            f"{folder / PROGRESS}: files: not what a run writes; delete {folder} to resume from an older state"
        )
    return raw


def how_to_go_back(run: RunFolder) -> str:
    """What to delete where the newest state is lost."""
    *older, newest = run.states()
    if older:
        return f"delete {newest}, and the same command resumes from where the round started"
    return f"delete {newest} and every round-* folder after the first, and the same command trains from the start"
