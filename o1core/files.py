"""JSON and files in and out: read with an error that names the file, written whole or not at all."""

import json
import os
from pathlib import Path

from .errors import UserError


def read_json(path: Path):
    """The JSON in a file. Raises UserError naming the file where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def read_object(path: Path) -> dict:
    """The JSON object in a file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def write_atomic(path: Path, write) -> None:
    """Let write(temporary path) make a file, flush it to the disk and give it its name."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomic(path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))
