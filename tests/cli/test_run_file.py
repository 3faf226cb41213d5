"""A run as a YAML or JSON file: it stands for flags, flags override it, and a run's settings.json is one."""

import json

import pytest

from o1core.cli import main

PAPER = "model: tiny-o1\nsamples: 4\nlr: 2e-5\nlora_rank: 8\ncheckpointing: true\ntemplate: {enable_thinking: false}\n"


def dry(capsys, *words):
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def test_a_file_stands_for_flags_and_flags_override_it(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(PAPER + "method: dpo\nseed: 010\n")
    settings, said = dry(capsys, "prune", str(path), "--lr", "1e-4", "--template", "effort=low")
    assert (settings["samples"], settings["lr"], settings["lora_rank"]) == (4, 1e-4, 8)
    assert settings["seed"] == 10, "as --seed 010 is"
    assert settings["checkpointing"] is True and settings["objective"] == "dpo" and "method dpo" in said
    assert settings["template"] == {"enable_thinking": False, "effort": "low"}
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"values": [0, 2.5], "lora_rank": None, "checkpointing": False, "data": None}))
    studied, _ = dry(capsys, "study", "lambda", str(path))
    assert [of["lam"] for of in studied.values()] == [0, 2.5]


def test_the_settings_of_a_run_make_it_again(flags, problems, tmp_path, capsys):
    flags += [
        "--eval-data",
        str(problems),
        "--question-field",
        "problem",
        "--system",
        "Be brief.",
        "--method",
        "correct-only",
    ]
    rows = problems.read_text().splitlines()
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(row.replace("+ 5", "+ 50") for row in rows))
    flags[flags.index("--data") + 1] = str(train)
    assert main(["sample", *flags, "--out", str(tmp_path / "a")]) == 0
    settings = tmp_path / "a" / "settings.json"
    assert main(["sample", str(settings), "--out", str(tmp_path / "b")]) == 0
    again, first = (json.loads((tmp_path / run / "settings.json").read_text()) for run in "ba")
    assert [held.pop("command").split()[:3] for held in (first, again)] == [
        ["o1core", "sample", "--model"],
        ["o1core", "sample", str(settings)],
    ]
    assert first.pop("sha256") != again.pop("sha256"), "each was asked for by another command"
    assert again == first
    assert again["eval_data"] == [str(problems)] and again["question_field"] == "problem"
    sampled = [
        sorted(line for file in (tmp_path / run / "round-00/rollouts").glob("*.jsonl") for line in file.open())
        for run in "ab"
    ]
    assert sampled[0] == sampled[1] != []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lamm: 3", "run.yaml: lamm is no flag of this command; did you mean --lam?"),
        ("lr: quick", "run.yaml: argument --lr: invalid float value: 'quick'"),
        ("method: o1-prunr", "run.yaml: argument --method: invalid choice: 'o1-prunr'"),
        ("lr: {a: 1}", "run.yaml: argument --lr: invalid float value: 'a=1'"),
        ("lr: true", "run.yaml: lr: a bool of this kind is no value"),
        ("template: {a: [1]}", "run.yaml: template: a dict of this kind is no value"),
        ("template: {a: null}", "run.yaml: template: a dict of this kind is no value"),
        ("eval_data: [[a]]", "run.yaml: eval_data: a list of this kind is no value"),
        ("- lr", "run.yaml: must hold names and values, such as"),
        ("lr: [1, 2", "run.yaml: not valid YAML: expected ',' or ']', but got '<stream end>' (line 1, column 10)"),
        ("a: " + "[" * 1500, "run.yaml: not readable as YAML: it is nested too deeply"),
        ("a: !!python/object:os.system {}", "run.yaml: not valid YAML: could not determine a constructor"),
        ("help_all: true", "run.yaml: help_all is no flag of this command"),
        ("a: " + "x" * 300_000, "run.yaml: more than 200,000 characters of YAML"),
    ],
)
def test_a_wrong_file_is_one_line(text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    try:
        status = main(["prune", "run.yaml"])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.startswith("o1core: error: ") and error.count("\n") == 1
