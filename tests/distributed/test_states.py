"""The training state on many processes: safetensors alone, for any number of processes."""

import pytest
import torch

from o1core.distributed import load_tensors
from o1core.distributed.states import BackgroundSave, save_tensors, to_host
from tests.distributed.cases import load_and_go_on, save_and_go_on
from tests.distributed.streams import OnGpu, streams
from tests.distributed.worlds import run_world

KINDS = ["adamw", "adam-mini"]


def test_a_state_of_two_processes_resumes_on_any_number(checkpoint, tmp_path):
    first, second = run_world(save_and_go_on, 2, checkpoint, tmp_path, KINDS)
    assert first == second
    (again, _) = run_world(load_and_go_on, 2, checkpoint, tmp_path, KINDS)
    assert again == first, "on as many processes it goes on with the same bits"
    alone, many = (
        load_and_go_on(checkpoint, tmp_path, KINDS, 2),
        run_world(load_and_go_on, 4, checkpoint, tmp_path, KINDS, 2),
    )
    for digests in (alone, *many):
        assert [loaded for loaded, _ in digests] == [saved for saved, _ in first]
    files = {path.name for path in tmp_path.rglob("state-*/*")}
    assert files == {
        "progress.json",
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
    }


def test_a_state_of_one_process_resumes_on_two(checkpoint, tmp_path):
    saved = save_and_go_on(checkpoint, tmp_path, KINDS)
    assert {path.name for path in tmp_path.rglob("state-*/*")} == {"progress.json", "training.safetensors"}
    for found in run_world(load_and_go_on, 2, checkpoint, tmp_path, KINDS, 2):
        assert [loaded for loaded, _ in found] == [before for before, _ in saved]
    assert load_and_go_on(checkpoint, tmp_path, KINDS) == saved


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7), (64,), (129,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_goes_through_small_buffers_arrives_whole(shape, dtype):
    tensor = torch.randn(3, *shape).to(dtype)[1]  # in the midst of a larger storage
    copy = to_host(tensor, 64)
    assert (torch.equal(copy, tensor) and copy.data_ptr() != tensor.data_ptr()) or not copy.numel()
    assert copy.shape == tensor.shape


def test_a_gpus_state_is_copied_on_a_stream_of_its_own_after_what_was_launched_before_it(tmp_path, monkeypatch):
    """On the second GPU of the machine. The update that was launched last is not done yet when saving begins, and no copy is
    done before somebody waits for it."""
    monkeypatch.setattr("o1core.distributed.states.STAGE_BYTES", 256)
    weights = {"a": torch.zeros(9, 30), "b": torch.zeros(5, dtype=torch.bfloat16)}
    tensors = {name: w.as_subclass(OnGpu) for name, w in weights.items()}
    with streams() as training:
        training.queue += [lambda w=w: w.fill_(7) for w in weights.values()]
        saving = BackgroundSave(lambda: save_tensors(tensors, tmp_path), torch.device("cuda", 1))
        training.queue += [lambda w=w: w.fill_(9) for w in weights.values()]  # launched later: nobody waits for it here
        saving.wait()
        assert len(OnGpu.copies) == 5 + 1 and set(OnGpu.copies) == {("beside", 1)}
    found = {name: torch.empty_like(w) for name, w in weights.items()}
    load_tensors(found, tmp_path)
    assert all((t == 7).all() for t in found.values())
