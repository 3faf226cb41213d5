"""Rollouts on disk: what goes in comes out, a kill in between loses one shard, and damage is named."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch

from o1core.errors import UserError
from o1core.rollout import problems_held, read_groups, write_shard
from o1core.types import Group, Sample
from tests.campaigns.fuzz_rollouts import fuzz_rollouts


def group(name: str, lengths: list[int], budget: int | None = None) -> Group:
    samples = tuple(
        Sample(torch.arange(n, dtype=torch.int32), -torch.rand(n), "stop" if n % 2 else "length", str(n), n > 2)
        for n in lengths
    )
    return Group(name, torch.tensor([7, 8, 9][: 1 + len(name)], dtype=torch.int32), samples, budget)


def same(a: Group, b: Group) -> bool:
    fields = [(s.ids.tolist(), s.logprobs.tolist(), s.finish_reason, s.answer, s.correct) for s in a.samples]
    others = [(s.ids.tolist(), s.logprobs.tolist(), s.finish_reason, s.answer, s.correct) for s in b.samples]
    return (a.problem, a.prompt.tolist(), a.budget, fields) == (b.problem, b.prompt.tolist(), b.budget, others)


def test_experts_come_back_beside_the_tokens_that_they_computed(tmp_path):
    """Of the last tokens of a completion, of all, and of none; lines and tensors that do not fit are refused."""
    plain = group("a", [5, 3, 4])
    kept = (torch.randint(0, 200, (4, 2, 3), dtype=torch.uint8), torch.zeros(3, 2, 3, dtype=torch.uint8), None)
    samples = tuple(dataclasses.replace(s, routes=routes) for s, routes in zip(plain.samples, kept))
    write_shard(tmp_path, [dataclasses.replace(plain, samples=samples)])
    (back,) = read_groups(tmp_path)
    assert [s.routes is None for s in back.samples] == [False, False, True]
    assert all(torch.equal(s.routes, routes) for s, routes in zip(back.samples, kept) if routes is not None)
    lines = number(shards(tmp_path)[0], 0)  # a shard without a checksum
    for wrong in ('"routed": 3', '"routed": 9'):
        lines.write_text(lines.read_text().replace('"routed": 4', wrong))
        with pytest.raises(UserError, match="its lines do not fit the tensors beside it"):
            read_groups(tmp_path)
        lines.write_text(lines.read_text().replace(wrong, '"routed": 4'))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.jsonl"))


def number(path: Path, i: int) -> Path:
    """Call a shard as versions before 0.2 did: by its count, which holds no checksum."""
    for part in (path, path.with_suffix(".safetensors")):
        part.rename(part.with_stem(f"shard-{i:05d}"))
    return path.with_stem(f"shard-{i:05d}")


def test_groups_come_back_as_they_were(tmp_path):
    first, second = [group("a", [1, 3]), group("b\n", [2, 5], budget=80)], [group("c", [4, 4])]
    write_shard(tmp_path, first)
    (lines,) = shards(tmp_path)
    write_shard(tmp_path, second)
    back = read_groups(tmp_path)
    assert all(same(x, y) for x, y in zip(back, first + second, strict=True))
    lines = [json.loads(line) for line in lines.read_text().splitlines()]
    assert lines[1] == {
        "problem": "a",
        "sample": 1,
        "prompt_tokens": 2,
        "length": 3,
        "finish_reason": "stop",
        "answer": "3",
        "correct": True,
    }
    assert [line.get("budget") for line in lines] == [None, None, 80, 80]


def test_the_order_does_not_depend_on_when_a_shard_was_written(tmp_path):
    for name in ("b", "c", "a"):
        write_shard(tmp_path, [group(name, [2, 3])])
    assert [g.problem for g in read_groups(tmp_path)] == ["a", "b", "c"]


def test_a_missing_folder_holds_nothing(tmp_path):
    assert read_groups(tmp_path / "none") == []
    assert problems_held(tmp_path / "none") == set()


def test_the_problems_held_are_known_without_their_tensors(tmp_path):
    write_shard(tmp_path, [group("a", [1, 3]), group("b\n", [2])])
    write_shard(tmp_path, [group("c", [4])])
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    assert problems_held(tmp_path) == {"a", "b\n", "c"}
    (path, *_) = shards(tmp_path)
    path.write_text('{"problem": 1}')
    with pytest.raises(UserError, match="line 1: problem: must be text"):
        problems_held(tmp_path)


def test_a_kill_between_the_two_files_of_a_shard_loses_that_shard_alone(tmp_path):
    write_shard(tmp_path, [group("a", [1, 3])])
    (kept,) = shards(tmp_path)
    write_shard(tmp_path, [group("b", [2, 5])])
    next(path for path in shards(tmp_path) if path != kept).unlink()  # the tensors were written, the lines not yet
    assert [g.problem for g in read_groups(tmp_path)] == ["a"]
    write_shard(tmp_path, [group("c", [6])])
    assert [g.problem for g in read_groups(tmp_path)] == ["a", "c"]


def test_a_deleted_shard_is_not_made_up_for_by_overwriting_another(tmp_path):
    for name in ("a", "b", "c"):
        write_shard(tmp_path, [group(name, [2, 3])])
    gone = read_groups(tmp_path)[0]
    for path in shards(tmp_path):
        if '"problem": "a"' in path.read_text():
            path.unlink()
            path.with_suffix(".safetensors").unlink()
    assert [g.problem for g in read_groups(tmp_path)] == ["b", "c"]
    write_shard(tmp_path, [gone])
    assert [g.problem for g in read_groups(tmp_path)] == ["a", "b", "c"]


def test_a_problem_in_two_shards_is_refused(tmp_path):
    write_shard(tmp_path, [group("a", [2, 3])])
    write_shard(tmp_path, [group("a", [3, 3])])
    with pytest.raises(UserError, match=r"holds problem 'a', as shard-\w+.jsonl does; delete one of them"):
        read_groups(tmp_path)


@pytest.mark.parametrize("damage", ["cut tensors", "flipped bit", "broken line", "other verdict", "no tensors"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    write_shard(tmp_path, [group("a", [1, 3])])
    (lines,) = shards(tmp_path)
    tensors = lines.with_suffix(".safetensors")
    raw = tensors.read_bytes()
    if damage == "cut tensors":
        tensors.write_bytes(raw[:-4])
    elif damage == "flipped bit":  # in a log-prob
        tensors.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "broken line":
        lines.write_text(lines.read_text() + "{")
    elif damage == "other verdict":
        lines.write_text(lines.read_text().replace("false", "true"))
    else:
        tensors.unlink()
    with pytest.raises(UserError, match=lines.stem):
        read_groups(tmp_path)


def test_a_shard_of_an_older_version_is_read(tmp_path):
    groups = [group("a", [1, 3]), group("b", [2, 5])]
    write_shard(tmp_path, groups)
    number(shards(tmp_path)[0], 0)
    assert all(same(x, y) for x, y in zip(read_groups(tmp_path), groups, strict=True))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"length": 3', '"length": 2', "its lines do not fit the tensors"),
        ('"length": 3', f'"length": {10**30}', r"line 2: length: .* is above 1e\+09"),
        ('"length": 3', '"length": "3"', "line 2: length: must be a whole number"),
        ('"sample": 1', '"sample": 3', "its lines do not fit the tensors"),
        ('"correct": true', '"correct": 1', "line 2: correct: must be true or false"),
        ('{"problem": "a", "sample": 0', '[{"problem": "a", "sample": 0', "line 1: not valid JSON"),
        ('"prompt_tokens": 2, ', "", "line 1: lacks prompt_tokens"),
    ],
)
def test_an_older_shard_of_another_shape_is_refused_by_its_field(tmp_path, old, new, message):
    write_shard(tmp_path, [group("a", [1, 3])])
    path = number(shards(tmp_path)[0], 0)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=f"shard-00000.jsonl.*{message}.*rerun the same command"):
        read_groups(tmp_path)


def test_damage_is_never_read_as_data(tmp_path):
    rng = random.Random(0)
    assert {fuzz_rollouts(rng, tmp_path / str(i)) for i in range(80)} == {"ok", "refused"}
