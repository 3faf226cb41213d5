"""Dataclasses to JSON and back, checked: a value of another shape is refused with the name of the file and of the field.

This is the one means for results, problems, rewards' memories, recipes and the flags of the command line. A field's type
says what its JSON must be: float, int, bool, str, dict, Any, X | None, list[X], tuple[X, ...], dict[str, X] or a dataclass,
and Annotated[X, Within(...)] bounds it. A field with a default may be missing, and where the default is None it may be
null. Three notes in a field's metadata: "inline" puts the fields of a nested dataclass beside its own, "omit_none" leaves
the key out where the value is None, and "in_memory" keeps the field out of the JSON. Fields that a dataclass does not know
are ignored, so that files of a later version stay readable.

Left out on purpose: unions other than X | None and float | str, subclasses, and aliases. Why no library: msgspec names
neither the place in a list nor the key that is wrong; pydantic takes a quarter of a second to import, and true for 1.0.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UserError
from .own_code import is_own
from .text import nearest

T = TypeVar("T")

INLINE = {"inline": True}
OMIT_NONE = {"omit_none": True}
IN_MEMORY = {"in_memory": True}
NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text", dict: "an object"}
REMAKE = "delete the file and rerun the command that made it"  # how to fix what a command of ours wrote
SHOWN = 40  # characters of a wrong value that an error quotes


@dataclass(frozen=True)
class Within:
    """What a value must be besides its type. Of a number: low and high belong to the range, `above` does not. Of a text: one
    of the choices (or of what they return), or with own_code a FILE.py:function."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: Iterable[str] | Callable[[], Iterable[str]] | None = None
    own_code: bool = False


Fraction = Annotated[float, Within(0.0, 1.0)]
Figure = Annotated[float, Within(-1e12, 1e12)]  # a number that a table has room for
Amount = Annotated[float, Within(0.0, 1e12)]
Count = Annotated[int, Within(0, 10**12)]


def to_json(value: Any) -> Any:
    """The JSON of a dataclass, or of lists and dictionaries of them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Any] = {}
        for spec in dataclasses.fields(value):
            if spec.metadata.get("in_memory"):
                continue
            inner = to_json(getattr(value, spec.name))
            if spec.metadata.get("inline"):
                found |= inner
            elif inner is not None or not spec.metadata.get("omit_none"):
                found[spec.name] = inner
        return found
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    return value


def from_json(kind: type[T], value: Any, where: str, fix: str = REMAKE) -> T:
    """The value of type `kind` that JSON describes. where: the file, and fix: how to fix it, for the error.

    Raises UserError that names the field. Lists and dictionaries must not be empty, unless they hold text.
    """
    found: T = read(kind, value, where, fix)
    return found


def read(kind: Any, value: Any, where: str, fix: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        found = read(inner[0], value, where, fix)
        if wrong := fault(found, inner[1]):
            raise refused(where, f"{quote(found)} {wrong}", fix)
        return found
    if origin in (Union, UnionType):
        return read_optional(inner, value, where, fix)
    if dataclasses.is_dataclass(kind):
        return read_fields(kind, value, where, fix)
    if origin is dict:
        entries = expect(isinstance(value, dict), value, "an object", where, fix)
        filled(entries, inner[1], where, fix)
        return {name: read(inner[1], item, f"{where}: {quote(name)}", fix) for name, item in entries.items()}
    if origin in (list, tuple):
        items = expect(isinstance(value, list), value, "a list", where, fix)
        filled(items, inner[0], where, fix)
        return origin(read(inner[0], item, f"{where}[{i}]", fix) for i, item in enumerate(items))
    if kind is float:
        return float(expect(is_number(value), value, NAMES[float], where, fix))
    right = type(value) is kind  # bool is an int to isinstance
    return expect(right, value, NAMES[kind], where, fix)


def read_optional(kinds: tuple[Any, ...], value: Any, where: str, fix: str) -> Any:
    """X | None, or a union whose members differ in their JSON: text or a number."""
    if value is None and type(None) in kinds:
        return None
    members = [kind for kind in kinds if kind is not type(None)]
    fitting = [kind for kind in members if (kind is str) == isinstance(value, str)]
    return read((fitting or members)[0], value, where, fix)


def read_fields(kind: Any, value: Any, where: str, fix: str) -> Any:
    fields = expect(isinstance(value, dict), value, "an object", where, fix)
    hints = hints_of(kind)
    found = {}
    for spec in dataclasses.fields(kind):
        if spec.metadata.get("in_memory"):
            continue
        if spec.metadata.get("inline"):
            found[spec.name] = read(hints[spec.name], fields, where, fix)
        elif spec.name in fields and not (fields[spec.name] is None and spec.default is None):
            found[spec.name] = read(hints[spec.name], fields[spec.name], f"{where}: {spec.name}", fix)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise refused(where, f"lacks {spec.name}", fix)
    return kind(**found)


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(kind, include_extras=True)


def expect(right: bool, value: Any, wanted: str, where: str, fix: str) -> Any:
    if not right:
        raise refused(where, f"must be {wanted}, not {quote(value)}", fix)
    return value


def filled(values: Any, inner: Any, where: str, fix: str) -> None:
    if not values and inner not in (str, Any):
        raise refused(where, "is empty", fix)


def refused(where: str, what: str, fix: str) -> UserError:
    return UserError(f"{where}: {what}; {fix}" if fix else f"{where}: {what}")


def fault(value: Any, within: Within) -> str:
    """What is wrong with a value of the right type: "is below 2", or nothing."""
    if isinstance(value, str):
        return fault_of_text(value, within)
    if value is None or isinstance(value, bool | dict):
        return ""
    if within.low is not None and value < within.low:
        return f"is below {within.low:g}"
    if within.above is not None and value <= within.above:
        return f"is not above {within.above:g}"
    return f"is above {within.high:g}" if within.high is not None and value > within.high else ""


def fault_of_text(value: str, within: Within) -> str:
    if any(0xD800 <= ord(char) < 0xE000 for char in value):
        return "holds half of a surrogate pair; write the whole character"
    if within.own_code and is_own(value):
        return ""
    if within.own_code and (within.choices is None or ".py" in value):
        return "is not FILE.py:function, such as mine.py:f"
    choices = within.choices() if callable(within.choices) else within.choices
    if choices is not None and value not in choices:
        return f"is not {' or '.join(choices)}{nearest(value, choices)}"
    return ""


def is_number(value: Any) -> bool:
    """Whether JSON holds a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def quote(value: Any) -> str:
    """JSON as an error quotes it: its beginning."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value[:SHOWN] if isinstance(value, str) else value, default=str)[:SHOWN]
