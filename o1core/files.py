"""JSON and files in and out: read with an error that names the file, written whole, durably and with checksums.

Files come from other people, so what is read is a regular file of bounded size, and JSON holds nothing that would fail
later: no half surrogate pair, which no file can be written with, and no integer that is too large for a float (it is
read as infinity, as 1e999 is).
"""

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from safetensors import SafetensorError

from .errors import UserError

MAX_JSON_BYTES = 256 << 20  # of one value, which takes up to 24 times as much memory once it is parsed
MAX_YAML_CHARS = 200_000  # a reader in Python takes a second for them
CHECKSUM = "sha256"  # in a JSON record: the checksum of its other fields
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def open_regular(path: Path) -> BinaryIO:
    """The file, open for reading bytes. Raises UserError where it is missing, unreadable or not a regular file: a pipe
    would hang, and a device would never end."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:  # a NUL character or half a surrogate pair
        raise UserError(f"{path}: no path can hold such characters; give the path of a file") from None
    raise UserError(f"{path}: is a folder, a pipe or a device; give the path of a file")


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises UserError naming the file where it is missing, too large or broken."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = file.read(min(size, MAX_JSON_BYTES) + 1)  # as much is set aside at once, and most files are small
    if len(raw) > MAX_JSON_BYTES:
        raise UserError(f"{path}: holds more than {MAX_JSON_BYTES >> 20} MiB, the most that is read as one JSON value")
    return parse_json(decode(raw, str(path)), str(path))


def decode(raw: bytes, where: str) -> str:
    """UTF-8 text, a byte order mark left out. Raises UserError that begins with `where`."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        place = f" in line {line}" if b"\n" in raw.rstrip() else ""
        raise UserError(f"{where}: not valid JSON: not UTF-8{place}; save the file as UTF-8") from None


def parse_json(
    text: str, where: str, how_to_fix: str = "correct or replace it", number: Callable[[str], Any] | None = None
) -> Any:
    """The value of a JSON text. number: what becomes of a number's digits (None: an int or a float). Raises UserError
    that begins with `where`: the text is broken or nested too deeply, or holds half a surrogate pair."""
    try:
        value = json.loads(text, parse_int=number or _integer, parse_float=number)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        raise UserError(f"{where}: not valid JSON: {error.msg} ({line}column {error.colno}); {how_to_fix}") from None
    except RecursionError:
        raise UserError(f"{where}: not readable as JSON: it is nested too deeply; {how_to_fix}") from None
    except UnicodeEncodeError:
        raise UserError(f"{where}: a text holds half a surrogate pair; write the whole character") from None
    return value


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text of plain values: no objects of a program's. Raises UserError that begins with `where`."""
    import yaml  # few commands need it

    class Loader(yaml.SafeLoader):
        """What is no plain whole number is text, as in YAML 1.2: of 1.1, 010 is 8 and 1:30 is 90."""

        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
            first: [(tag, form) for tag, form in of if not tag.endswith(":int")]
            for first, of in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
    if len(text) > MAX_YAML_CHARS:
        raise UserError(f"{where}: more than {MAX_YAML_CHARS:,} characters of YAML; write fewer")
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = getattr(error, "problem", None) or (str(error).splitlines() or [""])[0]
        raise UserError(f"{where}: not valid YAML: {reason}{place}; correct it") from None
    except (RecursionError, ValueError, OverflowError) as error:  # nested too deeply; a date that does not exist
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{where}: not readable as YAML: {reason}; correct it") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 309 else float(digits)  # 2**1024 has 309 digits; int() raises from 4,301 on


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def read_record(path: Path, fix: str = "delete it and rerun the command that made it") -> dict[str, Any]:
    """The JSON object that write_record wrote, without its checksum. Raises UserError where the file is damaged; fix: what
    to do then.

    Files of versions before 0.2 hold no checksum and are read as they are.
    """
    value = read_object(path)
    held = value.pop(CHECKSUM, None)
    if held is None:  # an older file, unless the checksum's own name is what was damaged
        alike = (text for name, text in value.items() if len(name) == len(CHECKSUM) and isinstance(text, str))
        held = next((text for text in alike if len(text) == 64), None)
    if held is not None and held != json_digest(value):
        raise UserError(f"{path}: damaged or altered (its checksum differs); {fix}")
    return value


def write_record(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with a checksum of itself."""
    write_json(path, value | {CHECKSUM: json_digest(value)})


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let write(temporary path) make a file, and give it its name once it is on the disk.

    The file is there as a whole or not at all, whatever is killed or loses power. Nobody can have put a link where the
    temporary path is: its name cannot be guessed, and what is there already is never opened. Raises UserError where it
    cannot be written.
    """
    temporary = partial_of(path)
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        mode = stat.S_IMODE(os.fstat(file).st_mode)  # 0666 less the umask
        os.close(file)
        write(temporary)
        os.chmod(temporary, mode)  # safetensors puts a file of mode 0600 in its place
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


def partial_of(path: Path) -> Path:
    """Where a file or folder is written before it gets its name: beside it, under a name that nobody can guess. What a kill
    leaves there is swept by the next run (run_folder.py)."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def refuse_links(folder: Path) -> None:
    """Raise UserError where something below a folder is a symbolic link, which would lead what is written out of it."""
    link = next((path for path in folder.rglob("*") if path.is_symlink()), None)
    if link is not None:
        raise UserError(f"{link}: is a link, which a run does not follow; put the file or folder itself there")


def publish_folder(partial: Path, folder: Path) -> None:
    """Give a folder its name once everything in it is on the disk, readable by whom the folder lets in."""
    mode = stat.S_IMODE(partial.stat().st_mode) & 0o666  # mkdir's less the umask; safetensors writes files of mode 0600
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            os.chmod(path, mode)
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
    """path in the folder: SHA-256 of every file of it, for a record that `damaged_file` is later held against."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


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
