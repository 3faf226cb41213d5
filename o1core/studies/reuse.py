"""What two runs of a study have in common, the base's evaluation and the first round's samples, is made once.

The files are linked: they are never written to again, only replaced.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..files import read_object
from ..run_folder import SIDES, RunFolder

PROMPTING = (  # and how an answer is judged
    *("prompt", "system", "template", "thought_tags", "max_new_tokens", "top_p", "top_k", "seed"),
    *("truncated", "grader", "grader_print"),
)
BASE = SIDES[0]
DECIDED_BY = {  # a part of a run's folder: the settings that decide it
    BASE: ("model_print", "dtype", "tests", "eval_samples", "eval_temperature", *PROMPTING),
    "round-00/rollouts": (
        "model_print",
        "dtype",
        "train_print",
        "samples",
        "temperature",
        "instruction",
        "budget_low",
        "budget_high",
        "opening",
        *PROMPTING,
    ),
}


def reuse_parts(done: Sequence[RunFolder], run: RunFolder) -> None:
    """Give a run the parts that an earlier run has and that the same settings decide."""
    for part, names in DECIDED_BY.items():
        mine = read_object(run.settings)
        for source in done:
            theirs = read_object(source.settings)
            there, here = source.path / part, run.path / part
            if there.exists() and not here.exists() and all(theirs.get(name) == mine.get(name) for name in names):
                partial = run.path / ".shared.partial"
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(there, partial, copy_function=link)
                here.parent.mkdir(exist_ok=True)
                os.replace(partial, here)


def link(source: str | Path, target: str | Path) -> str:
    """A hard link, or a copy on a file system without links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return str(target)
