"""A hybrid with experts on two processes: its shards, its cut for a team, its update, and out as a checkpoint."""

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.cases import everything_of, sampled_by_a_team, train
from tests.distributed.worlds import run_world
from tests.model.test_families import SHAPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory, build_checkpoint):
    folder = tmp_path_factory.mktemp("family") / "model"
    family, overrides = SHAPES["hybrid with experts"]
    build_checkpoint(folder, family, seed=3, **overrides)
    return folder


def test_a_hybrid_with_experts_on_two_processes(folder, tmp_path):
    prompts = [list(range(3, 3 + n)) for n in (2, 9, 70)]
    ids = torch.randint(259, (2, 21), generator=torch.Generator().manual_seed(0))
    recipe = {"lr": 1e-3, "train_router": True}
    results = run_world(everything_of, 2, folder, tmp_path / "out", prompts, ids, recipe)
    hidden, texts = sampled_by_a_team(folder, 1, prompts, ids)
    alone = train(folder, torch.float32, 2, 6, **recipe)
    for member, ((_, copied, from_disk), (found, sampled), trained) in enumerate(results):
        assert copied.keys() == from_disk.keys()
        assert all(torch.equal(copied[name], from_disk[name]) for name in copied), member
        assert (found - hidden).norm() <= 1e-5 * hidden.norm() and sampled == texts
        assert trained.norms == pytest.approx(alone.norms, rel=1e-4)
        for name, weight in trained.weights.items():
            # Adam's first steps are as long for a gradient of nothing but rounding: few numbers, and none by more than both.
            assert (weight - alone.weights[name]).abs().max() <= 2.2 * 2 * 1e-3
            assert (weight - alone.weights[name]).norm() <= 1e-3 * alone.weights[name].norm(), name
    expected, found = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
