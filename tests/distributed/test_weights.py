"""Where weights go: from disk into shards, from shards to the copy that samples, and out as a checkpoint."""

import pytest
import torch
from safetensors.torch import load_file

import o1core.model
from tests.distributed.cases import bytes_read, copied_weights, exported, sampled_by_a_team, sampled_by_ranks_that_drift
from tests.distributed.worlds import run_world


@pytest.fixture(scope="module")
def untied(tmp_path_factory, build_checkpoint):
    folder = tmp_path_factory.mktemp("model") / "untied"
    build_checkpoint(folder, tie_word_embeddings=False, num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    return folder


def test_each_rank_reads_its_part_of_the_files(untied):
    results = run_world(bytes_read, 4, untied)
    total = results[0][1]
    assert sum(read for read, _ in results) == total, "every byte is read once"
    assert all(read == pytest.approx(total / 4, rel=0.02) for read, _ in results)


@pytest.mark.parametrize("members", [1, 2])
def test_the_copy_that_samples_gets_the_trained_weights(untied, members):
    results = run_world(copied_weights, 2, untied, members, torch.bfloat16)
    for _, copied, from_disk in results:
        assert copied.keys() == from_disk.keys()
        assert all(torch.equal(copied[name], from_disk[name]) for name in copied)
    assert [member for member, _, _ in results] == ([0, 1] if members == 2 else [0, 0])
    assert torch.equal(results[0][1]["blocks.0.o.weight"], results[1][1]["blocks.0.o.weight"]) is (members == 1)


def test_a_team_of_two_samples_the_text_of_one(untied):
    prompts = [list(range(3, 3 + n)) for n in (2, 9, 17, 30, 5, 8)]
    ids = torch.randint(259, (3, 21), generator=torch.Generator().manual_seed(0))
    expected, texts = sampled_by_a_team(untied, 1, prompts, ids)
    for hidden, found in run_world(sampled_by_a_team, 2, untied, 2, prompts, ids):
        assert (hidden - expected).norm() <= 1e-5 * expected.norm()
        assert found == texts


@pytest.mark.parametrize("kind", ["lanes", "pages", "graphs"])
def test_a_team_decodes_what_its_first_rank_has_sampled(untied, kind):
    first, second = run_world(sampled_by_ranks_that_drift, 2, untied, kind, [[3, 4], [5, 6, 7]])
    assert first == second


@pytest.mark.parametrize(
    "members, message", [(3, "3 does not divide the 2 proc"), (2, "2 does not divide the model.s 1 key")]
)
def test_a_team_that_does_not_divide_is_refused(tmp_path, build_checkpoint, members, message):
    build_checkpoint(tmp_path / "model", num_key_value_heads=1)
    with pytest.raises(AssertionError, match=message):
        run_world(sampled_by_a_team, 2, tmp_path / "model", members, [[1, 2]], torch.ones(1, 2, dtype=torch.int64))


def test_the_exported_checkpoint_is_the_one_that_was_loaded(untied, tmp_path, monkeypatch):
    run_world(exported, 2, untied, tmp_path / "out", torch.float32)
    expected, found = load_file(untied / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert o1core.model.load(tmp_path / "out")[0].config == o1core.model.load(untied)[0].config
