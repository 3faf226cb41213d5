"""What a reward remembers is a part of the training state: a run that resumes ends as if it had never stopped."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from o1core.cli import main
from o1core.files import CHECKSUM, write_record
from o1core.run_folder import RunFolder
from o1core.runs.loop import Round
from o1core.training import read_log
from o1core.types import Group, Sample

METHODS = {
    "hapo": ["--method", "hapo"],
    "a-dlp": ["--method", "a-dlp", "--memory-rate", "1", "--accuracy-reference", "0"],
}


def steps(run) -> list[dict]:
    timed = ("tokens_per_second", "peak_memory_mib")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_log(run.log)]


class Stopped(Exception):
    """What stands for a kill."""


def stop_at(step: int):
    """Round.step, until the log is to get its line of this step."""
    train_step = Round.step

    def take_step(self, batch, progress, steps_in_round):
        if progress.steps == step:
            raise Stopped
        return train_step(self, batch, progress, steps_in_round)

    return take_step


@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumed_in_its_second_round_remembers_the_first(flags, tmp_path, monkeypatch, method):
    """Completions of up to 12 tokens are graded right here, so that there is something to remember."""
    monkeypatch.setattr("o1core.policy.Policy.grade", graded_by_length)
    whole, again = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "again")
    command = ["train", *flags, *METHODS[method]]
    assert main([*command, "--out", str(whole.path)]) == 0
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Round, "step", stop_at(11))
        main([*command, "--out", str(again.path)])
    held = json.loads((again.states()[-1] / "progress.json").read_text())
    assert held["round"] == 1 and held["step"] == 2 and held["memory"]
    assert main([*command, "--resume", "--out", str(again.path)]) == 0
    expected, found = (load_file(run.pruned / "model.safetensors") for run in (whole, again))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert steps(whole) == steps(again)
    last = json.loads((again.states()[-1] / "progress.json").read_text())
    assert last["memory"] != held["memory"], "the second round changes what is remembered"


def graded_by_length(policy, grader, finished):
    """Groups whose completions of up to 12 tokens are right."""
    return [
        Group(
            problem.id,
            torch.tensor(prompt, dtype=torch.int32),
            tuple(
                Sample(
                    torch.tensor(c.ids, dtype=torch.int32),
                    torch.tensor(c.logprobs),
                    c.finish_reason,
                    "",
                    len(c.ids) < 13,
                )
                for c in completions
            ),
        )
        for problem, prompt, completions in finished
    ]


def test_a_damaged_memory_is_named(flags, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    command = ["train", *flags, "--method", "hapo", "--out", str(run.path)]
    assert main(command) == 0
    shutil.rmtree(run.pruned)
    path = run.states()[-1] / "progress.json"
    record = json.loads(path.read_text())
    write_record(path, {k: v for k, v in record.items() if k != CHECKSUM} | {"memory": [-1]})
    assert main([*command, "--resume"]) == 2
    assert "progress.json: not what a run writes" in capsys.readouterr().err.splitlines()[-1]
