"""What happens to a run's folder: one owner, nothing written before everything was opened, damage named or repaired."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from o1core.cli import main
from o1core.files import digests, file_digest, read_record, write_record
from o1core.run_folder import RunFolder
from o1core.runs.loop import Round
from o1core.training import state
from tests.campaigns.kill import fingerprint, finish, kill_once, make_command, start_run


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> tuple[list[str], Path]:
    """A finished `o1core prune` and the command that made it, without --out."""
    folder = tmp_path_factory.mktemp("durability")
    command = make_command(folder)
    assert main([*command, "--out", str(folder / "whole")]) == 0
    return command, folder / "whole"


@pytest.fixture
def finished(template, tmp_path) -> tuple[list[str], RunFolder]:
    """A copy of it to be damaged."""
    command, whole = template
    shutil.copytree(whole, tmp_path / "run")
    return [*command, "--out", str(tmp_path / "run")], RunFolder(tmp_path / "run")


def stop(command: list[str], run: Path, at: int) -> None:
    """Start a run, and let SIGTERM arrive during a step."""
    step = Round.step

    def stopping(self, batch, progress, steps):
        if progress.steps == at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, progress, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Round, "step", stopping)
        assert main([*command, "--out", str(run)]) == 128 + signal.SIGTERM


@pytest.fixture
def stopped(template, tmp_path, capsys) -> tuple[list[str], RunFolder]:
    """A run that SIGTERM stopped after 13 of its 16 steps, in the second round."""
    command, _ = template
    stop(command, tmp_path / "run", 13)
    assert "SIGTERM; rerun the same command to continue" in capsys.readouterr().err
    return [*command, "--out", str(tmp_path / "run")], RunFolder(tmp_path / "run")


def error_of(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("o1core: error: ")]
    assert len(lines) == 1
    return lines[0]


def flip(path: Path, at: float = 0.5) -> None:
    """Flip one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[int(at * (len(raw) - 1))] ^= 4
    path.write_bytes(raw)


def test_sigterm_saves_the_state_and_the_rerun_ends_with_the_same_bits(stopped, template):
    command, run = stopped
    assert [path.name for path in run.states()] == ["state-000008-01", "state-000013-01"]
    assert main(command) == 0
    assert fingerprint(run.path) == fingerprint(template[1])


@pytest.mark.parametrize("at, state", [(8, "state-000008-01"), (16, "state-000016-02")])
def test_sigterm_in_the_last_step_of_a_round_loses_none(template, tmp_path, at, state):
    command, run = template[0], RunFolder(tmp_path / "run")
    stop(command, run.path, at)
    assert run.states()[-1].name == state
    assert main([*command, "--out", str(run.path)]) == 0
    assert fingerprint(run.path) == fingerprint(template[1])


def test_a_kill_while_a_state_is_written_resumes_from_the_one_before(template, tmp_path):
    """SIGKILL from the thread that writes the second state, when all of its tensors lie in their folder."""
    command, run = [*template[0], "--out", str(tmp_path / "run")], RunFolder(tmp_path / "run")

    def kill_at_the_second_state() -> None:
        written = []

        def note_and_kill(what: str, folder: Path) -> dict[str, str]:
            written.append(folder)
            if len(written) == 2:
                assert threading.current_thread() is not threading.main_thread()
                os.kill(os.getpid(), signal.SIGKILL)
            return digests(folder)

        state.digests_by_all = note_and_kill

    status, output = finish(start_run(command, run.path, kill_at_the_second_state))
    assert status == -signal.SIGKILL, output
    assert [path.name for path in run.states()] == ["state-000000-00"]
    assert (run.path / ".state-000002-00.partial" / "training.safetensors").exists()
    assert main(command) == 0
    assert fingerprint(run.path) == fingerprint(template[1])
    assert not list(run.path.rglob("*.partial"))


def test_a_state_that_no_run_of_these_settings_wrote_is_named(stopped, capsys):
    command, run = stopped
    path = run.states()[-1] / "progress.json"
    record = read_record(path)
    for change, message in (
        ({"step": -1}, "progress.json: not what a run writes; delete "),
        ({"recipe": []}, "progress.json: not what a run writes; delete "),
        ({"files": {"../pruned.json": "0"}}, "progress.json: files: not what a run writes; delete "),
        (
            {"recipe": record["recipe"] | {"lr": 1.0}},
            "progress.json: written under other settings; use them, or another --out",
        ),
    ):
        write_record(path, record | change)
        assert main(command) == 2
        assert message in error_of(capsys)
    write_record(path, record)
    assert main(command) == 0


def test_a_second_process_is_refused_with_the_owners_id(template, tmp_path, capsys):
    command = [*template[0], "--problems", "11", "--out", str(tmp_path / "run")]
    owner = start_run(command, tmp_path / "run", lambda: None)

    def refused() -> bool:
        if not (tmp_path / "run" / "settings.json").exists():
            return False
        os.kill(owner, signal.SIGSTOP)
        assert main(command) == 2
        assert f"process {owner} is at work in this folder" in error_of(capsys)
        return True

    assert kill_once(owner, refused)


def test_a_killed_owners_lock_is_free_and_the_next_one_says_so(finished, caplog):
    command, run = finished
    run.result.unlink()
    run.lock.write_text("99999999\n")
    assert main(command) == 0
    assert "the previous process here (99999999) was killed" in caplog.text
    assert run.lock.read_text() == ""


def test_a_checkpoint_that_cannot_be_opened_leaves_no_trace(template, tmp_path, capsys):
    command, _ = template
    model = tmp_path / "model"
    shutil.copytree(command[command.index("--model") + 1], model)
    broken = [str(model) if i and command[i - 1] == "--model" else word for i, word in enumerate(command)]
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-40])
    assert main([*broken, "--out", str(tmp_path / "run")]) == 2
    assert "model.safetensors" in error_of(capsys)
    assert not (tmp_path / "run").exists()
    (model / "model.safetensors").write_bytes(weights)
    assert main([*broken, "--method", "fast-prompt", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_pruned_checkpoint_is_made_again(finished, caplog, name):
    command, run = finished
    before = {path.name: file_digest(path) for path in run.pruned.iterdir()}
    flip(run.pruned / name)
    run.result.unlink()
    assert main(command) == 0
    assert "damaged or not finished; it is made again" in caplog.text
    assert {path.name: file_digest(path) for path in run.pruned.iterdir()} == before


def test_a_damaged_state_is_named_and_once_deleted_the_round_is_trained_again(stopped, template, capsys):
    command, run = stopped
    newest = run.states()[-1]
    for name in ("training.safetensors", "progress.json"):
        whole = (newest / name).read_bytes()
        flip(newest / name)
        assert main(command) == 2
        error = error_of(capsys)
        assert str(newest / name) in error and "delete" in error
        (newest / name).write_bytes(whole)
    shutil.rmtree(newest)
    assert main(command) == 0
    assert fingerprint(run.path) == fingerprint(template[1])


def test_a_damaged_reference_is_named_and_once_deleted_the_round_is_trained_again(stopped, template, capsys):
    command, run = stopped
    for at in (0.02, 0.5, 1.0):
        whole = run.reference(1).read_bytes()
        flip(run.reference(1), at)
        assert main(command) == 2
        assert str(run.reference(1)) in error_of(capsys)
        run.reference(1).write_bytes(whole)
    run.reference(1).unlink()
    assert main(command) == 0
    assert fingerprint(run.path) == fingerprint(template[1])


def test_rollouts_lost_in_the_middle_of_a_round_are_sampled_from_its_starting_state(stopped, template, caplog):
    command, run = stopped
    for path in run.rollouts(1).iterdir():
        path.unlink()
    assert main(command) == 0
    assert "the round is trained again from its start" in caplog.text
    assert fingerprint(run.path) == fingerprint(template[1])


def test_a_damaged_log_is_named(stopped, caplog):
    command, run = stopped
    flip(run.log, 0.3)
    assert main(command) == 0
    assert f"{run.log}: damaged or cut" in caplog.text


@pytest.mark.parametrize("side", ["base", "after"])
def test_a_damaged_result_is_named_and_once_deleted_made_again(finished, capsys, side):
    command, run = finished
    folder = run.evaluation(side, "problems")
    whole = json.loads(folder.result.read_text())
    changed = folder.result.read_text().replace('"problems": 2', '"problems": 3')
    assert changed != folder.result.read_text()
    folder.result.write_text(changed)
    run.result.unlink()
    assert main(command) == 2
    assert str(folder.result) in error_of(capsys)
    folder.result.unlink()
    assert main(command) == 0
    again = json.loads(folder.result.read_text())
    assert {k: again[k] for k in ("accuracy", "mean_tokens")} == {k: whole[k] for k in ("accuracy", "mean_tokens")}


@pytest.mark.parametrize("side", ["base", "after"])
def test_lost_rollouts_of_a_finished_evaluation_are_sampled_again(finished, side):
    command, run = finished
    folder = run.evaluation(side, "problems")
    shards = sorted(path.name for path in folder.rollouts.iterdir())
    (folder.rollouts / next(name for name in shards if name.endswith(".jsonl"))).unlink()
    run.result.unlink()
    assert main(command) == 0
    assert sorted(path.name for path in folder.rollouts.iterdir()) == shards


def test_what_decides_no_result_may_change_and_the_run_says_so(stopped, caplog):
    command, run = stopped
    assert main([*command, "--micro-tokens", "64", "--slots", "3", "--save-every", "5", "--checkpointing"]) == 0
    assert "micro_tokens was 4096 and is now 64; the last bits of the weights may differ" in caplog.text
    assert json.loads(run.settings.read_text())["micro_tokens"] == 64


def test_what_decides_a_result_may_not(finished, capsys):
    command, _ = finished
    assert main([*command, "--lam", "3"]) == 2
    assert "other settings (lam: 2.0 there, 3.0 requested)" in error_of(capsys)


@pytest.mark.parametrize("name", ["prune", "train"])
def test_a_finished_run_goes_on_with_more_rounds(finished, template, name):
    (_, *flags), run = finished
    command = [name, *flags, "--rounds", "3", *(["--resume"] if name == "train" else [])]
    before = file_digest(run.pruned / "model.safetensors")
    assert main(command) == 0
    assert [json.loads(line)["round"] for line in run.log.read_text().splitlines()][-1] == 2
    assert file_digest(run.path / "rounds-2" / "pruned" / "model.safetensors") == before
    assert file_digest(run.pruned / "model.safetensors") != before
    assert (run.path / "rounds-2" / "result.json").exists() and run.result.exists() == (name == "prune")


@pytest.mark.parametrize("kept", ["both states", "the newest state"])
def test_a_run_of_the_version_before_trains_its_round_again(stopped, template, capsys, kept):
    """It had neither checksums nor a lock, its batches held other samples, and the oldest kept one state."""
    command, run = stopped
    if kept == "the newest state":
        shutil.rmtree(run.states()[0])
    state = run.states()[-1]
    settings = json.loads(run.settings.read_text())
    progress = json.loads((state / "progress.json").read_text())
    older = {name: progress[name] for name in ("round", "step", "steps")} | {
        "recipe": {name: value for name, value in settings.items() if name in progress["recipe"]}
    }
    older["recipe"].pop("optimiser", None)
    (state / "progress.json").write_text(json.dumps(older))
    for name in ("device", "threads", "optimiser", "sha256", "o1core"):
        settings.pop(name, None)
    run.settings.write_text(json.dumps(settings))
    run.lock.unlink()
    if kept == "the newest state":
        assert main(command) == 2
        assert "or an older version began it, and the state that it started from is lost" in error_of(capsys)
        return
    assert main(command) == 0
    assert fingerprint(run.path)["weights"] == fingerprint(template[1])["weights"]
