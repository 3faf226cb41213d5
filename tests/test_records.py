"""Dataclasses to JSON and back, and what is refused on the way."""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from o1core.errors import UserError
from o1core.records import INLINE, OMIT_NONE, Count, Fraction, from_json, to_json


@dataclass(frozen=True)
class Inner:
    share: Fraction
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(metadata=INLINE)
    count: Count
    rows: list[Inner]
    by_name: dict[str, Inner]
    words: list[str]
    anything: Any
    value: float | str | None = None
    seldom: float | None = field(default=None, metadata=OMIT_NONE)


GOOD = {
    "share": 0.5,
    "name": None,
    "count": 2,
    "rows": [{"share": 1.0, "name": "a"}],
    "by_name": {"x": {"share": 0.0, "name": None}},
    "words": [],
    "anything": {"deep": [1, None]},
    "value": "0-40",
}


def test_what_is_written_is_read_back():
    outer = from_json(Outer, GOOD, "file", "fix it")
    assert outer.inner == Inner(0.5) and outer.rows == [Inner(1.0, "a")] and outer.value == "0-40"
    assert to_json(outer) == GOOD
    assert from_json(Outer, to_json(outer), "file", "fix it") == outer
    assert to_json(from_json(Outer, GOOD | {"seldom": 2, "value": 1}, "file", ""))["seldom"] == 2.0


def test_missing_and_unknown_fields():
    without = {key: value for key, value in GOOD.items() if key not in ("name", "value")}
    assert from_json(Outer, without | {"of a later version": 1}, "file", "") == from_json(
        Outer, GOOD | {"value": None}, "file", ""
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"share": 2}, "file: share: 2.0 is above 1; fix it"),
        ({"share": -1}, "file: share: -1.0 is below 0; fix it"),
        ({"share": True}, "file: share: must be a number, not true; fix it"),
        ({"share": math.nan}, "file: share: must be a number, not NaN"),
        ({"share": 10**400}, "file: share: must be a number, not 1000"),
        ({"count": 1.5}, "file: count: must be a whole number, not 1.5"),
        ({"count": 10**400}, "file: count: 1000"),
        ({"count": None}, "file: count: must be a whole number, not null"),
        ({"rows": {}}, "file: rows: must be a list, not an object"),
        ({"rows": []}, "file: rows: is empty"),
        ({"rows": [{"share": 1}, {"name": "a"}]}, "file: rows[1]: lacks share"),
        ({"by_name": {"a\x1b": {"share": "x" * 99}}}, 'file: by_name: "a\\u001b": share: must be a number, not "xxx'),
        ({"words": [1]}, "file: words[0]: must be text, not 1"),
        ({"value": []}, "file: value: must be a number, not a list"),
    ],
)
def test_another_shape_is_refused_with_the_name_of_the_field(change, said):
    with pytest.raises(UserError, match="^" + re.escape(said)) as caught:
        from_json(Outer, json.loads(json.dumps(GOOD | change)), "file", "fix it")
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("value", [None, 1, "text", [], [[]]])
def test_a_file_that_holds_no_object_is_refused(value):
    with pytest.raises(UserError, match=r"^file: must be an object"):
        from_json(Outer, value, "file", "fix it")
