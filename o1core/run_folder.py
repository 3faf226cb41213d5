"""A run's folder: every path in it is named here, once.

    settings.json    the settings of the run, with fingerprints of everything else that decides a result
    base/TEST/       evaluations before training      after/TEST/     evaluations after it
    round-00/        a round's rollouts/ and reference.safetensors
    state-*/         the newest training state        log.jsonl       one JSON line per optimiser step
    pruned/          the result, a Hugging Face folder
    result.json      the comparison of before and after, with plot.png

An evaluation's folder holds problems.json, rollouts/ and result.json. `o1core eval` makes one that is a run by itself.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_object, write_json

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
    def own_evaluation(self) -> EvaluationFolder:
        """The evaluation of a folder made by `o1core eval` or a study of samples, which has no sides."""
        return EvaluationFolder(self.path)

    def round(self, index: int) -> Path:
        return self.path / f"round-{index:02d}"

    def rollouts(self, round_index: int) -> Path:
        return self.round(round_index) / "rollouts"

    def reference(self, round_index: int) -> Path:
        return self.round(round_index) / "reference.safetensors"

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

    def claim(self, settings: dict[str, Any], model: Path) -> None:
        """Make the folder this run's own. Raises UserError where it holds a run with other settings, or anything else."""
        if self.settings.exists():
            held = read_object(self.settings)
            for name in settings:
                if held.get(name) != settings[name]:
                    both = f"{json.dumps(held.get(name))} there, {json.dumps(settings[name])} requested"
                    raise UserError(
                        f"{self.path}: holds a run with other settings ({name}: {both}); choose another --out"
                    )
            return
        if holds_something(self.path):
            raise UserError(f"{self.path}: is not empty and holds no settings.json; choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.settings, settings | {"model": str(model)})


def holds_something(folder: Path) -> bool:
    """Whether a folder holds more than what a kill left of a first write."""
    return folder.exists() and any(not path.name.endswith(".partial") for path in folder.iterdir())
