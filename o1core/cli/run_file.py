"""A run as a file: `o1core prune run.yaml`, YAML or JSON, holds any of the command's flags by their names.

    model: Qwen/Qwen3-0.6B
    data: openai/gsm8k:train
    eval_data: [openai/gsm8k:test]
    method: o1-pruner
    samples: 16
    template: {enable_thinking: false}

The file becomes the flags that it stands for, before those of the command line, which therefore override it. A run's own
settings.json is such a file too: it makes the same run again.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import decode, open_regular, parse_json, read_yaml
from ..text import nearest

TAKES_FILE = ("prune", "sample", "train", "eval", "study")
LARGEST = 1 << 20  # bytes
OF_A_RUN = "model_print"  # a run's settings.json has it, with more that no flag says
NOT_AGAIN = ("device", "recipe")  # of a settings.json: this machine's, and what its settings already hold


def flags_in(path: Path, actions: Mapping[str, argparse.Action]) -> list[str]:
    """The words of the command line that a file stands for. actions: the command's flags, by their spelling.

    Raises UserError naming the file and the key, where a key is no flag of the command or holds what no flag can.
    """
    values = read(path)
    of_a_run = OF_A_RUN in values
    words: list[str] = []
    for key, value in values.items():
        flag = "--" + str(key).replace("_", "-")
        action = actions.get(flag)
        if of_a_run and (action is None or key in NOT_AGAIN):
            continue
        if action is None or flag.startswith("--help"):
            raise UserError(f"{path}: {key} is no flag of this command{nearest(flag, actions)}")
        try:
            words += spelled(flag, value, action)
        except TypeError:
            raise UserError(f"{path}: {key}: a {type(value).__name__} of this kind is no value; see --help") from None
    return words


def read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: no such file; what stands after the command is a run file, YAML or JSON")
    with open_regular(path) as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise UserError(f"{path}: larger than {LARGEST >> 20} MiB; it is no run file")
    text = decode(raw, str(path))
    values = parse_json(text, str(path)) if path.suffix == ".json" else read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold names and values, such as `model: Qwen/Qwen3-0.6B`")
    return values


def spelled(flag: str, value: Any, action: argparse.Action) -> Iterator[str]:
    """One key as it is typed. Raises TypeError where it cannot be."""
    is_setting = action.default is argparse.SUPPRESS  # for which none is a value
    if value is None:
        yield from [f"{flag}=none"] if is_setting else []
    elif isinstance(action, argparse.BooleanOptionalAction) and isinstance(value, bool):
        yield flag if value else "--no-" + flag.removeprefix("--")
    elif action.nargs == 0:
        if not isinstance(value, bool):
            raise TypeError
        yield from [flag] if value else []
    elif isinstance(value, dict):  # --template, once for each of its variables
        for name, item in value.items():
            if not isinstance(item, str | bool | int | float):
                raise TypeError
            yield f"{flag}={name}={item if isinstance(item, str) else json.dumps(item)}"
    elif action.nargs == "+":
        yield flag
        yield from map(one_word, value if isinstance(value, list) else [value])
    else:
        yield f"{flag}={','.join(map(one_word, value)) if isinstance(value, list) else one_word(value)}"


def one_word(value: Any) -> str:
    if isinstance(value, dict | list) or value is None or isinstance(value, bool):
        raise TypeError
    return str(value)
