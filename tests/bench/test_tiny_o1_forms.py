"""bench.tiny_o1_forms: whose wording a question has, a row by hand, wrong input."""

import sys

import pytest
import torch

from bench import tiny_o1_forms
from o1core.errors import UserError
from o1core.problems.arithmetic import arithmetic_tasks
from o1core.rollout.store import write_shard
from o1core.run_folder import RunFolder
from o1core.types import Group, Problem, Sample


def test_every_question_has_one_wording_and_it_is_of_its_kind():
    for task, problem in arithmetic_tasks("test", 300, seed=0):
        kind = "sum" if len(task.chains) == 1 else "larger"
        wording = tiny_o1_forms.wording_of(problem.question)
        assert wording in tiny_o1_forms.KINDS[kind]
        assert wording.format(*task.chains) == problem.question
    with pytest.raises(UserError, match="is no problem of tiny-o1"):
        tiny_o1_forms.wording_of("What is 1+2?\nBe quick.")


def test_a_row_by_hand(tmp_path):
    """Two sums of one wording and a comparison; lengths and verdicts before and after."""
    questions = {"a": "Find 1+2.", "b": "Find 2+2.", "c": "Which is larger, 1+2 or 2+2?"}
    sides = {
        "base": {"a": (10, True), "b": (30, False), "c": (40, True)},
        "after": {"a": (10, True), "b": (20, True), "c": (10, False)},
    }
    run = RunFolder(tmp_path)
    for side, found in sides.items():
        folder = run.evaluation(side, "arithmetic")
        folder.begin([Problem(name, text, "0") for name, text in questions.items()])
        none = torch.zeros(1, dtype=torch.int32)
        write_shard(
            folder.rollouts,
            [
                Group(name, none, (Sample(torch.zeros(n, dtype=torch.int32), torch.zeros(n), "stop", "", right),))
                for name, (n, right) in found.items()
            ],
        )
    cells = tiny_o1_forms.row("x", [run]).split(" | ")
    assert (cells[1], cells[2], cells[4]) == ("+50.0 (-48.0 to +148.0)", "25.0 %", "75.0 %")
    assert cells[3].startswith("-100.0") and cells[5] == "25.0 to 75.0 %, -100.0 points at worst |"


def test_an_unfinished_folder_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tiny_o1_forms", str(tmp_path)])
    assert tiny_o1_forms.main() == 2
    assert capsys.readouterr().err == f"{tmp_path}: no recipe has finished\n"
    (tmp_path / "seed-0" / "sft").mkdir(parents=True)
    (tmp_path / "seed-0" / "sft" / "result.json").touch()
    assert tiny_o1_forms.main() == 2
    assert capsys.readouterr().err == f"{tmp_path / 'seed-1' / 'sft'}: is not finished\n"
