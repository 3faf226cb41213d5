"""The training state on disk: everything that a killed run needs to end with the same bits as one that was not.

A state is a folder state-000123: training.safetensors (fp32 weights and both AdamW moments), progress.json (round, step,
settings). It is written under a temporary name and renamed, then the older one is deleted: at any moment one whole state
exists. There is no generator state to keep: every random choice is seeded by what it is for (examples.seed_of).
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from ..files import read_json, write_json
from .step import Updater


@dataclass(frozen=True)
class Progress:
    """Where training stands: `round` (from 0), `step` in it (that many are done), `steps` over all rounds."""

    round: int = 0
    step: int = 0
    steps: int = 0


def save_state(run: Path, updater: Updater, progress: Progress) -> None:
    """Write the state after `progress.steps` optimiser steps."""
    folder = run / f"state-{progress.steps:06d}-{progress.round:02d}"
    if folder.exists():  # a run that goes on at a round's start would write what it has just read
        return
    partial = run / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {}
    for name, (_, master) in updater.pairs.items():
        tensors[name] = master.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in updater.optimiser.state[master]:
                tensors[f"{moment}.{name}"] = updater.optimiser.state[master][moment]
    save_file(tensors, partial / "training.safetensors")
    write_json(partial / "progress.json", asdict(progress) | {"recipe": updater.recipe.to_json()})
    os.replace(partial, folder)
    for old in states(run)[:-1]:
        shutil.rmtree(old)


def states(run: Path) -> list[Path]:
    """The whole states of a run, oldest first."""
    return sorted(path for path in run.glob("state-*") if path.is_dir())


def load_state(run: Path, updater: Updater) -> Progress | None:
    """Put the newest state into the updater and its model. None where there is none. Raises UserError if it is broken."""
    if not states(run):
        return None
    folder = states(run)[-1]
    raw = read_json(folder / "progress.json")
    if raw["recipe"] != updater.recipe.to_json():
        raise UserError(f"{folder / 'progress.json'}: written under other settings; use them, or another --out")
    progress = Progress(raw["round"], raw["step"], raw["steps"])
    try:
        with safe_open(folder / "training.safetensors", framework="pt") as file, torch.no_grad():
            for name, (weight, master) in updater.pairs.items():
                master.copy_(file.get_tensor(name))
                weight.copy_(master)
                if progress.steps:
                    updater.optimiser.state[master] = {
                        "step": torch.tensor(float(progress.steps), device=master.device),
                        "exp_avg": file.get_tensor(f"exp_avg.{name}").to(master.device),
                        "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(master.device),
                    }
    except SafetensorError as error:
        raise UserError(
            f"{folder / 'training.safetensors'}: broken ({error}); delete {folder} to start again"
        ) from None
    return progress
