"""Rollouts on disk: what goes in comes out, and a kill in between loses one shard."""

import json

import pytest
import torch

from o1core.errors import UserError
from o1core.rollout import Group, Sample, read_groups, write_shard


def group(name: str, lengths: list[int]) -> Group:
    samples = tuple(
        Sample(torch.arange(n, dtype=torch.int32), -torch.rand(n), "stop" if n % 2 else "length", str(n), n > 2)
        for n in lengths
    )
    return Group(name, torch.tensor([7, 8, 9][: 1 + len(name)], dtype=torch.int32), samples)


def same(a: Group, b: Group) -> bool:
    fields = [(s.ids.tolist(), s.logprobs.tolist(), s.finish_reason, s.answer, s.correct) for s in a.samples]
    others = [(s.ids.tolist(), s.logprobs.tolist(), s.finish_reason, s.answer, s.correct) for s in b.samples]
    return (a.problem, a.prompt.tolist(), fields) == (b.problem, b.prompt.tolist(), others)


def test_groups_come_back_as_they_were(tmp_path):
    first, second = [group("a", [1, 3]), group("b\n", [2, 5])], [group("c", [4, 4])]
    write_shard(tmp_path, first)
    write_shard(tmp_path, second)
    back = read_groups(tmp_path)
    assert all(same(x, y) for x, y in zip(back, first + second, strict=True))
    lines = [json.loads(line) for line in (tmp_path / "shard-00000.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "problem": "a",
        "sample": 1,
        "prompt_tokens": 2,
        "length": 3,
        "finish_reason": "stop",
        "answer": "3",
        "correct": True,
    }


def test_a_missing_folder_holds_nothing(tmp_path):
    assert read_groups(tmp_path / "none") == []


def test_a_kill_between_the_two_files_of_a_shard_loses_that_shard_alone(tmp_path):
    write_shard(tmp_path, [group("a", [1, 3])])
    write_shard(tmp_path, [group("b", [2, 5])])
    (tmp_path / "shard-00001.jsonl").unlink()  # the tensors were written, the lines not yet
    assert [g.problem for g in read_groups(tmp_path)] == ["a"]
    write_shard(tmp_path, [group("c", [6])])
    assert [g.problem for g in read_groups(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize("damage", ["cut tensors", "broken line", "wrong length"])
def test_a_broken_shard_is_named(tmp_path, damage):
    write_shard(tmp_path, [group("a", [1, 3])])
    tensors, lines = tmp_path / "shard-00000.safetensors", tmp_path / "shard-00000.jsonl"
    if damage == "cut tensors":
        tensors.write_bytes(tensors.read_bytes()[:-4])
    elif damage == "broken line":
        lines.write_text(lines.read_text() + "{")
    else:
        lines.write_text(lines.read_text().replace('"length": 3', '"length": 2'))
    with pytest.raises(UserError, match=r"shard-00000.jsonl: a broken shard"):
        read_groups(tmp_path)
