"""bench.openings on the embedded model: its rows against the engine's own answers, resuming, wrong input."""

import json
import sys

import pytest
import torch

from bench import openings
from o1core.grading import extract_answer
from o1core.model import load
from o1core.problems import arithmetic_problems
from o1core.rollout import Engine, SamplingParams
from o1core.runs import EMBEDDED

PROBLEMS = arithmetic_problems("validation", 6, seed=3)
BEGUN = "First I add"


@pytest.fixture
def command(tmp_path, monkeypatch):
    rows = [{"id": p.id, "problem": p.question, "answer": p.answer} for p in PROBLEMS]
    (tmp_path / "problems.json").write_text("\n".join(map(json.dumps, rows)))
    fixed = ["--model", str(EMBEDDED), "--data", str(tmp_path / "problems.json"), "--prompt", "plain"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["openings", *fixed, "--out", str(tmp_path / "run"), *more])
        return openings.main()

    return run


def expected(opening: str, limit: int) -> tuple[float, float]:
    """(percent right, mean tokens) of greedy answers to prompt + opening."""
    model, tokenizer = load(EMBEDDED, torch.float32)
    begun = tokenizer.encode(opening) if opening else []
    prompts = [tokenizer.prompt(p.question) + begun for p in PROBLEMS]
    params = SamplingParams(temperature=0, max_new_tokens=limit - len(begun))
    found = [c for [c] in Engine(model, tokenizer).generate(prompts, params)]
    answers = [extract_answer(tokenizer.decode(c.ids)) if c.finish_reason == "stop" else None for c in found]
    right = [answer == p.answer for answer, p in zip(answers, PROBLEMS)]
    return 100 * sum(right) / 6, sum(len(begun) + len(c.ids) for c in found) / 6


def test_rows_are_those_of_the_engine_and_are_not_sampled_again(command, tmp_path, capsys):
    flags = ["--dtype", "float32", "--max-new-tokens", "440"]
    assert command(*flags, BEGUN) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    for cells, opening in zip(rows, ("", BEGUN), strict=True):
        right, tokens = expected(opening, 440)
        assert cells[:3] == [f"| `{opening}`" if opening else "| its own words", f"{right:.1f} %", f"{tokens:.1f}"]
    assert float(rows[1][5].split()[0]) == pytest.approx(expected(BEGUN, 440)[1] - expected("", 440)[1], abs=0.051)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/*/round-00/rollouts/*")}
    assert command(*flags, BEGUN, BEGUN) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/*/round-00/rollouts/*")} == before


def test_an_opening_that_fills_the_limit_is_refused_in_one_line(command, capsys):
    assert command("--dtype", "float32", "--max-new-tokens", "3", BEGUN) == 2
    error = capsys.readouterr().err
    assert error.startswith("--opening: its") and error.count("\n") == 1


def test_a_form_that_is_none_is_refused_in_one_line(command, capsys):
    assert command("--prompt", "poem", BEGUN) == 2
    assert capsys.readouterr().err == '--prompt: "poem" is not plain or boxed or paper\n'
