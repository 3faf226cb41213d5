"""Checksums of a folder that all ranks see, each rank reading some of its files."""

from pathlib import Path

from ..distributed import meet, own, shares
from ..files import damaged_file, file_digest


def digests_by_all(what: str, folder: Path) -> dict[str, str]:
    """name: SHA-256 of every file of the folder, once all ranks have written theirs. what: the folder, for messages."""
    meet(what)
    names = sorted(path.name for path in folder.iterdir())
    mine = {names[i]: file_digest(folder / names[i]) for i in own(shares([1] * len(names)))}
    return {name: digest for of_rank in meet(what, mine) for name, digest in of_rank.items()}


def damaged_by_all(what: str, folder: Path, listed: dict[str, str]) -> Path | None:
    """What damaged_file returns."""
    names = sorted(listed)
    mine = damaged_file(folder, {names[i]: listed[names[i]] for i in own(shares([1] * len(names)))})
    found = [name for name in meet(what, None if mine is None else mine.name) if name is not None]
    return folder / found[0] if found else None
