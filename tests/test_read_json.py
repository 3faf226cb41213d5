"""What is read from a file, and what is refused in one line."""

import math
import os

import pytest

from o1core.errors import UserError
from o1core.files import read_json, read_object


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', r"not valid JSON: .* \(column 8\)"),
        (b'{"a":\n1', r"not valid JSON: .* \(line 2, column 2\)"),
        (b'{"a": "\xff"}', "not valid JSON: not UTF-8; save"),
        (b'{\n"a": "\xff"}', "not UTF-8 in line 2; save"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ["\\ud800"]}', "half a surrogate pair"),
        (b'{"\\uDC00": 1}', "half a surrogate pair"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_whole_surrogate_pairs_and_large_integers_are_read(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00", "b": 1' + b"0" * 307 + b"}")
    assert read_json(path) == {"a": "\U0001f600", "b": 10**307}


@pytest.mark.parametrize("digits", [310, 5000])
def test_an_integer_too_large_for_a_float_is_infinite(tmp_path, digits):
    path = tmp_path / "data.json"
    path.write_text(f"[1{'0' * digits}, -1{'0' * digits}]")
    assert read_json(path) == [math.inf, -math.inf]


def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "is a folder, a pipe or a device"),
        (tmp_path, "is a folder, a pipe or a device"),
        (tmp_path / "missing", "no such file"),
        (tmp_path / "nul\0", "no path can hold such characters"),
        (tmp_path / "half\ud800", "no path can hold such characters"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
    ):
        with pytest.raises(UserError, match=message):
            read_json(path)


def test_a_file_larger_than_the_limit_is_refused(tmp_path):
    path = tmp_path / "data.json"
    with path.open("wb") as file:
        file.truncate(300 << 20)  # a hole: it takes no room
    with pytest.raises(UserError, match="more than 256 MiB"):
        read_json(path)


def test_an_object_is_asked_for(tmp_path):
    (tmp_path / "data.json").write_text("[1]")
    with pytest.raises(UserError, match="must hold a JSON object, not a list"):
        read_object(tmp_path / "data.json")


def test_an_error_is_one_clean_line_whatever_it_quotes():
    assert str(UserError("a\x1b[2Jb\nc")) == "a\ufffd[2Jb c"
