"""What --offload moves away is gone while rollouts are sampled, and changes no bit.

Nothing here has a GPU: tensors in the host's memory are moved as a GPU's would be.
"""

import pytest
import torch
from safetensors.torch import load_file

from o1core.choices import Offload
from o1core.cli import main
from o1core.training import Updater, update
from tests.distributed.cases import digest, state_recipe, steps, updater_on
from tests.distributed.worlds import run_world


def held(updater: Updater) -> int:
    """Bytes of the fp32 weights (of one process also those that compute), of gradients and of moments on this rank."""
    tensors = [
        t for master in updater.masters for t in (master, master.grad, *updater.optimiser.state[master].values())
    ]
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors if t is not None]
    return sum(t.nbytes for t in local if t.ndim and t.untyped_storage().nbytes())


def rest_between_steps(folder, offloads: list[Offload]) -> list[tuple[str, int, int]]:
    """For each: a digest after four steps with a rest in their middle; bytes held before and inside it."""
    update.on_gpu = list
    results = []
    for offload in offloads:
        updater = updater_on(folder, torch.bfloat16, state_recipe("adamw"))
        steps(updater, 0, 2)
        before = held(updater)
        with updater.resting(offload):
            inside = held(updater)
        steps(updater, 2, 4)
        results.append((digest(updater), before, inside))
    return results


def test_less_is_held_while_sampling_and_the_bits_are_the_same_on_three_processes(checkpoint):
    """Three, because their shards are uneven: a storage is larger than what a rank holds of it."""
    for none, moments, optimiser in run_world(rest_between_steps, 3, checkpoint, ["none", "moments", "optimiser"]):
        assert none[0] == moments[0] == optimiser[0]
        before = none[1]
        assert none[2] == pytest.approx(before * 3 / 4, rel=0.02), "gradients are dropped in any case"
        assert moments[2] == pytest.approx(before / 4, rel=0.02)
        assert optimiser[2] == 0


@pytest.mark.parametrize("offload", ["moments", "optimiser"])
def test_a_run_with_it_ends_with_the_same_bits(flags, tmp_path, monkeypatch, offload):
    command, weights = ["train", *flags, "--dtype", "bfloat16"], []
    for kind in ("none", offload):
        with monkeypatch.context() as patch:
            patch.setattr(update, "on_gpu", list)
            assert main([*command, "--offload", kind, "--out", str(tmp_path / kind)]) == 0
        weights.append(load_file(tmp_path / kind / "pruned" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
