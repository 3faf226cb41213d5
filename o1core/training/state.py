"""The training state on disk: everything that a killed run needs to end with the same bits as one that was not.

A state is a folder state-000123: training.safetensors (fp32 weights and the optimiser's moments), progress.json (round, step,
settings). It is written under a temporary name and renamed, then the older one is deleted: at any moment one whole state
exists. There is no generator state to keep: every random choice is seeded by what it is for (o1core.seeds).
"""

import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from ..files import read_json, write_json
from ..run_folder import RunFolder
from .step import Updater


@dataclass(frozen=True)
class Progress:
    """How far training is: `round_index` (from 0), `step` in it (that many are done), `steps` over all rounds."""

    round_index: int = 0
    step: int = 0
    steps: int = 0


def save_state(run: RunFolder, updater: Updater, progress: Progress, settings: dict[str, Any]) -> None:
    """Write the state after `progress.steps` optimiser steps. settings: the recipe's flat form, checked on loading."""
    folder = run.state(progress.steps, progress.round_index)
    if folder.exists():  # a run that resumes at a round's start would write what it has just read
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {}
    for name, (_, master) in updater.pairs.items():
        tensors[name] = master.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in updater.optimiser.state[master]:
                tensors[f"{moment}.{name}"] = updater.optimiser.state[master][moment]
    save_file(tensors, partial / "training.safetensors")
    where = asdict(progress)
    write_json(partial / "progress.json", {"round": where.pop("round_index")} | where | {"recipe": settings})
    os.replace(partial, folder)
    for old in run.states()[:-1]:
        shutil.rmtree(old)


def load_state(run: RunFolder, updater: Updater, settings: dict[str, Any]) -> Progress | None:
    """Load the newest state into the updater and its model. None where there is none.

    Raises UserError where it is broken or was written under other settings.
    """
    if not run.states():
        return None
    folder = run.states()[-1]
    raw = read_json(folder / "progress.json")
    if raw["recipe"] != settings:
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
