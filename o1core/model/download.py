"""A checkpoint by its path or by its name on the Hugging Face hub: which of a repository's files are read."""

from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..files import read_json
from ..hub import Repo, fetch, fetch_large, files_of, is_hub_name
from .checkpoint import COPIED, INDEX, MORE_TEMPLATES, SINGLE
from .config import read_config
from .folder import shown

LICENCES = ("LICENCE", "NOTICE*", "USE_POLICY.md")  # besides those that are copied: they go where the model goes
SMALL = ("config.json", "README.md", *LICENCES, INDEX, f"{MORE_TEMPLATES}/*.jinja", *COPIED)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Found(NamedTuple):
    """The folder of a checkpoint, and of one from the hub the commit."""

    folder: Path
    commit: str | None


def find_model(model: str | Path, revision: str | None = None, weights: bool = True) -> Found:
    """A folder on disk as it is, or a name on the hub downloaded into the hub's cache.

    The files that are read are downloaded, and no others: a pickle never. config.json comes first, so that a family which
    is not supported is refused before gigabytes are on their way. revision: a branch, a tag or a commit of the name;
    weights: False for a plan, which needs config.json alone. Raises UserError as `fetch` and `read_config` do.
    """
    path = Path(model)
    if not is_hub_name(str(model)) or path.exists():
        if revision is not None:
            raise UserError(f"--revision: {model} is no name on the hub; leave the flag out")
        return Found(path, None)
    folder = fetch(Repo("model", str(model), revision), SMALL)
    at_commit = Repo("model", str(model), folder.name)
    if not (folder / "config.json").exists():
        raise UserError(f"{model}: the repository holds no config.json; name one of a whole model for transformers")
    read_config(folder)
    if weights:
        names = wanted_weights(folder)
        fetch_large(at_commit, names)
        if missing := next((name for name in names if not (folder / name).exists()), None):
            raise UserError(f"{model}: {why_missing(files_of(at_commit, folder)[0], missing)}")
    return Found(folder, folder.name)


def wanted_weights(folder: Path) -> list[str]:
    """The names of the safetensors files: those of the index, or else the single one. What is wrong with an index is told
    when the weights are opened."""
    index = read_json(folder / INDEX) if (folder / INDEX).exists() else {}
    entries = index.get("weight_map") if isinstance(index, dict) else None
    names = {name for name in entries.values() if isinstance(name, str)} if isinstance(entries, dict) else set()
    return sorted(name for name in names if name.endswith(".safetensors")) or [SINGLE]


def why_missing(held: list[str], name: str) -> str:
    """held: the files of the repository."""
    pickles = [file for file in held if file.endswith(PICKLES)]
    if not any(file.endswith(".safetensors") for file in held) and pickles:
        return (
            f"the repository holds no safetensors, and pickled weights such as {shown(pickles[0])} are never opened; name a "
            "repository with safetensors, or convert it"
        )
    return f"the repository holds no {shown(name)}; name one with model.safetensors or its index"
