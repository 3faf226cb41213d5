"""Other people's text as it is shown."""

import pytest

from o1core.cli import main
from o1core.text import LONGEST_LINE, clean, one_line


@pytest.mark.parametrize("text", ["", "plain", "two\nlines", "naïve café, 日本語, ½ ≤ π", "a\u00a0b\u3000c"])
def test_ordinary_text_stays(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    "char", ["\x1b", "\x07", "\r", "\x00", "\x9b", "\u202e", "\u2066", "\u200b", "\ufeff", "\ud800", "\U000e0041"]
)
def test_what_a_terminal_would_obey_is_replaced(char):
    assert clean(f"a{char}b\nc") == "a\ufffdb\nc"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\x85", "\v"])
def test_a_message_is_one_line(end):
    assert one_line(f"config.json: bad{end}o1core: all is well") == "config.json: bad o1core: all is well"


def test_a_long_message_keeps_its_beginning_and_its_end():
    line = one_line("FILE, line 1: " + "x" * 10**7 + "; write the whole character")
    assert len(line) <= LONGEST_LINE
    assert line.startswith("FILE, line 1: ") and line.endswith("; write the whole character")


def test_an_error_shows_no_control_character(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["show", "no\x1b]0;title\x07\nwhere\udcff"]) == 2
    error = capsys.readouterr().err
    assert "no\ufffd]0;title\ufffd where\ufffd" in error and error.count("\n") == 1
