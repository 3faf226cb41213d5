"""Rollouts on disk, exactly as they were sampled: safetensors for the tokens, JSON lines for what a person would grep.

A folder holds shards. Shard i is shard-00000.safetensors (prompt ids, completion ids, log-probs) and shard-00000.jsonl
(a line a completion). Each file is written under a temporary name and renamed, the lines last: a shard is there when its
lines are. A kill at any moment loses at most the shard in flight. Left out on purpose: the text, which the ids give back.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from ..files import write_atomic
from .groups import Group, Sample

LINE: dict[str, tuple[type, ...]] = {  # a shard's line: the JSON types of its fields
    "problem": (str,),
    "sample": (int,),
    "prompt_tokens": (int,),
    "length": (int,),
    "finish_reason": (str,),
    "answer": (str, NoneType),
    "correct": (bool,),
    "budget": (int, NoneType),
}


def write_shard(folder: Path, groups: Iterable[Group]) -> None:
    """Append a shard to the folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = list(groups)
    samples = [s for g in groups for s in g.samples]
    tensors = {
        "prompt_ids": torch.cat([g.prompt for g in groups]),
        "ids": torch.cat([s.ids for s in samples]),
        "logprobs": torch.cat([s.logprobs for s in samples]),
    }
    lines = "".join(
        json.dumps(
            {
                "problem": g.problem,
                "sample": k,
                "prompt_tokens": len(g.prompt),
                "length": s.length,
                "finish_reason": s.finish_reason,
                "answer": s.answer,
                "correct": s.correct,
            }
            | ({} if g.budget is None else {"budget": g.budget})
        )
        + "\n"
        for g in groups
        for k, s in enumerate(g.samples)
    )
    stem = f"shard-{len(list(folder.glob('shard-*.jsonl'))):05d}"
    write_atomic(folder / f"{stem}.safetensors", lambda path: save_file(tensors, path))
    write_atomic(folder / f"{stem}.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))


def read_groups(folder: Path) -> list[Group]:
    """Every group of a folder, in the order of writing; none where the folder is missing.

    Raises UserError naming the shard that is broken.
    """
    return [group for lines in sorted(folder.glob("shard-*.jsonl")) for group in read_shard(lines)]


def checked_line(line: Any) -> dict[str, Any]:
    """A shard's line. Raises ValueError where it has another shape."""
    fields = line if isinstance(line, dict) else {}
    wrong = [name for name, kinds in LINE.items() if type(fields.get(name)) not in kinds]
    wrong += [name for name in ("prompt_tokens", "length") if not wrong and not 0 <= fields[name] < 2**31]
    if wrong:
        raise ValueError(f"a line with a wrong {wrong[0]}")
    return fields


def read_shard(path: Path) -> list[Group]:
    """The groups of the shard whose lines are in `path`. Raises UserError where it is broken."""
    try:
        lines = [checked_line(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        tensors = load_file(path.with_suffix(".safetensors"))
        ids = tensors["ids"].split([line["length"] for line in lines])
        logprobs = tensors["logprobs"].split([line["length"] for line in lines])
        first = [line for line in lines if line["sample"] == 0]
        prompts = tensors["prompt_ids"].split([line["prompt_tokens"] for line in first])
        groups: dict[str, tuple[Tensor, list[Sample], int | None]] = {
            line["problem"]: (prompt, [], line.get("budget")) for line, prompt in zip(first, prompts)
        }
        for line, i, lp in zip(lines, ids, logprobs):
            sample = Sample(i, lp, line["finish_reason"], line["answer"], line["correct"])
            groups[line["problem"]][1].append(sample)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: a broken shard ({error}); delete its two files and sample again") from None
    return [Group(problem, prompt, tuple(samples), budget) for problem, (prompt, samples, budget) in groups.items()]
