"""CRISP's teacher (arXiv 2603.05433): the weights that a round starts from, asked to be concise, on the student's own samples.

What the loss needs of it are its last hidden states [N, H] of every completion token and the head that they are multiplied
with. They are computed once, before a round's first step, and read from disk a batch at a time: no second model, no logits.
A round's folder teacher/ holds a file a forward pass, head.safetensors where the head is trained, and index.json with
checksums; it is deleted when the round is over. Left out on purpose: several processes, whose ranks would each need it.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from ..files import damaged_file, digests, publish_folder, read_record, unwritable, write_record
from ..model import Tokenizer
from ..problems import Problem, instruct
from ..run_folder import RunFolder
from .examples import Example
from .reference import examples_digest
from .step import Taught, Updater, collate, micro_batches

INDEX, HEAD = "index.json", "head.safetensors"
FIX = "delete the folder, and the same command trains the round again from its start"


@dataclass(frozen=True)
class Teacher:
    """A round's teacher on disk. places: of each example, its file and the rows of it that are its own; head [V, H]."""

    folder: Path
    places: list[tuple[str, int, int]]
    head: Tensor

    def taught(self, batch: list[int]) -> Taught:
        """Hidden states [L, H] of each of the batch's examples, and the head. Raises UserError where a file is gone."""
        hidden = []
        try:
            for name, start, end in (self.places[i] for i in batch):
                with safe_open(self.folder / name, framework="pt") as file:
                    hidden.append(file.get_slice("hidden")[start:end])
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.folder / name}: cannot be read ({error}); {FIX}") from None
        return Taught(hidden, self.head)


def teacher_prompts(tokenizer: Tokenizer, problems: list[Problem], instruction: str) -> dict[str, Tensor]:
    """problem id: int32 ids of the prompt that the teacher is asked."""
    asked = {p.id: instruct(p, instruction, 0) for p in problems}
    return {name: torch.tensor(tokenizer.prompt(p.question, p.system), dtype=torch.int32) for name, p in asked.items()}


def open_teacher(folder: Path, updater: Updater, examples: list[Example], prompts: dict[str, Tensor]) -> Teacher:
    """The teacher of a round's examples, made by the model as it is now unless the folder is there. Raises UserError where
    the folder is damaged, or belongs to other examples."""
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            make_teacher(partial, updater, [replace(e, prompt=prompts[e.problem]) for e in examples])
            publish_folder(partial, folder)
        except (OSError, SafetensorError) as error:
            raise unwritable(folder, error) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    index = read_record(folder / INDEX)
    if (damaged := damaged_file(folder, index["files"])) is not None:
        raise UserError(f"{damaged}: damaged (its checksum differs); {FIX}")
    if index["examples"] != completions_digest(examples):
        raise UserError(f"{folder}: belongs to other rollouts than are there; {FIX}")
    head = updater.model.lm_head.detach()
    if (folder / HEAD).exists():
        head = load_file(folder / HEAD, device=str(head.device))["head"]
    return Teacher(folder, [(name, start, end) for name, start, end in index["places"]], head)


def forget_teachers(run: RunFolder, round_index: int) -> None:
    """Delete the teachers of the rounds before this one, which no resumed run needs."""
    for earlier in range(round_index):
        shutil.rmtree(run.teacher(earlier), ignore_errors=True)


@torch.no_grad()
def make_teacher(folder: Path, updater: Updater, examples: list[Example]) -> None:
    """Write the teacher of examples whose prompts are its own."""
    folder.mkdir(parents=True)
    model = updater.model
    device = model.embed.device
    places: list[Any] = [None] * len(examples)
    batches = list(micro_batches(examples, updater.execution.micro_tokens))
    for number, chosen in enumerate(tqdm(batches, desc="teacher", unit="batch")):
        batch = collate([examples[i] for i in chosen], device)
        hidden = model.hidden(batch.ids).flatten(0, 1)[batch.places]
        name = f"part-{number:05d}.safetensors"
        save_file({"hidden": hidden.cpu()}, folder / name)
        ends = batch.cu_seqlens.tolist()
        for i, start, end in zip(chosen, ends, ends[1:]):
            places[i] = name, start, end
    if model.lm_head.requires_grad:
        save_file({"head": model.lm_head.detach().cpu().contiguous()}, folder / HEAD)
    write_record(folder / INDEX, {"places": places, "files": digests(folder), "examples": completions_digest(examples)})


def completions_digest(examples: list[Example]) -> str:
    """examples_digest without the prompts, which student and teacher do not share."""
    return examples_digest([replace(e, prompt=e.prompt[:0]) for e in examples])
