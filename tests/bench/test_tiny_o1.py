"""bench.tiny_o1: whose wording a question has, a row of the forms by hand, the thought of the README."""

import pytest
import torch

from bench import tiny_o1
from o1core.errors import UserError
from o1core.problems.arithmetic import arithmetic_tasks
from o1core.rollout.store import write_shard
from o1core.run_folder import RunFolder
from o1core.types import Group, Problem, Sample


def test_every_question_has_one_wording_and_it_is_of_its_kind():
    for task, problem in arithmetic_tasks("test", 300, seed=0):
        kind = "sum" if len(task.chains) == 1 else "larger"
        wording = tiny_o1.wording_of(problem.question)
        assert wording in tiny_o1.KINDS[kind]
        assert wording.format(*task.chains) == problem.question
    with pytest.raises(UserError, match="is no problem of tiny-o1"):
        tiny_o1.wording_of("What is 1+2?\nBe quick.")


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
    cells = tiny_o1.form_row("x", [run]).split(" | ")
    # One of two sums became right: Student's t of (0, 1), cut to what a difference of shares can be. One comparison alone
    # has no interval.
    assert (cells[1], cells[2], cells[4]) == ("+50.0 (-100.0 to +100.0)", "25.0 %", "75.0 %")
    assert cells[3] == "-100.0" and cells[5] == "25.0 to 75.0 %, -100.0 points at worst |"


def test_the_thought_is_closest_to_the_means_on_both_sides():
    """Means of 30 and 15: b is 0 and 1 away, a 20 and 5, c 20 and 6."""

    def group(name: str, lengths: list[int]) -> Group:
        none = torch.zeros(1, dtype=torch.int32)
        return Group(name, none, tuple(Sample(torch.zeros(n), torch.zeros(n), "stop", "", True) for n in lengths))

    before = {"a": group("a", [10]), "b": group("b", [20, 40, 30]), "c": group("c", [50])}
    after = {"a": group("a", [20]), "b": group("b", [2, 16]), "c": group("c", [16])}
    problem, samples = tiny_o1.choose(before, after)
    assert problem == "b" and [s.length for s in samples] == [30, 16]
