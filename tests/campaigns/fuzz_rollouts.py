"""Shards of rollouts that were damaged at random: they are refused in one line, or read as they were written."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch

from o1core.errors import UserError
from o1core.rollout import read_groups, write_shard
from o1core.types import Group, Sample

from .harness import cut, flip_bit, random_bytes, remove

Damage = Callable[[random.Random, Path], None]


def fuzz_rollouts(rng: random.Random, folder: Path) -> str:
    """Write random rollouts into a new folder, damage one of its files and read them back.

    Returns "ok" where what came back was written (all of it, or less by whole groups), "refused" where a UserError of
    one line names the file, else what is bad.
    """
    groups = random_groups(rng)
    first = rng.randint(1, len(groups))
    for part in (groups[:first], groups[first:]):
        if part:
            write_shard(folder, part)
    written = {group.problem: content(group) for group in groups}
    path = rng.choice(sorted(folder.iterdir()))
    numbered = rng.random() < 0.3  # as versions before 0.2 called a shard: by its count, which holds no checksum
    if numbered:
        for part in (path.with_suffix(".jsonl"), path.with_suffix(".safetensors")):
            part.rename(part.with_stem("shard-00000"))
        path = path.with_stem("shard-00000")
    damage = rng.choice((cut, remove, other_shape, nothing) if numbered else DAMAGES)
    damage(rng, path)
    try:
        found = {group.problem: content(group) for group in read_groups(folder)}
    except UserError as error:
        message = str(error)
        return "refused" if path.stem in message and "\n" not in message else f"{damage.__name__}: {message!r}"
    except Exception as error:
        return f"{damage.__name__}: {type(error).__name__}: {error}"
    if all(written.get(problem) == group for problem, group in found.items()):
        return "ok"
    return f"{damage.__name__}: other data was read than written"


def random_groups(rng: random.Random) -> list[Group]:
    generator = torch.Generator().manual_seed(rng.randrange(2**32))

    def ids(count: int) -> torch.Tensor:
        return torch.randint(0, 1000, (count,), generator=generator, dtype=torch.int32)

    def sample() -> Sample:
        length = rng.randint(1, 20)
        logprobs = -torch.rand(length, generator=generator)
        answer = rng.choice((None, "4", "\u2028", "\\frac{1}{2}"))
        return Sample(ids(length), logprobs, rng.choice(("stop", "length")), answer, rng.random() < 0.5)

    names = rng.sample(("1", "a", "b\n", "ü", "train/7", "-"), rng.randint(1, 5))
    budgets = (None, rng.randint(1, 500))
    count = rng.randint(1, 4)
    return [Group(n, ids(rng.randint(1, 9)), tuple(sample() for _ in range(count)), rng.choice(budgets)) for n in names]


def content(group: Group) -> list[object]:
    samples = [(s.ids.tolist(), s.logprobs.tolist(), s.finish_reason, s.answer, s.correct) for s in group.samples]
    return [group.prompt.tolist(), group.budget, samples]


def nothing(rng: random.Random, path: Path) -> None:
    """Leave the file as it is."""


def swap(rng: random.Random, path: Path) -> None:
    """Give the file the content of another one of its kind."""
    others = [other for other in path.parent.glob(f"*{path.suffix}") if other != path]
    path.write_bytes(rng.choice(others).read_bytes() if others else b"")


def other_shape(rng: random.Random, path: Path) -> None:
    """A line with a field of another type, out of all range, or missing; or no object at all."""
    path = path.with_suffix(".jsonl")
    lines = path.read_text().splitlines()
    i = rng.randrange(len(lines))
    line = json.loads(lines[i])
    name = rng.choice(("sample", "prompt_tokens", "length", "correct", "finish_reason", "problem", "whole"))
    value = rng.choice((None, [], {}, [[]] * 3, 10**30, -1, 0, 1e400, 2.5))
    text = json.dumps(value if name == "whole" else line | {name: value})
    lines[i] = rng.choice((text, text[:-1], "[" * 100_000))
    path.write_text("\n".join(lines))


DAMAGES: tuple[Damage, ...] = (nothing, cut, flip_bit, remove, random_bytes, swap, other_shape)
