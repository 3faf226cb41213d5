"""Adapters on many processes through the whole command: what is exported is what one process exports."""

import pytest
import torch
from safetensors.torch import load_file

from o1core.cli import main
from tests.distributed.worlds import run_commands


@pytest.fixture
def command(flags) -> list[str]:
    return ["prune", *flags, "--rounds", "1", "--lora-rank", "4", "--problems", "6", "--save-every", "9"]


def test_the_merged_model_and_the_adapter_are_those_of_one_process(command, tmp_path):
    """Sharded, and sampled by a team of two: sums over ranks are rounded in another order, no more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main([*command, "--out", str(tmp_path / "1")]) == 0
    torch.set_num_threads(threads)
    for team in ("1", "2"):
        run = tmp_path / f"2-{team}"
        ranks = [[*command, "--tensor-parallel", team, "--out", str(run)]] * 2
        (status, told), (other, _) = run_commands(ranks, tmp_path)
        assert (status, other) == (0, 0), told
        for file, tolerance in (("pruned/model.safetensors", 1e-5), ("adapter/adapter_model.safetensors", 1e-4)):
            expected, found = load_file(tmp_path / "1" / file), load_file(run / file)
            assert expected.keys() == found.keys()
            for name, tensor in expected.items():
                assert (found[name] - tensor).norm() <= tolerance * tensor.norm(), (file, name)
