"""The command line: help, evaluation alone, samples in a terminal, and one-line errors."""

import argparse
import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from o1core.cli import main, parser
from o1core.cli.commands import open_device
from o1core.cli.entry import CleanFormatter
from o1core.errors import UserError
from o1core.files import read_record
from o1core.rollout import write_shard
from o1core.text import clean
from o1core.types import Group, Sample


@pytest.fixture(scope="module")
def small(tmp_path_factory, build_checkpoint):
    """A small checkpoint and two sums, as flags."""
    folder = tmp_path_factory.mktemp("small")
    build_checkpoint(folder / "model")
    sums = [{"problem": f"{n} + {n} = ?", "answer": str(2 * n)} for n in (1, 2)]
    (folder / "two.json").write_text(json.dumps(sums))
    return ["--model", str(folder / "model"), "--data", str(folder / "two.json")]


def status_of(words) -> int:
    """The exit status of a command, whether it returns it or leaves with it, as argparse does."""
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


@pytest.mark.parametrize("name", ["prune", "sample", "train", "eval", "show"])
def test_every_flag_has_help(name):
    flags = [a for a in subcommands()[name]._actions if a.option_strings and a.dest != "help"]
    assert flags
    assert [a.option_strings for a in flags if not a.help or len(a.help) < 15] == []


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "o1core", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(name in done.stdout for name in subcommands())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["prnue"],
        ["prune", "--help-all"],
        ["study", "compare", "--help"],
        ["eval", "--lr", "x"],
    ],
)
def test_help_version_and_typing_errors_answer_without_torch(words):
    program = "import sys, o1core.cli\ntry: o1core.cli.main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False" and "Traceback" not in done.stderr


def test_help_shows_what_most_people_use_and_help_all_the_rest(capsys):
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main(["prune", flag])
        shown[flag] = capsys.readouterr().out
    together = " ".join(shown["--help-all"].split())
    few, all_of_them = (
        {line.split()[0] for line in text.splitlines() if line.startswith("  --")} for text in shown.values()
    )
    assert len(few) <= 17 and {"--model", "--data", "--samples", "--help-all"} <= few
    assert len(all_of_them) >= 75 and {"--dtype", "--offload", "--timeout", "--slots"} <= all_of_them
    assert "(paper: 16)" in shown["--help-all"] and "(paper: none)" not in shown["--help-all"]
    for flag, default in (("--length-floor", "(default: 1000)"), ("--optimiser", "(default: adamw)")):
        assert default in together.partition(f"{flag} ")[2].partition(" --")[0]


def test_a_limit_of_an_evaluation_is_of_what_it_evaluates(capsys):
    for flag in ("--limit", "--problems", "--eval-problems"):
        assert main(["eval", flag, "2", "--dry-run"]) == 0
        assert json.loads(capsys.readouterr().out)["eval_problems"] == 2


def test_a_dry_run_says_method_model_and_problems(small, tmp_path, capsys):
    data = tmp_path / "ten.jsonl"
    data.write_text("".join(json.dumps({"problem": f"{i} + 1 = ?", "answer": str(i + 1)}) + "\n" for i in range(10)))
    assert main(["prune", *small, "--data", str(data), "--method", "dpo", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["objective"] == "dpo"
    assert f"method dpo, recipe paper; model {small[1]}; 8 problems to train on, 2 of ten to evaluate" in said.err


def test_what_is_picked_follows_the_samples(capsys):
    for words, picked in (("--samples 4", 4), ("--samples 4 --picked 3", 3), ("--samples 32", 16)):
        assert main(["prune", *words.split(), "--dry-run"]) == 0
        assert json.loads(capsys.readouterr().out)["picked"] == picked


def test_an_evaluation_with_trainings_top_p_says_so(small, caplog):
    command = ["eval", *small, "--dry-run"]
    for words, said in (("--eval-temperature 1", True), ("", False), ("--eval-temperature 1 --top-p 1", False)):
        caplog.clear()
        assert main([*command, *words.split()]) == 0
        assert ("with training's --top-p 0.8" in caplog.text) == said


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert main(["prune", "--out", str(tmp_path / "a" / "run")]) == 2
    error = capsys.readouterr().err
    assert f"--out: nothing can be written to {tmp_path}; name another folder" in error and "is kept" not in error


class Gone:
    """A stream whose reader went away after some characters."""

    def __init__(self, error: OSError) -> None:
        self.error, self.left = error, 20

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0:
            raise self.error
        return len(text)

    def flush(self) -> None: ...
    def fileno(self) -> int:
        raise OSError


def test_a_command_goes_on_without_its_reader(small, tmp_path, monkeypatch, capsys):
    flags = [*small, "--device", "cpu", "--max-new-tokens", "5"]
    for name, stream in (("stdout", Gone(BrokenPipeError())), ("stderr", Gone(OSError(28, "No space left on device")))):
        with monkeypatch.context() as patched:
            patched.setattr(sys, name, stream)
            assert main(["eval", *flags, "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name / "result.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Gone(OSError(28, "No space left on device")))
        assert main(["eval", *flags, "--out", str(tmp_path / "full")]) == 2
    assert "standard output cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "2>&1 >&-"])
def test_a_stream_that_is_closed_or_full_does_no_harm(redirected, tmp_path):
    slow = {"2>&1 >&-": ("prune --dry-run", 0), "2>&-": ("plan", 2)}.get(redirected)  # those two import torch
    for command, status in (("score", 2), ("--version", 0), *([slow] if slow else [])):
        line = f"{sys.executable} -m o1core {command} {redirected}"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == status and "Traceback" not in done.stdout + done.stderr


def test_a_rank_that_is_no_number_is_told(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(SystemExit):
        main(["prune", "--lamm", "3"])
    assert capsys.readouterr().err.count("unknown: --lamm 3") == 1


@pytest.fixture(scope="module")
def evaluated(small, tmp_path_factory):
    """An evaluation's folder, and what the command printed."""
    out = tmp_path_factory.mktemp("evaluated") / "eval"
    flags = [*small, "--device", "cpu", "--max-new-tokens", "12", "--eval-temperature", "1", "--eval-samples", "3"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["eval", *flags, "--out", str(out)]) == 0
    return out, json.loads(printed.getvalue())


def test_an_evaluation_alone_says_what_was_measured(evaluated):
    out, printed = evaluated
    assert printed == read_record(out / "result.json")
    assert (printed["problems"], printed["samples"]) == (2, 3)
    assert (
        0 < printed["mean_tokens"] <= 12 and printed["accuracy_low"] <= printed["accuracy"] <= printed["accuracy_high"]
    )


def test_show_an_evaluation(evaluated, capsys):
    assert main(["show", str(evaluated[0]), "--samples", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("=== problem") == 2
    assert "1 + 1 = ?" in out
    lengths = [
        int(line.split(", ")[1].split()[0]) for line in out.splitlines() if line.startswith(("[RIGHT", "[WRONG"))
    ]
    assert len(lengths) == 4
    assert lengths[0] <= lengths[1] and lengths[2] <= lengths[3]
    assert main(["show", str(evaluated[0]), "--problems", "1"]) == 0
    assert capsys.readouterr().out.count("=== problem") == 1


def test_greedy_by_default(small, tmp_path):
    flags = [*small, "--device", "cpu", "--max-new-tokens", "5"]
    results = []
    for seed in ("0", "1"):
        assert main(["eval", *flags, "--seed", seed, "--out", str(tmp_path / seed)]) == 0
        (shard,) = (tmp_path / seed / "rollouts").glob("*.jsonl")
        results.append(shard.read_text())
    assert results[0] == results[1]


def test_model_text_cannot_drive_the_terminal(evaluated, tmp_path, capsys):
    """Shown text keeps no escape sequence; the tokenizer of the fixture has a token for every byte."""
    out = shutil.copytree(evaluated[0], tmp_path / "eval")
    escape = torch.tensor([27, 7], dtype=torch.int32)
    shard = Group("evil", escape, (Sample(escape, torch.zeros(2), "stop", "\x1b[2J", False),))
    write_shard(out / "rollouts", [shard])
    assert main(["show", str(out), "--problem", "evil"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown
    assert clean("a\x1b[31mb\r\n\u202ec") == "a\ufffd[31mb\ufffd\n\ufffdc"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["show", "nowhere"], "nowhere: holds no rollouts"),
        (["show", "nowhere", "--problems", "0"], "--problems: 0 is below 1"),
        (["prune", "--device", "cuda"], "--device cuda"),
        (["prune", "--model", "somewhere"], "--data"),
        (["sample", "--picked", "99"], "--picked: 99 of 16"),
        (
            ["eval", "--model", "run", "--data", "x"],
            "--model: run is the folder of a run; its checkpoint is run/pruned",
        ),
        (["prune", "--model", "run/base", "--data", "x"], "run/base is the folder of a run; which has not come to a"),
        (["report", "run/pruned"], "run/pruned: is a checkpoint and no run; its run is run"),
        (
            ["show", "checkpoint"],
            "checkpoint: is a checkpoint and no run; name the folder that a run was given as --out",
        ),
        (["prune", "--dry-run", "--data", "missing.json"], "missing.json: no such file"),
        (["prune", "--dry-run", "--model", "nowhere", "--data", "x"], "nowhere/config.json: no such file; give a"),
        (["study", "lambda", "--dry-run", "--model", "nowhere"], "--data: a problem file is needed with --model"),
        (["eval", "--data", "missing.json"], "missing.json"),
        (["prune", "--slots", "0", "--problems", "2", "--eval-problems", "2"], "slots: 0"),
        (
            ["prune", "--model", "Qwen/Qwen2.5-7B", "--data", "x"],
            "where there is a network: hf download Qwen/Qwen2.5-7B",
        ),
        (["plan", "--model", "somewhere"], "somewhere/config.json: no such file; give a"),
        (["sample", "--out", "file"], "--out: file is a file"),
        (["eval", "--out", "file/below"], "--out: file is a file"),
        (["prune", "run.yml"], "run.yml: no such file; what stands after the command is a run file"),
        (["prune", "--lora-rank", "4", "--train-last-layers", "99"], "--train-last-layers: 99 of the model's 5 layers"),
        (["train", "--lora-rank", "999"], "--lora-rank: 999 is above the model's hidden size"),
        (["train", "--lora-alpha", "64"], "--lora-alpha: scales adapters, and there are none; add --lora-rank"),
        (["sample", "--tensor-parallel", "2"], "--tensor-parallel: 2 does not divide the 1 processes"),
        (["study", "lambda", "--values", "a,b"], "--values: a,b"),
        (["prune", "--reward", "kimmi"], "did you mean kimi?"),
        (["prune", "--recipe", "papr"], "did you mean paper?"),
        (["study", "compare", "--methods", "dpoo"], "did you mean dpo?"),
        ([], "required: COMMAND; see o1core --help"),
        (["prunes"], "invalid choice: 'prunes'"),
        (["prnue"], "did you mean prune?; see o1core --help"),
        (["prune", "--fast"], "unknown: --fast; see o1core prune --help"),
        (["prune", "--lamm=3"], "unknown: --lamm=3; did you mean --lam?; see o1core prune --help"),
        (["study", "lambda", "--vlaues", "1"], "did you mean --values?; see o1core study lambda --help"),
        (["prune", "--method", "o1-prunr"], "did you mean o1-pruner?"),
        (["prune", "--template", "thinking"], "--template: thinking is not KEY=VALUE"),
        (["prune", "--lr", "quick"], "--lr: invalid float value: 'quick'; see o1core prune --help"),
        (["prune", "--method", "magic"], "--method: invalid choice: 'magic'"),
        (["sample", "--samples", "2.5"], "--samples: invalid int value: '2.5'"),
        (["train", "--tensor-parallel", "0"], "--tensor-parallel: 0 is not a whole number from 1"),
        (["eval", "--timeout", "-5"], "--timeout: -5 is not a number of seconds"),
        (["eval", "--timeout", "nan"], "--timeout: nan is not a number of seconds"),
        (["study"], "required: STUDY; see o1core study --help"),
        (["study", "lambda", "--seeds", "x"], "see o1core study lambda --help"),
        (["plan"], "required: --model; see o1core plan --help"),
        (["report"], "required: RUN"),
        (["dial", "--scales", "0.5", "run"], "the run's folder must stand first, as in: o1core dial RUN --scales"),
        (["show", "a", "b"], "unknown: b; see o1core show --help"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(flags, message, tmp_path, monkeypatch, capsys):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    for folder in ("run/pruned", "run/base", "checkpoint"):
        Path(folder).mkdir(parents=True)
    for file in (
        "file",
        "run/settings.json",
        "run/base/settings.json",
        "run/pruned/config.json",
        "checkpoint/config.json",
    ):
        Path(file).touch()
    assert status_of(flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("o1core: error: ") and error.count("\n") == 1


def test_log_lines_are_clean():
    record = logging.LogRecord("o1core", logging.INFO, "", 0, "problem %s", ("\x1b]0;title\x07",), None)
    assert CleanFormatter("%(message)s").format(record) == "problem \ufffd]0;title\ufffd"


def test_a_driver_that_is_too_old_is_named_in_one_line(monkeypatch, caplog):
    """Where a GPU is asked for, that ends the command; else the CPU computes."""

    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver."
        )

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^--device cuda: The NVIDIA driver .* too old \(found version 11040\); use"):
        open_device(argparse.Namespace(device="cuda"))
    assert open_device(argparse.Namespace(device=None)).type == "cpu"
    (line,) = caplog.messages
    assert "too old" in line and line.endswith("; the CPU computes")


def test_memory_of_a_gpu_is_taken_in_segments_that_grow(monkeypatch):
    """Unless the environment says otherwise. torch reads it when CUDA starts."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")  # so that it is taken back after the test
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
