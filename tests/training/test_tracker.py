"""Trackers receive what log.jsonl holds: TensorBoard's event files are read back, wandb and trackio are recorded by fakes."""

import json
import logging
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from o1core.choices import TRACKERS
from o1core.cli import main
from o1core.errors import UserError
from o1core.training import Rows, check_installed, open_tracker, read_log
from o1core.training.tracker import OPENERS

SETTINGS = {"lam": 2.0}


def scalars(folder) -> dict[str, dict[int, float]]:
    """name: {step: value} of the event files of a run."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_tensorboard_holds_the_log_of_a_run(checkpoint, tmp_path):
    data, run = tmp_path / "problems.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps({"problem": f"{a} + 5 = ?", "answer": str(a + 5)}) + "\n" for a in range(8)))
    flags = "--samples 4 --picked 2 --max-new-tokens 8 --temperature 1 --batch 4 --slots 8 --device cpu --tracker tensorboard"
    assert main(["train", "--model", str(checkpoint), "--data", str(data), "--out", str(run), *flags.split()]) == 0
    lines = read_log(run / "log.jsonl")
    assert len(lines) > 1
    found = scalars(run)
    assert found.keys() == lines[0].keys() - {"step"}
    for name, values in found.items():
        assert values == pytest.approx({line["step"]: line[name] for line in lines}, rel=1e-6)  # stored in float32


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path):
    for steps, value in ((range(1, 6), 1.0), (range(4, 8), 2.0)):
        with open_tracker("tensorboard", tmp_path, SETTINGS) as send:
            for step in steps:
                send(step, {"loss": value})
    assert scalars(tmp_path)["loss"] == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2, 7: 2}


def test_without_a_tracker_nothing_is_written(tmp_path):
    with open_tracker(None, tmp_path, SETTINGS) as send:
        send(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def fake(monkeypatch):
    """A library whose init, log and finish are recorded, under the name that a test gives it."""

    def install(name: str, fails_from: int = 100) -> list:
        calls = []

        def record(metrics, step):
            if step >= fails_from:
                raise ConnectionError("no network")
            calls.append((step, metrics))

        def init(**given):
            calls.append(given)
            return types.SimpleNamespace(log=record, finish=lambda: calls.append("finish"))

        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(init=init, Table=dict))
        return calls

    return install


def test_a_prune_sends_its_result_and_a_table_of_samples(flags, tmp_path):
    run = tmp_path / "run"
    assert main(["prune", *flags, "--rounds", "1", "--tracker", "tensorboard", "--out", str(run)]) == 0
    result, steps = json.loads((run / "result.json").read_text()), len(read_log(run / "log.jsonl"))
    found = scalars(run)
    for side, held in (("before", result["base"]), ("after", result["pruned"])):
        for name, field in (("accuracy", "accuracy"), ("tokens", "mean_tokens")):
            assert found[f"problems/{name}_{side}"] == pytest.approx({steps + 1: held[field]})
    assert set(found["loss"]) == set(range(1, steps + 1)), "the steps before it are kept"
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("problems/samples/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert table.count("\n") == 3 and "+ 5 = ?" in table and "completion before" in table, "two problems, head and rule"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_tables_are_the_librarys_own(name, fake, tmp_path):
    calls = fake(name)
    with open_tracker(name, tmp_path, SETTINGS) as send:
        send(3, {"aes": 0.5, "samples": Rows(["a"], [["b"]])})
    assert (3, {"aes": 0.5, "samples": {"columns": ["a"], "data": [["b"]]}}) in calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_runs_of_a_folder_continue_under_one_name(name, fake, tmp_path):
    calls = fake(name)
    for step, settings in ((1, SETTINGS), (2, SETTINGS), (1, {"lam": 0.0})):
        with open_tracker(name, tmp_path / "run", settings) as send:
            send(step, {"loss": 0.5})
    (first, second, other), identity = (
        [call for call in calls if isinstance(call, dict)],
        {"wandb": "id"}.get(name, "name"),
    )
    assert first == second
    assert first["resume"] == "allow"
    assert first[identity] != other[identity]
    assert [call for call in calls if isinstance(call, tuple)] == [
        (1, {"loss": 0.5}),
        (2, {"loss": 0.5}),
        (1, {"loss": 0.5}),
    ]
    assert calls.count("finish") == 3


def test_a_tracker_that_fails_is_switched_off_with_one_warning(fake, tmp_path, caplog):
    calls = fake("wandb", fails_from=2)
    with caplog.at_level(logging.WARNING), open_tracker("wandb", tmp_path, SETTINGS) as send:
        for step in (1, 2, 3):
            send(step, {"loss": 0.5})
    assert [call for call in calls if isinstance(call, tuple)] == [(1, {"loss": 0.5})]
    assert [record.getMessage() for record in caplog.records] == [
        "--tracker wandb: switched off, it failed at step 2: no network"
    ]


def test_a_tracker_that_refuses_to_start_is_one_line(monkeypatch, tmp_path):
    def init(**given):
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with (
        pytest.raises(UserError, match="--tracker wandb: api_key not configured"),
        open_tracker("wandb", tmp_path, SETTINGS),
    ):
        pass


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_library_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--tracker {name}: {name} is not installed; run pip install {name}"):
        check_installed(name)


def test_a_missing_library_ends_the_command_before_it_starts(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["prune", "--out", str(tmp_path / "run"), "--tracker", "wandb"]) == 2
    assert "--tracker wandb: wandb is not installed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_every_tracker_of_the_flag_can_be_opened():
    assert set(TRACKERS) == set(OPENERS)
