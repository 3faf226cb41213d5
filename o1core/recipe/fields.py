"""What the parts of a recipe are made of: fields that know their help text, range and name.

A field's metadata holds its help text, its range or choices, and the name that the command line and JSON files use
for it where that differs from the attribute ("eval_samples" is EvaluationSettings.samples).
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..errors import UserError
from ..own_code import is_own

COUNT, TOKENS = 10**8, 10**9  # upper bounds that only a typing error exceeds


def setting(
    default: Any,
    help: str,
    *,
    name: str | None = None,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    own_code: bool = False,
) -> Any:
    """A field of a part. low and high belong to the range, `above` does not. own_code: FILE.py:function is a value too."""
    bounds = {"low": low, "high": high, "above": above}
    metadata = {"help": help, "name": name, "choices": choices, "own_code": own_code, **bounds}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def flat_name(spec: dataclasses.Field) -> str:
    """What JSON files call a field."""
    return spec.metadata["name"] or spec.name


def flag(name: str) -> str:
    """The command line's spelling of a flat name."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Settings:
    """What all parts have in common: values outside their ranges raise a UserError that names the flag."""

    title: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            check_range(flag(flat_name(spec)), getattr(self, spec.name), spec)


def check_range(shown: str, value: Any, spec: dataclasses.Field) -> None:
    """Raise UserError where a setting's value is not finite, out of its range or none of its choices."""
    low, high, above, choices = (spec.metadata[key] for key in ("low", "high", "above", "choices"))
    own = spec.metadata["own_code"]
    if isinstance(value, str) and not (own and is_own(value)):
        if own and (choices is None or ".py" in value):
            raise UserError(f"{shown}: {value} is not FILE.py:function, such as mine.py:{spec.name}")
        if choices is not None and value not in choices:
            raise UserError(f"{shown}: {value} is not {' or '.join(choices)}")
    if isinstance(value, str):
        if any(0xD800 <= ord(char) < 0xE000 for char in value):
            raise UserError(f"{shown}: holds half of a surrogate pair; write the whole character")
        return
    if value is None or isinstance(value, bool | dict):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{shown}: {value} is not a finite number")
    if low is not None and value < low:
        raise UserError(f"{shown}: {value} is below {low}")
    if above is not None and value <= above:
        raise UserError(f"{shown}: {value} is not above {above}")
    if high is not None and value > high:
        raise UserError(f"{shown}: {value} is above {high:g}")
