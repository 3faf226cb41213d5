"""Completions that are made to begin with a text: in training alone, within their limit, and sampled from there on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from o1core.cli import main
from o1core.errors import UserError
from o1core.model import load
from o1core.policy import Policy
from o1core.problems import arithmetic_problems
from o1core.rollout import Engine, read_groups
from o1core.rollout.sampling import SamplingParams
from o1core.runs import EMBEDDED

OPENING = "First I multiply"
PARAMS = SamplingParams(n=3, temperature=1.0, max_new_tokens=60, seed=5)


@pytest.fixture(scope="module")
def tiny() -> Policy:
    model, tokenizer = load(EMBEDDED, torch.float32)
    return Policy(EMBEDDED, model, tokenizer, Engine(model, tokenizer), 440)


def test_completions_go_on_from_the_opening_within_the_limit(tiny, tmp_path):
    model, tokenizer = tiny.model, tiny.tokenizer
    problems = arithmetic_problems("train", 4, seed=3)
    groups = tiny.sample(problems, PARAMS, tmp_path, opening=OPENING).groups
    begun = tokenizer.encode(OPENING)
    prompts = [tokenizer.prompt(problem.question) for problem in problems]
    rest = replace(PARAMS, max_new_tokens=60 - len(begun))
    expected = Engine(model, tokenizer).generate([prompt + begun for prompt in prompts], rest)
    for group, prompt, completions in zip(groups, prompts, expected, strict=True):
        assert group.prompt.tolist() == prompt
        for sample, c in zip(group.samples, completions, strict=True):
            assert sample.ids.tolist() == begun + c.ids
            assert sample.logprobs.tolist() == [0.0] * len(begun) + c.logprobs
            assert sample.length <= 60
    assert any(s.finish_reason == "length" and s.length == 60 for group in groups for s in group.samples)


def test_an_opening_that_fills_the_limit_is_refused(tiny, tmp_path):
    tokenizer = tiny.tokenizer
    short = replace(PARAMS, max_new_tokens=len(tokenizer.encode(OPENING)))
    with pytest.raises(UserError, match=r"--opening: its \d+ tokens fill --max-new-tokens \d+"):
        tiny.sample(arithmetic_problems("train", 1, seed=3), short, tmp_path, opening=OPENING)
    assert not list(tmp_path.iterdir())


def test_a_run_trains_on_the_opening_and_is_tested_without_it(flags, checkpoint, tmp_path):
    run = tmp_path / "run"
    assert main(["prune", *flags, "--opening", "So ", "--out", str(run)]) == 0
    trained = read_groups(run / "round-00" / "rollouts")
    begun = torch.tensor(load(checkpoint)[1].encode("So "), dtype=torch.int32)
    assert all(torch.equal(s.ids[:3], begun) for group in trained for s in group.samples)
    (tested,) = (read_groups(Path(path)) for path in (run / "after").glob("*/rollouts"))
    assert any(not torch.equal(s.ids[:3], begun) for group in tested for s in group.samples)
    assert json.loads((run / "settings.json").read_text())["opening"] == "So "
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    assert all(line["reference_max"] < 1e-3 for line in lines), "tokens that were not sampled are compared"


def test_an_opening_that_fills_the_limit_is_refused_before_anything_is_sampled(flags, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["prune", *flags, "--opening", "So " * 8, "--out", str(run)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("--opening: its 24 tokens fill --max-new-tokens 24")
    assert not run.exists()
