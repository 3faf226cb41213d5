"""A checkpoint whose template opens the thought, from end to end: what never closes it has no answer, and what follows a
closed one is judged."""

import json
import shutil
from pathlib import Path

import pytest

from o1core.cli import main
from o1core.rollout import read_groups
from o1core.runs import EMBEDDED

PREFILLED = "{% if add_generation_prompt %}<|im_start|>assistant\n"
SMALL = [
    "--samples",
    "4",
    "--picked",
    "4",
    "--rounds",
    "1",
    "--max-new-tokens",
    "300",
    "--temperature",
    "1",
    "--top-p",
    "1",
    "--batch",
    "8",
    "--eval-problems",
    "3",
    "--slots",
    "16",
    "--device",
    "cpu",
]


@pytest.fixture
def thinker(tmp_path) -> Path:
    """tiny-o1 with a template that ends in <think>, which it was never trained to close."""
    shutil.copytree(EMBEDDED, tmp_path / "thinker")
    path = tmp_path / "thinker" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert PREFILLED in config["chat_template"]
    config["chat_template"] = config["chat_template"].replace(PREFILLED, PREFILLED + "<think>")
    path.write_text(json.dumps(config))
    return tmp_path / "thinker"


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "sums.jsonl"
    sums = [(a, b) for a in range(2, 6) for b in range(3, 6)]
    path.write_text(
        "".join(json.dumps({"problem": f"How much is {a}*{b}?", "answer": str(a * b)}) + "\n" for a, b in sums)
    )
    return path


def rights(rollouts: Path) -> list[bool]:
    return [s.correct for group in read_groups(rollouts) for s in group.samples]


def test_what_stays_in_the_thought_is_no_answer(thinker, data, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["eval", "--model", str(thinker), "--data", str(data), "--limit", "4", "--max-new-tokens", "300"]
    assert main([*command, "--device", "cpu", "--out", str(run)]) == 0
    assert rights(run / "rollouts") and not any(rights(run / "rollouts"))
    assert json.loads((run / "result.json").read_text())["accuracy"] == 0
    assert not [s.answer for group in read_groups(run / "rollouts") for s in group.samples if s.answer]


def test_an_answer_after_the_thought_counts_from_sampling_to_the_page(thinker, data, tmp_path, capsys, caplog):
    """Training completions are made to close the thought first; in the evaluations nothing closes it."""
    caplog.set_level("INFO")
    run = tmp_path / "run"
    command = ["prune", "--model", str(thinker), "--data", str(data), *SMALL, "--opening", "</think>"]
    assert main([*command, "--objective", "surrogate", "--reward", "accuracy", "--out", str(run)]) == 0
    assert any(rights(run / "round-00" / "rollouts"))
    for side in ("base", "after"):
        (evaluated,) = (run / side).glob("*/rollouts")
        assert not any(rights(evaluated))
    assert "thoughts stand between <think> and </think>" in caplog.text
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "How much is" in page and "0.0 %" in page


def test_tags_of_ones_own_hold_instead_and_must_occur(thinker, data, tmp_path, capsys):
    command = ["eval", "--model", str(thinker), "--data", str(data), "--limit", "2", "--device", "cpu"]
    assert main([*command, "--thought-tags", "<a>,</a>", "--out", str(tmp_path / "run")]) == 2
    assert "--thought-tags <a>,</a>: <a> occurs neither" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_variable_that_the_template_does_not_read_is_named(thinker, data, tmp_path, capsys):
    command = ["eval", "--model", str(thinker), "--data", str(data), "--limit", "2", "--device", "cpu"]
    assert main([*command, "--template", "enable_thinking=false", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "enable_thinking" in error and not (tmp_path / "run").exists()
