"""Evaluation between rounds: on problems that nobody trains on, and the rule by which a round is kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file

from o1core.cli import main
from o1core.evaluation import Evaluation
from o1core.metrics import Answers
from o1core.rollout import read_groups
from o1core.runs.validation import Validation, is_below

ROUNDS = [
    "--problems",
    "12",
    "--samples",
    "2",
    "--picked",
    "2",
    "--max-new-tokens",
    "12",
    "--eval-every",
    "round",
    "--validation-problems",
    "2",
    "--keep",
    "best",
]


def evaluation(right: int, tokens: int, problems: int = 100) -> Evaluation:
    answers = Answers(
        [str(i) for i in range(problems)], np.full((problems, 1), tokens), np.arange(problems)[:, None] < right
    )
    return Evaluation(right / problems, tokens, tokens, 0.0, problems, 1, 1.0, answers=answers)


def rule(*rounds: tuple[int, int]) -> int:
    recipe = SimpleNamespace(evaluation_params=lambda: None, evaluation=SimpleNamespace(keep="best"))
    found = Validation(None, [], recipe, None, None)
    found.found = [evaluation(*values) for values in rounds]
    return found.best()


def test_the_best_has_the_fewest_tokens_of_those_whose_accuracy_does_not_lie_below():
    assert rule((80, 200), (80, 150), (79, 100), (60, 50)) == 2, "60 of 100 lies below 80, 79 does not"
    assert rule((80, 200), (95, 150), (80, 160)) == 1
    assert rule((80, 200), (50, 30), (60, 90), (55, 10)) == 2, "all below: the most accurate"
    found = Validation(
        None, [], SimpleNamespace(evaluation_params=dict, evaluation=SimpleNamespace(keep="best")), None, None
    )
    found.found = [evaluation(80, 200), evaluation(79, 100), evaluation(60, 50)]
    assert [is_below(found.against_base(k)) for k in (1, 2)] == [False, True]


@pytest.fixture
def run(flags, tmp_path) -> Path:
    assert main(["prune", *flags, *ROUNDS, "--rounds", "1", "--out", str(tmp_path / "run")]) == 0
    assert main(["prune", *flags, *ROUNDS, "--rounds", "2", "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def test_a_run_that_grew_keeps_the_best_of_all_its_rounds(run, capsys):
    held = {group.problem for group in read_groups(run / "validation" / "round-00" / "rollouts")}
    trained = {group.problem for group in read_groups(run / "round-00" / "rollouts")}
    tested = {group.problem for group in read_groups(run / "base" / "problems" / "rollouts")}
    assert len(held) == 2 and not held & trained and not held & tested
    results = [json.loads((run / "validation" / f"round-0{k}" / "result.json").read_text()) for k in range(3)]
    kept = sorted((run / "validation").glob("*/checkpoint"))
    assert len(kept) == 1 and len(results) == 3
    best = int(kept[0].parent.name.removeprefix("round-"))
    assert best == min((1, 2), key=lambda k: results[k]["mean_tokens"]), "2 problems: no accuracy lies below another"
    pruned, wanted = (load_file(folder / "model.safetensors") for folder in (run / "pruned", kept[0]))
    assert all(pruned[name].equal(wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--keep", "best"], "--keep best: nothing says which round is the best; add --eval-every round"),
        (["--eval-every", "step"], "invalid choice: 'step'"),
        (["--validation-problems", "0"], "--validation-problems: 0 is below 1"),
    ],
)
def test_what_is_refused(words, message, tmp_path, capsys):
    try:
        status = main(["prune", *words, "--out", str(tmp_path / "run")])
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and message in capsys.readouterr().err
