"""Rollouts on N processes are those of one, to the bit, and go on where another number of processes stopped."""

import pytest
import torch

from o1core.model import load
from tests.distributed.cases import sample
from tests.distributed.worlds import run_world
from tests.machine import skip_where_a_row_is_rounded_by_its_place


@pytest.fixture(autouse=True)
def as_in_a_world(checkpoint):
    """One thread, as every process of a world has: another number of threads may have other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, tokenizer = load(checkpoint)
    skip_where_a_row_is_rounded_by_its_place(model, tokenizer.size)
    yield
    torch.set_num_threads(threads)


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
