"""CRISP's teacher (arXiv 2603.05433): the weights that a round starts from, asked to be concise, on the student's own samples.

What the loss needs of it are its last hidden states [N, H] of every completion token and the head that they are multiplied
with. They are computed once, before a round's first step, and read from disk a micro-batch at a time: no second model, no
logits. A round's folder teacher/ holds a file a forward pass, head.safetensors where the head is trained, and index.json with
checksums; it is deleted when the round is over. Ranks share the work and read each other's files, which all of them must
see; any number of them can go on from it.
"""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ..distributed import damaged_by_all, digests_by_all, gather, is_lead, on_all_ranks, on_rank0, reshard
from ..errors import UserError
from ..files import publish_folder, read_record, unwritable, write_record
from ..run_folder import RunFolder
from ..types import Example
from .round_files import examples_digest
from .update import Updater, micro_batches_of_this_rank, pack

WHAT = "the teacher"
INDEX, HEAD = "index.json", "head.safetensors"
FIX = "delete the folder, and the same command trains the round again from its start"

Place = tuple[int, str, int, int]  # an example, its file, and the rows of it that are its own


@dataclass(frozen=True)
class Teacher:
    """A round's teacher on disk. places: of each example, its file and the rows of it that are its own; head [V, H]: None
    where it is the policy's own, which is frozen."""

    folder: Path
    places: list[tuple[str, int, int]]
    head: Tensor | None

    def teach(self, examples: list[Example]) -> list[Example]:
        """The round's examples, each with its hidden states to be read when they are needed."""
        return [replace(e, taught=partial(self.hidden, i)) for i, e in enumerate(examples)]

    def hidden(self, example: int) -> Tensor:
        """Hidden states [L, H]. Raises UserError where their file is gone."""
        name, start, end = self.places[example]
        try:
            with safe_open(self.folder / name, framework="pt") as file:
                return file.get_slice("hidden")[start:end]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.folder / name}: cannot be read ({error}); {FIX}") from None


def open_teacher(folder: Path, updater: Updater, examples: list[Example], prompts: dict[str, Tensor]) -> Teacher:
    """The teacher of a round's examples, made by the model as it is now unless the folder is there. Raises UserError where
    the folder is damaged, or belongs to other examples."""
    if not on_rank0(WHAT, folder.exists):
        make_teacher(folder, updater, [replace(e, prompt=prompts[e.problem]) for e in examples])
    index = read_record(folder / INDEX)
    if (damaged := damaged_by_all(WHAT, folder, index["files"])) is not None:
        raise UserError(f"{damaged}: damaged (its checksum differs); {FIX}")
    if index["examples"] != completions_digest(examples):
        raise UserError(f"{folder}: belongs to other rollouts than are there; {FIX}")
    head = None
    if (folder / HEAD).exists():
        head = load_file(folder / HEAD, device=str(updater.model.embed.device))["head"]
    return Teacher(folder, [(name, start, end) for name, start, end in index["places"]], head)


def forget_teachers(run: RunFolder, round_index: int) -> None:
    """Delete the teachers of the rounds before this one, which no resumed run needs."""

    def act() -> None:
        for earlier in range(round_index):
            shutil.rmtree(run.teacher(earlier), ignore_errors=True)

    on_rank0(WHAT, act)


def make_teacher(folder: Path, updater: Updater, examples: list[Example]) -> None:
    """Write the teacher of examples whose prompts are its own. Raises UserError on all ranks where one cannot write."""
    partial = folder.with_name(f".{folder.name}.partial")

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def parts() -> list[Place]:
        try:
            return write_parts(partial, updater, examples)
        except (OSError, SafetensorError) as error:
            raise unwritable(folder, error) from None

    def publish() -> None:
        places = [place for _, *place in sorted(place for of_rank in of_ranks for place in of_rank)]
        write_record(partial / INDEX, {"places": places, "files": files, "examples": completions_digest(examples)})
        publish_folder(partial, folder)

    try:
        on_rank0(WHAT, begin)
        of_ranks = gather(WHAT, on_all_ranks(WHAT, parts))
        files = digests_by_all(WHAT, partial)
        on_rank0(WHAT, publish)
    except OSError as error:
        raise unwritable(folder, error) from None
    finally:
        if is_lead():
            shutil.rmtree(partial, ignore_errors=True)


@torch.no_grad()
def write_parts(folder: Path, updater: Updater, examples: list[Example]) -> list[Place]:
    """Write this rank's share, and on rank 0 a head that is trained. Returns where each of its examples is."""
    model = updater.model
    device = model.embed.device
    places: list[Place] = []
    failed: Exception | None = None
    batches, real = micro_batches_of_this_rank(examples, updater.micro_tokens)
    for b, chosen in enumerate(tqdm(batches, desc="teacher", unit="batch")):
        batch = pack([examples[i] for i in chosen], device)
        held = {"hidden": batch.hidden(model).cpu()}
        name = f"part-{min(chosen):05d}.safetensors"
        try:
            if b < real:
                save_file(held, folder / name)
            if b == 0 and is_lead() and model.lm_head.requires_grad:  # whole after a forward pass
                save_file({"head": model.lm_head.detach().cpu().contiguous()}, folder / HEAD)
        except (
            OSError,
            SafetensorError,
        ) as error:  # to be raised at the end: the other ranks wait for this one's passes
            failed = failed or error
        ends = batch.cu_seqlens.tolist() if b < real else []
        places += [(i, name, start, end) for i, start, end in zip(chosen, ends, ends[1:])]
    reshard(model)
    if failed is not None:
        raise failed
    return places


def completions_digest(examples: list[Example]) -> str:
    """examples_digest without the prompts, which student and teacher do not share."""
    return examples_digest([replace(e, prompt=e.prompt[:0]) for e in examples])
