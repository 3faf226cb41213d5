"""bench.qwen_gsm8k with the embedded model in place of Qwen: every stage, a second command that adds tests, wrong input."""

import json
import sys
from pathlib import Path

import pytest

from bench import qwen_gsm8k
from o1core.problems import arithmetic_problems
from o1core.recipe import Recipe, read_recipe
from o1core.runs import EMBEDDED

SMALL = {
    "prompt": "plain",
    "problems": 6,
    "samples": 4,
    "picked": 4,
    "batch": 8,
    "temperature": 1.0,
    "max_new_tokens": 200,
}


def write_problems(path, split, count):
    rows = [
        {"id": p.id, "problem": p.question, "answer": p.answer, "level": p.level} for p in problems_of(split, count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def problems_of(split, count):
    return arithmetic_problems(split, count, seed=7)


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setattr(qwen_gsm8k, "VALIDATION", 4)
    first, *others = (recipe.replace(**SMALL) for recipe in qwen_gsm8k.STAGES)
    monkeypatch.setattr(qwen_gsm8k, "STAGES", (first.replace(opening="First I "), *others))
    data = write_problems(tmp_path / "train.json", "train", 12)

    def run(*more):
        out = str(tmp_path / "run")
        arguments = ["--model", str(EMBEDDED), "--data", data, "--dtype", "float32", "--out", out, *more]
        monkeypatch.setattr(sys, "argv", ["qwen_gsm8k", *arguments])
        return qwen_gsm8k.main()

    return run


def test_all_stages_then_some_test_problems_of_two_levels(command, tmp_path, capsys):
    assert command() == 0
    assert "validation: 4 problems" in capsys.readouterr().out
    trained = (tmp_path / "run" / "stage-3" / "log.jsonl").read_bytes()
    asked = sum(p.level in ("2", "3") for p in problems_of("test", 12)) - 1
    test = write_problems(tmp_path / "test.json", "test", 12)
    assert command("--eval-data", test, "--levels", "2-3", "--limit", str(asked)) == 0
    assert f"test: {asked} problems" in capsys.readouterr().out
    assert (tmp_path / "run" / "stage-3" / "log.jsonl").read_bytes() == trained
    figures = json.loads((tmp_path / "run" / "against-test" / "figures.json").read_text())
    outcome = figures["result"]["tests"]["test"]
    assert str(tmp_path) not in json.dumps(figures)
    gained = outcome["pruned"]["mean_tokens"] - outcome["base"]["mean_tokens"]
    assert outcome["paired"]["tokens"]["mean"] == pytest.approx(gained)


def test_tests_that_were_trained_on_are_refused_in_one_line(command, tmp_path, capsys):
    some = write_problems(tmp_path / "some.json", "train", 8)  # of the 12 there, of which 6 are trained on
    assert command("--eval-data", some) == 2
    assert not (tmp_path / "run" / "stage-1").exists()
    assert "--eval-data: holds problems that are trained on" in capsys.readouterr().err.splitlines()[-1]


def test_a_limit_below_one_is_refused_in_one_line(command, capsys):
    assert command("--limit", "0") == 2
    assert capsys.readouterr().err == "--limit: 0 problems are none; take at least 1\n"


def test_too_few_problems_are_refused_in_one_line(command, monkeypatch, capsys):
    monkeypatch.setattr(qwen_gsm8k, "VALIDATION", 100)
    assert command() == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("method, batch, ratio", [("sft", 16, "token"), ("gspo", 32, "sequence_mean")])
def test_the_recipe_of_the_methods_on_the_real_model_is_one(method, batch, ratio):
    recipe = Recipe.of(**read_recipe(str(Path(qwen_gsm8k.__file__).with_name("qwen_methods.json")), method)).to_json()
    assert (recipe["batch"], recipe["ratio"], recipe["lora_rank"]) == (batch, ratio, 16)
