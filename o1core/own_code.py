"""Functions in a user's own file: `--reward FILE.py:function` and `--grader FILE.py:function`.

The file is the user's own program and runs with the user's rights; nothing here is a sandbox. What is checked when the
settings are read, before any folder is claimed, is that the file parses and defines the function. That takes no
execution, so a grader's file first runs in the grading workers, which have limits of time and memory. The file's SHA-256
belongs to the run's settings: a run does not resume under a changed reward.
"""

import ast
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import open_regular

MOST_BYTES = 1 << 20  # of a file
_SPELLING = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


def is_own(text: str | None) -> bool:
    """Whether a setting names a function of one's own file: FILE.py:function."""
    return text is not None and _SPELLING.fullmatch(text) is not None


def own_digest(shown: str, text: str) -> str:
    """The SHA-256 of the file in FILE.py:function. shown: the flag, for the error.

    Raises UserError, in one line that names flag, file and function, where the file cannot be read, is no Python or does
    not define the function.
    """
    path, name = split(text)
    raw = read(shown, text)
    try:
        tree = ast.parse(raw, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{shown} {text}: {path} is not Python{line}: {error.args[0]}; correct the file") from None
    if name not in defined(tree):
        raise UserError(f"{shown} {text}: {path} defines no {name}; write `def {name}(...)` at its top level")
    return hashlib.sha256(raw).hexdigest()


def load_own(shown: str, text: str) -> Callable[..., Any]:
    """Run the file in FILE.py:function and return the function. Raises UserError as `own_digest` does, and where the file
    raises or the name is no function."""
    own_digest(shown, text)
    path, name = split(text)
    spec = importlib.util.spec_from_file_location(f"o1core_own_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look a module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{shown} {text}: running {path} raises {raised(error, path)}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{shown} {text}: {name} of {path} is not a function; write `def {name}(...)`")
    found: Callable[..., Any] = function
    return found


def raised(error: BaseException, path: Path) -> str:
    """An exception of a user's file in one line: its type and text, and the line of the file that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    place = f" (line {lines[-1]})" if lines else ""
    text = f": {error}" if str(error) else ""
    return f"{type(error).__name__}{text}{place}"


def split(text: str) -> tuple[Path, str]:
    found = _SPELLING.fullmatch(text)
    assert found is not None
    return Path(found[1]), found[2]


def read(shown: str, text: str) -> bytes:
    try:
        with open_regular(split(text)[0]) as file:
            raw = file.read(MOST_BYTES + 1)
    except UserError as error:
        raise UserError(f"{shown} {text}: {error}") from None
    if len(raw) > MOST_BYTES:
        raise UserError(f"{shown} {text}: the file holds more than {MOST_BYTES >> 20} MiB")
    return raw


def defined(tree: ast.Module) -> set[str]:
    """The names that a module binds at its top level."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found
