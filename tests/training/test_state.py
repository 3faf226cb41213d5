"""A training state is written while the next gradient is made, and nothing that it is written from changes meanwhile."""

import errno
import threading

import pytest
import torch

import o1core.model
from o1core.errors import UserError
from o1core.recipe import Recipe
from o1core.run_folder import RunFolder
from o1core.training import Updater, state, with_reference
from o1core.training.state import Progress, durable, load_state, save_state, trained_tensors
from o1core.types import Example

RECIPE = Recipe.of(ratio="token")
IDS = torch.arange(12, dtype=torch.int32)
EXAMPLES = [Example(f"p{i}", IDS[: 3 + i], IDS[3 + i :], torch.zeros(9 - i), i - 1.5, False) for i in range(4)]
REFERENCE = [torch.full((9 - i,), -5.0) for i in range(4)]
EXAMPLES = with_reference(EXAMPLES, REFERENCE)


@pytest.fixture
def updater(checkpoint) -> Updater:
    """After one step, so that there are moments."""
    made = Updater(o1core.model.load(checkpoint)[0], 259, RECIPE.objective, RECIPE.optimiser, RECIPE.execution)
    made.step(EXAMPLES, 1e-3)
    return made


def copied(updater: Updater) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained_tensors(updater).items()}


def test_it_is_written_during_the_next_gradient_and_before_the_weights_change(
    updater, checkpoint, tmp_path, monkeypatch
):
    run, gradient_made = RunFolder(tmp_path / "run"), threading.Event()
    write, accumulate = state.save_tensors, Updater.accumulate

    def wait_and_write(*arguments) -> None:
        assert gradient_made.wait(30), "the step waits for the state before it makes its gradient"
        write(*arguments)

    def accumulate_and_tell(*arguments):
        result = accumulate(*arguments)
        gradient_made.set()
        return result

    monkeypatch.setattr(state, "save_tensors", wait_and_write)
    monkeypatch.setattr(Updater, "accumulate", accumulate_and_tell)
    before = copied(updater)
    save_state(run, updater, Progress(0, 1, 1), {})
    assert run.states() == []
    updater.step(EXAMPLES, 1e-3)
    assert [folder.name for folder in run.states()] == ["state-000001-00"]
    assert not any(torch.equal(before[name], tensor) for name, tensor in copied(updater).items() if tensor.ndim == 2)
    assert load_state(run, updater, {}) == Progress(0, 1, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in copied(updater).items())


def test_what_goes_wrong_is_raised_before_the_weights_change_and_older_states_stay(updater, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")

    def full(*arguments) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save_state(run, updater, Progress(0, 0, 0), {})
    save_state(run, updater, Progress(0, 1, 1), {})
    updater.written()
    monkeypatch.setattr(state, "save_tensors", full)
    before = copied(updater)
    save_state(run, updater, Progress(0, 2, 2), {})
    with pytest.raises(UserError, match=r"state-000002-00: cannot be written \(No space left on device\)"):
        updater.step(EXAMPLES, 1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in copied(updater).items())
    assert [path.name for path in sorted(run.path.iterdir())] == ["state-000000-00", "state-000001-00"]


def test_a_save_waits_for_the_one_before_and_the_end_for_the_last(updater, tmp_path, monkeypatch):
    run, begun, write = RunFolder(tmp_path / "run"), [], state.save_tensors

    def slowly(tensors, folder) -> None:
        begun.append((folder.name, [path.name for path in run.states()]))
        threading.Event().wait(0.2)
        write(tensors, folder)

    monkeypatch.setattr(state, "save_tensors", slowly)
    with durable(updater):
        for step in range(3):
            save_state(run, updater, Progress(0, step, step), {})
    assert begun == [
        (".state-000000-00.partial", []),
        (".state-000001-00.partial", ["state-000000-00"]),
        (".state-000002-00.partial", ["state-000000-00", "state-000001-00"]),
    ]
    assert [path.name for path in run.states()] == ["state-000000-00", "state-000002-00"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError("a loss that is not finite")])
def test_a_run_that_is_stopped_leaves_its_newest_state(updater, tmp_path, stop):
    run = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt if stop is KeyboardInterrupt else UserError), durable(updater):
        save_state(run, updater, Progress(0, 1, 1), {})
        raise stop
    assert len(run.states()) == 1


def test_it_is_on_the_disk_before_a_round_is_sampled(updater, tmp_path):
    run = RunFolder(tmp_path / "run")
    save_state(run, updater, Progress(1, 0, 1), {})
    with updater.resting("none"):
        assert len(run.states()) == 1
