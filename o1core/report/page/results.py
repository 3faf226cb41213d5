"""result.json of a run or a study, read and checked: a page is made of numbers that are there, in folders that are ours.

Left out on purpose: fields that a page can do without. Where they are missing, it shows less.
"""

import json
import math
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import read_json

MEND = "make it anew with the command that made it"
NUMBER = (int, float)
EVALUATION = {
    "accuracy": NUMBER,
    "mean_tokens": NUMBER,
    "accuracy_low?": NUMBER,
    "accuracy_high?": NUMBER,
    "median_tokens?": NUMBER,
    "truncated?": NUMBER,
}
OUTCOME = {"base": EVALUATION, "pruned": EVALUATION, "length_cut": NUMBER, "accuracy_gain": NUMBER, "aes?": NUMBER}
RUN = {**OUTCOME, "tests": {str: OUTCOME}}
SPREAD = {"mean": NUMBER, "low": NUMBER, "high": NUMBER}
MEASURES = {"accuracy": SPREAD, "mean_tokens": SPREAD, "length_cut?": SPREAD, "aes?": SPREAD}
ROW = {
    "label": str,
    "runs": [str],
    "average": MEASURES,
    "tests": {str: MEASURES},
    "inference?": {"seconds": NUMBER, "ratio": NUMBER},
}
STUDY = {"study": str, "tests": [str], "rows": [ROW]}
INTERVAL = {
    "interval": NUMBER,
    "accuracy": NUMBER,
    "accuracy_low": NUMBER,
    "accuracy_high": NUMBER,
    "mean_tokens": NUMBER,
}
DISHARMONY = {"rows": [{"label": str, "problems": NUMBER, "intervals": [INTERVAL], "gap": SPREAD}]}
PROBLEMS = [{"id": str, "question": str, "answer": str, "level?": str, "subject?": str}]


def read_result(folder: Path) -> dict:
    """The checked result.json of a run or a study."""
    path = folder / "result.json"
    if not path.exists():
        raise UserError(
            f"{folder}: holds no result.json; `o1core prune --out {folder}` or `o1core study ... --out {folder}` make it"
        )
    result = read_json(path)
    study = result.get("study") if isinstance(result, dict) else None
    if study is None and isinstance(result, dict) and "base" not in result:
        raise UserError(
            f"{folder}: is no run or study; `o1core prune --out RUN` or `o1core study ... --out RUN` make one"
        )
    shape = RUN if study is None else DISHARMONY if study == "disharmony" else STUDY
    fits(result, shape, str(path))
    return result


def fits(value: Any, shape: Any, where: str) -> None:
    """Check JSON against a shape: NUMBER, str, [shape of all], {str: shape of all} or {name: shape}, where the value of a
    "name?" may be null or missing.

    Raises UserError naming the field. Lists and {str: ...} must not be empty, but for lists of text.
    """
    kind = type(shape) if isinstance(shape, dict | list) else shape
    right = isinstance(value, kind)
    if kind is NUMBER:
        right = is_number(value)
    if not right:
        wanted = {NUMBER: "a number", str: "text", list: "a list", dict: "an object"}[kind]
        raise UserError(f"{where}: must be {wanted}, not {json.dumps(value)[:40]}; {MEND}")
    if isinstance(shape, dict | list) and not value and shape != [str]:
        raise UserError(f"{where}: is empty; {MEND}")
    if isinstance(shape, list):
        for i, item in enumerate(value):
            fits(item, shape[0], f"{where}[{i}]")
    elif isinstance(shape, dict):
        for name, inner in {name: shape[str] for name in value}.items() if str in shape else shape.items():
            key = name.removesuffix("?")
            if key != name and value.get(key) is None:
                continue
            if key not in value:
                raise UserError(f"{where}: lacks {key}; {MEND}")
            fits(value[key], inner, f"{where}: {key}")


def inside(folder: Path, relative: str) -> Path:
    """folder/relative. Raises UserError where that is not inside the folder."""
    path = folder / relative
    root = folder.resolve()
    if "\0" in relative or root not in path.resolve().parents:
        raise UserError(f"{folder / 'result.json'}: {relative!r} leads out of {folder}; such a result is not read")
    return path


def is_number(value: Any) -> bool:
    return isinstance(value, NUMBER) and not isinstance(value, bool) and math.isfinite(value)
