"""Rollouts on N processes are those of one, to the bit, and go on where another number of processes stopped."""

import pytest

from o1core.model import load
from tests.distributed.cases import sample
from tests.distributed.worlds import run_world


@pytest.mark.parametrize("opening", ["", "So "])
def test_rollouts_have_the_same_bits_on_any_number_of_processes(checkpoint, tmp_path, opening):
    expected = sample(checkpoint, tmp_path / "1", 10, 1, opening)
    begun = load(checkpoint)[1].encode(opening) if opening else []
    assert all(ids[: len(begun)] == begun for samples in expected.values() for ids, _ in samples)
    for size in (2, 4):
        results = run_world(sample, size, checkpoint, tmp_path / str(size), 10, 1, opening)
        assert all(found == expected for found in results)
        assert len(list((tmp_path / str(size)).glob("*.jsonl"))) > 1, "one rank has sampled everything"


def test_sampling_resumes_on_another_number_of_processes(checkpoint, tmp_path):
    expected = sample(checkpoint, tmp_path / "1", 10)
    run_world(sample, 2, checkpoint, tmp_path / "many", 4)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "many").iterdir()}
    assert sample(checkpoint, tmp_path / "many", 6) == {name: expected[name] for name in list(expected)[:6]}
    first, second = run_world(sample, 2, checkpoint, tmp_path / "many", 10, 2)  # tensor parallel: other last bits
    assert first == second and first.keys() == expected.keys()
    assert all(first[name] == expected[name] for name in list(expected)[:6])
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
