"""Which files of a checkpoint's folder are opened, and how their content is shown.

A folder may come from a stranger. Only regular files are opened: a FIFO or a device would hang. What is read as text,
and copied beside the pruned weights, must lie in the folder itself: through a symbolic link somebody's private file
would be published with the model. Folders of the Hugging Face cache hold nothing but links, into the `blobs` beside
`snapshots`, which is where those may point. Weights may be links to anywhere, since a file that is no safetensors file
of the right shapes is refused, and nobody should have to copy 60 GB.
"""

import os
import reprlib
import stat
from pathlib import Path

from ..errors import UserError

LARGEST_TEXT = 1 << 20  # bytes of a chat template; the longest published ones have 20 KB
LARGEST_FILE = 128 << 20  # bytes of any file but weights; the longest published tokenizer.json has 35 MB


def checkpoint_file(folder: Path, name: str, anywhere: bool = False) -> Path | None:
    """The path of a file of the checkpoint, or None where there is none. anywhere: it holds weights, which may be of any
    size and be linked from any place.

    Raises UserError where it is a link to nowhere or out of the folder, too large, or no regular file.
    """
    path = folder / name
    try:
        if not os.path.lexists(path):
            return None
        target = path.resolve(strict=True)
        home = folder.resolve()
        found = target.stat()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL; RuntimeError: a loop of links
        raise UserError(f"{path}: cannot be opened: {reason(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is not a regular file; remove it or put the checkpoint's own file there")
    if not anywhere and found.st_size > LARGEST_FILE:
        size = f"{found.st_size / (1 << 20):,.0f} MiB, more than the {LARGEST_FILE >> 20} that such a file may have"
        raise UserError(f"{path}: has {size}; fetch it again")
    allowed = [home, *(parent.with_name("blobs") for parent in home.parents if parent.name == "snapshots")]
    if not anywhere and not any(target.is_relative_to(place) for place in allowed):
        raise UserError(
            f"{path}: is a link to {target}, outside the checkpoint's folder; replace it by the file itself"
        )
    return path


def need_file(folder: Path, name: str, anywhere: bool = False) -> Path:
    """The same, where the file must be there."""
    path = checkpoint_file(folder, name, anywhere)
    if path is None:
        hint = (
            "; fetch it, or name the folder that holds it"
            if folder.is_dir()
            else "; give a Hugging Face folder, or a name on the hub such as Qwen/Qwen3-0.6B"
        )
        raise UserError(f"{folder / name}: no such file{hint}")
    return path


def read_text(path: Path) -> str:
    """The text of a small file. Raises UserError where it is large or not UTF-8."""
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise UserError(f"{path}: is larger than {LARGEST_TEXT >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None


def reason(error: Exception) -> str:
    """What an error says, in the system's words where it is the system's."""
    return str(getattr(error, "strerror", None) or error)


class _Shown(reprlib.Repr):
    """A value of a stranger's file, of any size and depth, in at most a few dozen characters."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxlong = self.maxother = 60


def shown(value: object) -> str:
    """How an error shows a value from a file."""
    return _Shown().repr(value)
