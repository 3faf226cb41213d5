"""Rollouts on disk, exactly as they were sampled: safetensors for the tokens, JSON lines for what a person would grep.

A folder holds shards. A shard is shard-DIGEST.safetensors (prompt ids, completion ids, log-probs, of a mixture the experts)
and shard-DIGEST.jsonl (a line per completion). DIGEST is the SHA-256 of both, which is checked when they are read: no shard
overwrites another, and what is damaged is named. Each file is written under a temporary name and renamed, the lines last: a
shard is there when its lines are. A kill at any moment loses at most the shard in flight. sampled.json says with which
settings, and after how many optimiser steps, so that a folder is never filled up by another policy than began it. Left out on
purpose: the text, which the ids give back. Shards of the first versions are numbered (shard-00000) and hold no checksum, and
their folders have no sampled.json; they are read as they are.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..distributed import gather, on_rank0
from ..errors import UserError
from ..files import decode, open_regular, parse_json, read_record, write_atomic, write_record
from ..records import OMIT_NONE, Count, Within, from_json, to_json
from ..types import Group, Sample

HOW_TO_FIX = "delete the shard's two files and rerun the same command, which samples its problems again"
HOW_TO_FIX_FOLDER = "restore it, or name another folder"
NUMBERED = re.compile(r"shard-\d{5,}")
ROUTES = (torch.uint8, torch.int16)  # of experts (types.Completion)
DTYPES = {"prompt_ids": torch.int32, "ids": torch.int32, "logprobs": torch.float32}

Tokens = Annotated[int, Within(1, 10**9)]


@dataclass(frozen=True)
class Line:
    """A line of a shard: one completion, in the order of the tensors."""

    problem: str
    sample: Count
    prompt_tokens: Tokens
    length: Tokens
    finish_reason: str
    answer: str | None
    correct: bool
    budget: int | None = field(default=None, metadata=OMIT_NONE)
    routed: Count | None = field(default=None, metadata=OMIT_NONE)  # tokens whose experts are known


class RolloutFolder:
    """A folder that is being filled, by one process or by ranks that all see it. groups: problem id: its group, of what was
    there at the beginning and what this rank has added."""

    def __init__(self, path: Path, label: str, made_with: dict[str, Any]) -> None:
        """label: what is waited for, in messages. made_with: JSON of all that decides a rollout beside the problem. Raises
        UserError where the folder was begun with something else."""
        self.path, self.label = path, label
        on_rank0(label, lambda: claim_rollouts(path, made_with))
        self.groups = {group.problem: group for group in read_groups(path)}
        # Rank 0's view decides, and no rank writes before all have read.
        self.held = frozenset(on_rank0(label, lambda: list(self.groups)))

    def add(self, groups: list[Group]) -> None:
        """Write groups to the disk."""
        write_shard(self.path, groups)
        self.groups.update((group.problem, group) for group in groups)

    def whole(self, ids: list[str]) -> list[Group]:
        """The groups of these problems, once all ranks have added theirs."""
        gather(self.label)
        if not self.groups.keys() >= set(ids):
            self.groups = {group.problem: group for group in read_groups(self.path)}
        return [self.groups[name] for name in ids]


@contextmanager
def folder_or_temporary(folder: Path | str | None, label: str) -> Iterator[Path]:
    """The folder, or one that all ranks see and that is deleted at the end."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as mine:
        path = Path(on_rank0(label, lambda: mine))
        if not all(gather(label, path.exists())):
            raise UserError(
                f"{label}: ranks on several machines need a folder that all of them see; name it (folder=...)"
            )
        yield path
        gather(label)  # nobody reads any more


def claim_rollouts(folder: Path, made_with: dict[str, Any]) -> None:
    """Note in sampled.json what the rollouts are made with. Raises UserError where it says something else."""
    path = folder / "sampled.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.glob("shard-*")):  # an older version's rollouts: nobody knows
            write_record(path, made_with)
        return
    held = read_record(path, HOW_TO_FIX_FOLDER)
    for name, value in json.loads(json.dumps(made_with)).items():
        if held.get(name) != value:
            raise UserError(
                f"{folder}: holds rollouts made with {name} {json.dumps(held.get(name))}, not {json.dumps(value)}; name "
                "another folder"
            )


def write_shard(folder: Path, groups: Iterable[Group]) -> None:
    """Add a shard to the folder, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = list(groups)
    samples = [s for g in groups for s in g.samples]
    parts = {
        "prompt_ids": torch.cat([g.prompt for g in groups]),
        "ids": torch.cat([s.ids for s in samples]),
        "logprobs": torch.cat([s.logprobs for s in samples]),
    }
    if routes := [s.routes for s in samples if s.routes is not None]:
        parts["routes"] = torch.cat(routes)
    tensors = safetensors.torch.save(parts)
    lines = "".join(
        json.dumps(to_json(line_of(group, k, sample))) + "\n"
        for group in groups
        for k, sample in enumerate(group.samples)
    ).encode()
    stem = f"shard-{digest(tensors, lines)}"
    write_atomic(folder / f"{stem}.safetensors", lambda path: path.write_bytes(tensors))
    write_atomic(folder / f"{stem}.jsonl", lambda path: path.write_bytes(lines))


def line_of(group: Group, k: int, s: Sample) -> Line:
    return Line(
        group.problem,
        k,
        len(group.prompt),
        s.length,
        s.finish_reason,
        s.answer,
        s.correct,
        group.budget,
        None if s.routes is None else len(s.routes),
    )


def digest(tensors: bytes, lines: bytes) -> str:
    """What a shard is called by: the SHA-256 of its two files."""
    return hashlib.sha256(hashlib.sha256(tensors).digest() + hashlib.sha256(lines).digest()).hexdigest()[:32]


def read_groups(folder: Path) -> list[Group]:
    """Every group of a folder, in the order of their problems' ids; none where the folder is missing.

    Raises UserError naming the shard that is damaged, or two that hold the same problem.
    """
    found: dict[str, tuple[Path, Group]] = {}
    for path in sorted(folder.glob("shard-*.jsonl")):
        for group in read_shard(path):
            if group.problem in found:
                other = found[group.problem][0].name
                raise UserError(f"{path}: holds problem {group.problem!r}, as {other} does; delete one of them")
            found[group.problem] = path, group
    return [found[problem][1] for problem in sorted(found)]


def problems_held(folder: Path) -> set[str]:
    """The ids of the problems whose samples a folder holds. Their lines alone are read: what read_groups would refuse, it
    still refuses later."""
    found: set[str] = set()
    for path in folder.glob("shard-*.jsonl"):
        with open_regular(path) as file:
            text = decode(file.read(), str(path))
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{path}, line {number}"
            found.add(from_json(Line, parse_json(line, where, HOW_TO_FIX), where, HOW_TO_FIX).problem)
    return found


def read_shard(path: Path) -> list[Group]:
    """The groups of the shard whose lines are in `path`. Raises UserError where it is damaged."""
    raw = {}
    for name in (path, path.with_suffix(".safetensors")):
        with open_regular(name) as file:
            raw[name] = file.read()
    text, binary = raw.values()
    if path.stem != f"shard-{digest(binary, text)}" and not NUMBERED.fullmatch(path.stem):
        raise UserError(f"{path}: damaged (its checksum differs); {HOW_TO_FIX}")
    lines = []
    for number, line in enumerate(decode(text, str(path)).splitlines(), 1):
        where = f"{path}, line {number}"
        lines.append(from_json(Line, parse_json(line, where, HOW_TO_FIX), where, HOW_TO_FIX))
    try:
        tensors = safetensors.torch.load(binary)
    except SafetensorError as error:
        raise UserError(f"{path.with_suffix('.safetensors')}: damaged ({error}); {HOW_TO_FIX}") from None
    return groups_of(lines, tensors, path)


def groups_of(lines: list[Line], tensors: dict[str, Tensor], path: Path) -> list[Group]:
    """The groups that lines and tensors describe together. Raises UserError where they do not fit each other."""
    starts = [i for i, line in enumerate(lines) if line.sample == 0]
    runs = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)])]
    wanted = {"prompt_ids": [run[0].prompt_tokens for run in runs]}
    wanted["ids"] = wanted["logprobs"] = [line.length for run in runs for line in run]
    fits = sum(map(len, runs)) == len(lines) and all(
        name in tensors and tensors[name].dtype == DTYPES[name] and tensors[name].shape == (sum(sizes),)
        for name, sizes in wanted.items()
    )
    routed = [line.routed for run in runs for line in run]
    if any(n is not None for n in routed):
        routes = tensors.get("routes")
        fits = fits and routes is not None and routes.ndim == 3 and routes.dtype in ROUTES
        fits = fits and routes is not None and len(routes) == sum(n or 0 for n in routed)
        fits = fits and all(n is None or n <= length for n, length in zip(routed, wanted["ids"]))
    same = [
        [(line.problem, line.prompt_tokens, line.budget, line.sample) for line in run]
        == [(run[0].problem, run[0].prompt_tokens, run[0].budget, k) for k in range(len(run))]
        for run in runs
    ]
    if not (fits and all(same)):
        raise UserError(f"{path}: its lines do not fit the tensors beside it; {HOW_TO_FIX}")
    parts = {name: iter(tensors[name].split(sizes)) for name, sizes in wanted.items()}
    of_experts = iter(tensors["routes"].split([n for n in routed if n is not None]) if "routes" in tensors else ())
    return [
        Group(
            run[0].problem,
            next(parts["prompt_ids"]),
            tuple(
                Sample(
                    next(parts["ids"]),
                    next(parts["logprobs"]),
                    line.finish_reason,
                    line.answer,
                    line.correct,
                    None if line.routed is None else next(of_experts),
                )
                for line in run
            ),
            run[0].budget,
        )
        for run in runs
    ]
