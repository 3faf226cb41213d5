"""JSON and files in and out: read with an error that names the file, written whole, durably and with checksums."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import UserError

CHECKSUM = "sha256"  # in a JSON record: the checksum of its other fields


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises UserError naming the file where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that write_record wrote, without its checksum. Raises UserError where the file is damaged.

    Files of versions before 0.2 hold no checksum and are read as they are.
    """
    value = read_object(path)
    held = value.pop(CHECKSUM, None)
    if held is None:  # an older file, unless the checksum's own name is what was damaged
        held = next((text for text in value.values() if isinstance(text, str) and len(text) == 64), None)
    if held is not None and held != json_digest(value):
        raise UserError(f"{path}: damaged (its checksum differs); delete it and rerun the command that made it")
    return value


def write_record(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with a checksum of itself."""
    write_json(path, value | {CHECKSUM: json_digest(value)})


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let write(temporary path) make a file, and give it its name once it is on the disk.

    The file is there as a whole or not at all, whatever is killed or loses power. Raises UserError where it cannot be
    written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomic(path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def publish_folder(partial: Path, folder: Path) -> None:
    """Give a folder its name once everything in it is on the disk."""
    for path in sorted(partial.rglob("*")):
        sync(path)
    sync(partial)
    os.replace(partial, folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: Exception) -> UserError:
    """What a failed write says: the file, and why."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UserError(
        f"{path}: cannot be written ({reason}); finished work is kept: make room and rerun the same command"
    )


def digests(folder: Path) -> dict[str, str]:
    """name: SHA-256 of every file of a folder, for a record that `damaged_file` is later held against."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


def damaged_file(folder: Path, listed: dict[str, str]) -> Path | None:
    """A file of the folder that is missing or not what the digests list; None where all are intact."""
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            return path
    return None


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
