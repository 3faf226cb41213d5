"""--reward FILE.py:function and --grader FILE.py:function: what is read, and what is refused in one line."""

import hashlib
import json
from pathlib import Path

import pytest

from o1core.cli import main
from o1core.errors import UserError
from o1core.own_code import is_own, load_own, own_digest, raised

MINE = "import math\n\ndef shorter(lengths, correct):\n    return correct / lengths\n\nother = shorter\n"


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("text", "own"),
    [("mine.py:shorter", True), ("/a b/mine.py:_f1", True), ("mine.py", False), ("mine:f", False), ("kimi", False)],
)
def test_the_spelling(text, own):
    assert is_own(text) == own


def test_a_function_is_loaded_and_its_file_has_a_digest(mine):
    assert load_own("--reward", "mine.py:shorter")(4, 1) == 0.25
    assert load_own("--reward", f"{mine}:other")(4, 1) == 0.25
    assert own_digest("--reward", "mine.py:shorter") == hashlib.sha256(MINE.encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing.py: no such file"),
        ("def other(): pass\n", "missing.py defines no f; write `def f(...)` at its top level"),
        ("def f(:\n", "missing.py is not Python in line 1: invalid syntax"),
        ("\0", "missing.py is not Python"),
        ("f = 1 / 0\n", "running missing.py raises ZeroDivisionError: division by zero (line 1)"),
        ("f = 3\n", "f of missing.py is not a function"),
    ],
)
def test_a_wrong_file_is_one_line_with_flag_file_and_function(mine, text, message):
    if text is not None:
        Path("missing.py").write_text(text)
    with pytest.raises(UserError) as error:
        load_own("--reward", "missing.py:f")
    assert str(error.value).startswith("--reward missing.py:f: ") and message in str(error.value)


def test_no_code_runs_when_the_settings_are_read(mine, capsys):
    Path("loud.py").write_text("open('ran', 'w')\n\ndef f(text, problem): ...\n")
    assert main(["prune", "--dry-run", "--grader", "loud.py:f"]) == 0
    assert json.loads(capsys.readouterr().out)["grader"] == "loud.py:f"
    assert not Path("ran").exists()


@pytest.mark.parametrize("flag", ["--reward", "--grader"])
def test_nothing_is_left_behind_by_a_run_with_a_wrong_file(mine, capsys, flag):
    for text in ("missing.py:f", "mine.py:longer"):
        assert main(["prune", flag, text, "--out", "run"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{flag} {text}: " in error
    assert not Path("run").exists()


def test_the_files_digest_belongs_to_the_settings(mine):
    from o1core.recipe import Recipe

    assert Recipe.of(reward="kimi").own_code() == {}
    assert Recipe.of(reward="mine.py:shorter", grader="mine.py:other").own_code() == {
        "reward_print": hashlib.sha256(MINE.encode()).hexdigest(),
        "grader_print": hashlib.sha256(MINE.encode()).hexdigest(),
    }


def test_an_exception_is_told_with_its_line(mine):
    mine.write_text("def f():\n    return {}['x']\n")
    try:
        load_own("--reward", "mine.py:f")()
    except KeyError as error:
        assert raised(error, Path("mine.py")) == "KeyError: 'x' (line 2)"
