"""Problems by the name of a data set on the Hugging Face hub: NAME, NAME:SPLIT or NAME:CONFIGURATION/SPLIT, and NAME@COMMIT
for one of its revisions.

A data set says which files are which split: in the YAML that begins its README, or by their names. Those files are
downloaded and read as any file is (rows.py). Left out on purpose: the datasets library, and data sets that are a program.
"""

import glob
import logging
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..files import read_yaml
from ..hub import Repo, command_for, fetch, fetch_large, files_of, is_hub_name
from .rows import SUFFIXES

log = logging.getLogger(__name__)

SPLITS = {  # in the name of a file: the split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
}
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # of the datasets library, no problems
LONGEST_PATTERN = 1000
MOST_FILES = 1000
_SOURCE = re.compile(r"(?P<name>[^:@]+)(?:@(?P<revision>[\w.-]+))?(?::(?P<part>[\w.-]+(?:/[\w.-]+)*))?")


class HubData(NamedTuple):
    """A data set's name taken apart. part: a split, a configuration, or both as CONFIGURATION/SPLIT."""

    name: str
    revision: str | None
    part: str | None

    @property
    def title(self) -> str:
        """What tables and folders call it: "gsm8k"; "gsm8k-socratic-train" where a part is named that is not the test."""
        of = "" if self.part in (None, "test") else f"-{self.part}".replace("/", "-")
        return self.name.rpartition("/")[2] + of

    def at(self, commit: str) -> str:
        """The name of the same at a commit."""
        return f"{self.name}@{commit}" + (f":{self.part}" if self.part else "")


def hub_data(source: str) -> HubData | None:
    """The data set that a source names; None where it is a path. A problem file's suffix makes it a path."""
    found = _SOURCE.fullmatch(source)
    if found is None or not is_hub_name(found["name"]) or source.endswith(SUFFIXES) or Path(source).exists():
        return None
    return HubData(found["name"], found["revision"], found["part"])


def download_data(source: HubData, split: str = "train") -> tuple[str, list[Path]]:
    """(the commit, the files) of one split; split: which one where the source names none.

    Raises UserError as `fetch` does, and where the data set has no such configuration or split, or none of a format that is
    read.
    """
    folder = fetch(Repo("dataset", source.name, source.revision), ["README.md"])
    repo = Repo("dataset", source.name, folder.name)
    held, are_all = files_of(repo, folder)
    names = choose(source, split, held, read_configurations(folder / "README.md"), "" if are_all else command_for(repo))
    if len(names) > MOST_FILES:
        raise UserError(
            f"{source.name}: {len(names):,} files; at most {MOST_FILES:,} are read, so download it yourself"
        )
    fetch_large(repo, names)
    parts = re.search(r"-of-(\d+)\.", names[0])
    if parts and len(names) < int(parts[1]):  # offline, with the files of another download alone
        raise UserError(
            f"{source.name}: {len(names)} of {int(parts[1])} files are in the cache; where there is a network: "
            f"{command_for(repo)}"
        )
    return folder.name, [folder / name for name in names]


class Configurations(NamedTuple):
    """splits: configuration: split: patterns of file names. meant: the configuration where none is named, if it is clear."""

    splits: dict[str, dict[str, list[str]]]
    meant: str | None


def read_configurations(readme: Path) -> Configurations | None:
    """What the README of a data set states; None where it states nothing that can be read."""
    try:
        text = readme.read_text(encoding="utf-8") if readme.exists() else ""
        stated = read_yaml(text.split("---", 2)[1], str(readme)) if text.startswith("---") else {}
    except (OSError, UnicodeError, IndexError, UserError):
        return None
    listed = stated.get("configs") if isinstance(stated, dict) else None
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    splits = {str(e.get("config_name", "default")): _splits(e.get("data_files"), e.get("data_dir")) for e in entries}
    default = [str(e.get("config_name", "default")) for e in entries if e.get("default") is True]
    named = [*default, *(name for name in ("default", "main") if name in splits), *(splits if len(splits) == 1 else ())]
    return Configurations(splits, named[0] if named else None) if any(splits.values()) else None


def _splits(stated: Any, folder: Any) -> dict[str, list[str]]:
    """split: patterns, of a README's data_files in any of its forms."""
    if isinstance(stated, dict):
        stated = [{"split": split, "path": path} for split, path in stated.items()]
    elif isinstance(stated, str) or (isinstance(stated, list) and all(isinstance(item, str) for item in stated)):
        stated = [{"split": "train", "path": stated}]
    within = f"{folder.strip('/')}/" if isinstance(folder, str) and folder.strip("/.") else ""
    found: dict[str, list[str]] = {}
    for entry in stated if isinstance(stated, list) else []:
        path = entry.get("path") if isinstance(entry, dict) else None
        for pattern in path if isinstance(path, list) else [path]:
            if isinstance(pattern, str) and isinstance(entry.get("split"), str) and len(pattern) < LONGEST_PATTERN:
                found.setdefault(entry["split"], []).append(within + pattern.removeprefix("./").replace("**/", "*"))
    return found


def choose(
    source: HubData, split: str, files: list[str], stated: Configurations | None, command: str = ""
) -> list[str]:
    """The files of the split that is meant, all of one format. command: what fetches the rest, where `files` are not all."""
    ends = {name: name.rpartition("/")[2] for name in files}
    readable = [name for name, end in ends.items() if end.endswith(SUFFIXES) and end not in ABOUT and end[0] != "."]
    folder, _, named = (source.part or "").rpartition("/")
    are_known = stated is not None
    if stated is None:
        stated = by_name([name for name in readable if name.startswith(f"{folder}/")] or readable, folder)
    if not folder and named in stated.splits:  # NAME:CONFIGURATION
        folder, named = named, ""
    configuration = folder or stated.meant
    if configuration is None:
        listed = ", ".join(list(stated.splits)[:20])
        example = f"{source.name}:{next(iter(stated.splits))}/{named or split}"
        raise UserError(f"{source.name}: has several configurations ({listed}); name one, as in {example}")
    splits = stated.splits.get(configuration, {})
    other = SPLITS.get(named, named)  # "val" of a "validation"
    wanted = other if other in splits else named
    if not named:
        wanted = next(iter(splits)) if len(splits) == 1 else split
        log.info("%s: reading its split %s/%s", source.name, configuration, wanted)
    names = [name for name in readable if any(fnmatch(name, pattern) for pattern in splits.get(wanted, []))]
    if not names and command and (wanted in splits or not are_known):
        raise UserError(
            f"{source.name}: the cache does not have the split {configuration}/{wanted}; where there is a network: {command}"
        )
    if not names:
        there = ", ".join(f"{name}/{of}" for name, parts in stated.splits.items() for of in parts) or "nothing"
        raise UserError(
            f"{source.name}: has no split {configuration}/{wanted} in a format that is read ({', '.join(SUFFIXES)}); there "
            f"is: {there}"
        )
    suffix = next(suffix for suffix in SUFFIXES if any(name.endswith(suffix) for name in names))
    if others := [name for name in names if not name.endswith(suffix)]:  # often the same once more
        log.warning("%s: only its %s files are read, and not, for example, %s", source.name, suffix, others[0])
    return [name for name in names if name.endswith(suffix)]


def by_name(files: list[str], folder: str) -> Configurations:
    """What the files' names say. The split stands in the file's own name, or else in that of a folder, the innermost first;
    where it stands in none, all files are for training. Files of a split in several folders are several configurations.
    folder: the configuration that is asked for, if any."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in files:
        *above, own = name.split("/")
        words = [word for part in (own, *reversed(above)) for word in re.split(r"[^a-z]+", part.lower())]
        if split := next((SPLITS[word] for word in words if word in SPLITS), None):
            home = "/".join(part for part in above if part.lower() not in SPLITS) or "default"
            found.setdefault(home, {}).setdefault(split, []).append(glob.escape(name))
    if len(found) > 1:
        return Configurations(found, None)
    splits = next(iter(found.values()), {"train": [glob.escape(name) for name in files]})
    return Configurations({folder or "default": splits}, folder or "default")
