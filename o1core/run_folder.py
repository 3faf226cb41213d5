"""A run's folder: every path in it is named here, once.

    settings.json    the settings of the run, with fingerprints of everything else that decides a result
    base/TEST/       evaluations before training      after/TEST/     evaluations after it
    round-00/        a round's rollouts/ and reference.safetensors (while CRISP trains on it, teacher/ too)
    state-*/         the newest training state        log.jsonl       one JSON line per optimiser step
    pruned/          the result, a Hugging Face folder; pruned.json has the checksums of its files
    adapter/         with --lora-rank, the same as a PEFT adapter
    result.json      the comparison of before and after, with plot.png
    rounds-N/        what a run of N rounds had come to before it was given more
    lock             held by the process that owns the folder (run_lock.py)

An evaluation's folder holds problems.json, rollouts/ and result.json. `o1core eval` makes one that is a run by itself.
"""

import json
import logging
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_object, write_json

log = logging.getLogger(__name__)

SIDES = ("base", "after")  # the evaluations before and after training


@dataclass(frozen=True)
class EvaluationFolder:
    """The paths of one test's evaluation."""

    path: Path

    @property
    def problems(self) -> Path:
        return self.path / "problems.json"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def result(self) -> Path:
        return self.path / "result.json"


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run, whether they exist or not."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def plot(self) -> Path:
        return self.path / "plot.png"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def pruned(self) -> Path:
        return self.path / "pruned"

    @property
    def pruned_record(self) -> Path:
        return self.path / "pruned.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def own_evaluation(self) -> EvaluationFolder:
        """The evaluation of a folder made by `o1core eval` or a study of samples, which has no sides."""
        return EvaluationFolder(self.path)

    def round(self, index: int) -> Path:
        return self.path / f"round-{index:02d}"

    def rollouts(self, round_index: int) -> Path:
        return self.round(round_index) / "rollouts"

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

    def check(self, settings: dict[str, Any], free: Collection[str], defaults: dict[str, Any]) -> dict[str, Any]:
        """The settings that the folder holds. Raises UserError where they differ from those asked for, or where it holds
        anything but a run.

        free: names of settings that decide no result and may differ. `rounds` may be more than it was. defaults: of
        settings that a folder made by an older version does not name.
        """
        if not self.settings.exists():
            if holds_something(self.path):
                raise UserError(f"{self.path}: is not empty and holds no settings.json; choose another --out")
            return {}
        held = defaults | read_object(self.settings)
        for name, asked in settings.items():
            raised = name == "rounds" and isinstance(held.get(name), int) and held[name] < asked
            if name not in free and not raised and held.get(name) != asked:
                both = f"{json.dumps(held.get(name))} there, {json.dumps(asked)} requested"
                raise UserError(f"{self.path}: holds a run with other settings ({name}: {both}); choose another --out")
        return held

    def claim(self, settings: dict[str, Any], free: Collection[str], defaults: dict[str, Any], model: Path) -> None:
        """Make the folder this run's own. Raises UserError as `check` does. Changes of free settings are logged, and where
        there are more rounds than before, what the run had come to is moved to rounds-N."""
        held = self.check(settings, free, defaults)
        changed = {name for name in settings if held and held.get(name) != settings[name]}
        for name in sorted(changed & set(free)):
            log.warning(
                "%s: %s was %s and is now %s; the last bits of the weights may differ from an undisturbed run's",
                *(self.path, name, json.dumps(held[name]), json.dumps(settings[name])),
            )
        if "rounds" in changed:
            self._archive(held["rounds"])
        if changed or not held:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.settings, settings | {"model": str(model)})
        self._sweep()

    def _archive(self, rounds: int) -> None:
        """Move what depends on the last round out of the way of further rounds."""
        earlier = self.path / f"rounds-{rounds}"
        for path in (self.result, self.plot, self.pruned_record, self.pruned, self.adapter, self.path / SIDES[1]):
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


def holds_something(folder: Path) -> bool:
    """Whether a folder holds more than what a kill left of a first write."""
    return folder.exists() and any(
        not path.name.endswith(".partial") and path.name != "lock" for path in folder.iterdir()
    )
