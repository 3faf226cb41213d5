"""What a report reads of a run's folder besides its result: tokenizer, rollouts, log, settings. Nothing outside of it."""

import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_object
from ..model import Tokenizer, read_config
from ..run_folder import RunFolder
from ..training import read_log


def check_inside(folder: Path, path: Path) -> None:
    """Raises UserError where a path that a result names is not inside its folder."""
    try:
        inside = folder.resolve() in path.resolve().parents
    except (OSError, ValueError):  # no name of a file: NUL, a lone surrogate
        inside = False
    if not inside:
        raise UserError(f"{folder / 'result.json'}: {str(path)!r} leads out of {folder}; such a result is not read")


def open_tokenizer(run: RunFolder) -> Tokenizer:
    """The tokenizer of the run's pruned checkpoint, so that a run can be moved to another machine, or else of its model."""
    folder = run.pruned
    if not (folder / "tokenizer.json").exists():
        model = read_object(run.settings).get("model")
        if not isinstance(model, str):
            raise UserError(f"{run.settings}: model: must be the path of a checkpoint; name it there")
        folder = Path(model)
    return Tokenizer(folder, read_config(folder).vocab_size)


def logged_steps(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of the run's log; none where it has not trained."""
    return [line for line in read_log(run.log) if isinstance(line, dict)] if run.log.exists() else []


def settings_of(run: RunFolder) -> list[tuple[str, str]]:
    """What the folder's settings.json says, as text; of the model's path its last name, the rest is this machine's."""
    settings = read_object(run.settings) if run.settings.exists() else {}
    if isinstance(settings.get("model"), str):
        settings["model"] = Path(settings["model"]).name
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in settings.items()]
