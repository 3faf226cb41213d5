"""Names on the Hugging Face hub: the files of a model or a data set, downloaded once into the hub's own cache.

huggingface_hub does the work, so HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, tokens, progress bars and the resuming of a cut
download are as in every other tool. Where the hub cannot be reached, what the cache holds is used. What is added here is
one line for each thing that can go wrong. Which files are wanted is the caller's: model/download.py, problems/download.py.
"""

import contextlib
import errno
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from .errors import UserError

Kind = Literal["model", "dataset"]

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_CLIENTS = (
    "httpx",
    "httpx2",
    "httpcore",
    "requests",
    "urllib3",
)  # what huggingface_hub's versions have spoken HTTP with


class Repo(NamedTuple):
    """A repository at a revision (None: its main branch)."""

    kind: Kind
    name: str
    revision: str | None = None


def is_hub_name(text: str) -> bool:
    """Whether a text may name a repository, OWNER/NAME. A path may look the same: ask whether it exists first."""
    return _NAME.fullmatch(text) is not None


def repo_of(folder: Path) -> Repo | None:
    """The model whose files a folder of the hub's cache holds, at their commit; None for any other folder."""
    place = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not place.startswith("models--"):
        return None
    return Repo("model", place.removeprefix("models--").replace("--", "/"), folder.name)


def fetch(repo: Repo, patterns: Sequence[str]) -> Path:
    """Download the small files of a repository that match the patterns, unless the cache holds them.

    Returns the folder of the revision in the cache, whose name is the commit. A pattern that matches no file is no error.
    Raises UserError where the repository or the revision does not exist or may not be read, the hub cannot be reached and
    the cache does not have the files, or they cannot be written.
    """
    from huggingface_hub import snapshot_download  # here, for it takes half a second that most runs do not need

    with errors_in_one_line(repo):
        return Path(
            snapshot_download(
                repo.name, repo_type=repo.kind, revision=repo.revision, allow_patterns=list(patterns), max_workers=4
            )
        )


def fetch_large(repo: Repo, names: Sequence[str]) -> None:
    """Download files of a repository whose `revision` is a commit, unless the cache holds them: one after the other and in
    this thread, which Ctrl-C interrupts. A name that the repository does not have is no error. Raises UserError as `fetch`
    does."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with errors_in_one_line(repo):
        for name in names:
            try:
                hf_hub_download(repo.name, name, repo_type=repo.kind, revision=repo.revision)
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):
                    raise


def files_of(repo: Repo, folder: Path) -> tuple[list[str], bool]:
    """The names of all files of a repository whose `revision` is a commit, fetched into `folder`, and whether they are all:
    where the hub cannot be reached, they are those that are there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    with errors_in_one_line(repo):
        try:
            return sorted(HfApi().list_repo_files(repo.name, repo_type=repo.kind, revision=repo.revision)), True
        except Exception as error:
            if not isinstance(error, OfflineModeIsEnabled | HfHubHTTPError) and not of_network(error):
                raise
            return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()), False


def check_upload(name: str) -> None:
    """Raise UserError where nothing could be uploaded under a name: before hours of work, not after them."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push-to-hub {name}: HF_HUB_OFFLINE is set; unset it, or leave the flag out")
    if not is_hub_name(name):
        raise UserError(f"--push-to-hub: {name} is not OWNER/NAME, such as me/qwen3-0.6b-pruned")
    if get_token() is None:
        raise UserError(f"--push-to-hub {name}: nobody is logged in; log in with: hf auth login")


def upload(name: str, folders: dict[str, Path], message: str) -> str:
    """Upload folders as a model repository, which is made if it does not exist; returns its address. folders: place in the
    repository ("" is its root) -> folder. Files that are there already are not sent again."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(name, exist_ok=True))
        for place, folder in folders.items():
            api.upload_folder(repo_id=name, folder_path=folder, path_in_repo=place or None, commit_message=message)
    except Exception as error:
        if isinstance(error, OSError) or of_network(error) or isinstance(error, ValueError):
            raise UserError(
                f"--push-to-hub {name}: {brief(error)}; the run is kept: rerun the same command, which uploads again"
            ) from None
        raise
    return address


def command_for(repo: Repo) -> str:
    """What downloads a repository on a machine that has a network."""
    kind = "" if repo.kind == "model" else " --repo-type dataset"
    return f"hf download {repo.name}{kind}" + (f" --revision {repo.revision}" if repo.revision else "")


def of_network(error: BaseException) -> bool:
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in _CLIENTS


@contextlib.contextmanager
def errors_in_one_line(repo: Repo) -> Iterator[None]:
    """What huggingface_hub raises, as a UserError that says how to go on."""
    from huggingface_hub import constants, errors

    for client in _CLIENTS:
        logging.getLogger(client).setLevel(logging.WARNING)  # they tell of every request
    where = f"{repo.name}: "
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.name}"
        raise UserError(f"{where}is gated; accept its terms on {page} and log in with: hf auth login") from None
    except errors.RepositoryNotFoundError:
        what = "folder" if repo.kind == "model" else "file"
        raise UserError(
            f"{where}no such {what} here, and no such {repo.kind} on the hub; correct the name, or, if it is private, log in "
            "with: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{where}has no revision {repo.revision}; name a branch, a tag or a whole commit hash of it"
        ) from None
    except errors.LocalEntryNotFoundError as error:  # offline, or without a network, and not in the cache
        offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({brief(error.__cause__ or error)})"
        raise UserError(
            f"{where}no such path here, {why}, and the cache {constants.HF_HUB_CACHE} does not have all of it; where there "
            f"is a network: {command_for(repo)}"
        ) from None
    except (ValueError, errors.HfHubHTTPError) as error:  # ValueError: a name or an answer that makes no sense
        raise UserError(f"{where}the hub refuses: {brief(error)}; try later, or: {command_for(repo)}") from None
    except OSError as error:
        if of_network(error):
            raise UserError(broken_off(repo, error)) from None
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"{where}no space is left in the cache {constants.HF_HUB_CACHE}; make room, or set HF_HOME to a folder on "
                "another disk; what is downloaded is kept"
            ) from None
        raise UserError(f"{where}cannot be kept in the cache {constants.HF_HUB_CACHE} ({brief(error)})") from None
    except Exception as error:
        if not of_network(error):
            raise
        raise UserError(broken_off(repo, error)) from None


def broken_off(repo: Repo, error: BaseException) -> str:
    return f"{repo.name}: the download broke off ({brief(error)}); rerun the same command to continue it"


def brief(error: BaseException) -> str:
    """The first line of an error, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
