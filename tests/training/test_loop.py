"""Whole runs on a small random checkpoint: killed and resumed, skipped where done, refused where they do not fit."""

import json
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import o1core.model
from o1core.cli import main
from o1core.rollout import read_groups
from o1core.run_folder import RunFolder
from o1core.runs import peak_memory
from o1core.training import read_log
from tests.campaigns.kill import finish, kill_once, start_run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "pruned" / "model.safetensors")


def log(run: Path) -> list[dict]:
    return read_log(run / "log.jsonl")


@pytest.mark.parametrize("method", [[], ["--lora-rank", "4", "--optimiser", "adam-mini"]], ids=["full", "adapters"])
def test_a_run_killed_while_it_trains_ends_with_the_same_bits(flags, tmp_path, method):
    """The paper's loop over two rounds; kill -9 in the middle of each, between two states."""
    flags = [*flags, *method]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ["train", *flags, "--out", str(killed)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are killed
    assert main(["train", *flags, "--out", str(whole)]) == 0
    deaths = 0
    for steps in (3, 11):

        def reached(steps=steps):
            return (killed / "log.jsonl").exists() and len((killed / "log.jsonl").read_text().splitlines()) >= steps

        resume = ["--resume"] if steps > 3 else []
        deaths += kill_once(start_run([*command, *resume], killed, lambda: None), reached)
    assert deaths == 2, "the run ended before it could be killed"
    assert not (killed / "pruned").exists()
    assert main([*command, "--resume"]) == 0
    torch.set_num_threads(threads)
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    timeless = [
        {k: v for k, v in line.items() if k not in ("tokens_per_second", "peak_memory_mib")} for line in log(whole)
    ]
    again = [
        {k: v for k, v in line.items() if k not in ("tokens_per_second", "peak_memory_mib")} for line in log(killed)
    ]
    assert timeless == again
    assert [line["round"] for line in timeless] == [0] * 8 + [1] * 8


def test_sampling_goes_on_where_it_was_killed(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("o1core.policy.SHARD_COMPLETIONS", 8)
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert main(["sample", *flags, "--out", str(whole)]) == 0
    assert main(["sample", *flags, "--out", str(again)]) == 0
    rollouts = again / "round-00" / "rollouts"
    shards = sorted(rollouts.glob("shard-*.jsonl"))
    assert len(shards) == 5
    kept = {path: path.stat().st_mtime_ns for path in shards[:3]}
    for path in shards[3:]:
        path.unlink()  # what a kill between the two files of a shard leaves
    assert main(["sample", *flags, "--out", str(again)]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    def content(run):
        return {
            g.problem: [(s.ids.tolist(), s.logprobs.tolist()) for s in g.samples]
            for g in read_groups(run / "round-00" / "rollouts")
        }

    assert content(whole) == content(again)


def test_a_log_line_says_what_the_issue_of_a_run_is(flags, tmp_path):
    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 0
    line = log(tmp_path / "run")[-1]
    assert {
        "step",
        "loss",
        "reward",
        "ratio_mean",
        "ratio_max",
        "clip_fraction",
        "approx_kl",
        "grad_norm",
        "lr",
        "mean_length",
        "truncated",
        "tokens_per_second",
        "peak_memory_mib",
    } <= line.keys()
    assert line["reference_max"] < 1e-3
    first = log(tmp_path / "run")[0]
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-5), "the first step's policy is the reference"


def test_prune_skips_what_is_done(flags, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["prune", *flags, "--out", str(run)]) == 0
    out = capsys.readouterr().out
    assert (
        "Mean tokens" in out
        and "AES" in out
        and str(run / "pruned") in out
        and (run / "plot.png").stat().st_size > 10_000
    )
    result = json.loads((run / "result.json").read_text())
    assert {"base", "pruned", "length_cut", "accuracy_gain", "aes", "seconds"} <= result.keys()
    assert 0 <= result["base"]["accuracy"] <= 1 and result["base"]["mean_tokens"] <= 24
    check_text(run, result, capsys)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["prune", *flags, "--out", str(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (run / "result.json").unlink()
    shutil_free = {
        path: at
        for path, at in before.items()
        if path.name not in ("result.json", "seconds.json", "plot.png", "run", "lock")
    }
    assert main(["prune", *flags, "--out", str(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in shutil_free} == shutil_free
    assert main(["show", str(run), "--samples", "2"]) == 0
    shown = capsys.readouterr().out
    assert "--- base:" in shown and "--- after:" in shown and "tokens, answer" in shown


def check_text(run: Path, result: dict, capsys) -> None:
    """Every phase leaves its completions as text, and `o1core score` comes to the same figures from it."""
    rounds = [(run / f"round-0{i}", 10, 4) for i in range(2)]
    for folder, problems, samples in (*rounds, *((run / side / "problems", 2, 1) for side in ("base", "after"))):
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        groups = {group.problem: group for group in read_groups(folder / "rollouts")}
        assert len(lines) == problems * samples
        for line in lines:
            s = groups[line["problem"]].samples[line["sample"]]
            assert (line["tokens"], line["correct"], line["answer"]) == (s.length, s.correct, s.answer)
            assert line["question"].endswith("+ 5 = ?") and line["question"] in line["prompt"]
            assert (line["reward"] is None) == (samples == 1)
    before, after = (str(run / side / "problems" / "samples.jsonl") for side in ("base", "after"))
    assert main(["score", after, "--base", before, "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    for side, score in zip((result["base"], result["pruned"]), scored):
        assert (score["accuracy"]["mean"], score["mean_tokens"]) == (side["accuracy"], side["mean_tokens"])
        assert (score["truncated"], score["disagree"]) == (side["truncated"], 0)
    assert scored[1]["against"]["tokens"] == result["paired"]["tokens"]


def test_the_pruned_checkpoint_loads_in_transformers_with_the_same_logits(flags, tmp_path):
    from transformers import AutoModelForCausalLM

    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 0
    ids = torch.randint(259, (2, 17), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "pruned", dtype=torch.float32)
    ours, _ = o1core.model.load(tmp_path / "run" / "pruned", torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ids), theirs(ids).logits, rtol=0, atol=1e-4)


def test_learning_rate_zero_leaves_every_weight_as_it_was(flags, checkpoint, tmp_path):
    assert main(["train", *flags, "--lr", "0", "--out", str(tmp_path / "run")]) == 0
    before, after = load_file(checkpoint / "model.safetensors"), weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(line["ratio_max"] == pytest.approx(1, abs=1e-4) for line in log(tmp_path / "run"))


def test_a_loss_that_is_not_finite_keeps_the_newest_state(flags, checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *flags, "--lr", "1e30", "--grad-clip", "1e30", "--out", str(run)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite, in the batch of problems" in error
    state = load_file(RunFolder(run).states()[-1] / "training.safetensors")
    assert all(t.isfinite().all() for t in state.values())
    assert not (run / "pruned").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--lr", "2e-3"], "holds a run with other settings (lr: 0.001 there, 0.002 requested)"),
        (["--samples", "1"], "--samples: 1 is below 2"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(flags, tmp_path, capsys, change, message):
    run = tmp_path / "run"
    assert main(["sample", *flags, "--out", str(run)]) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert main(["prune", *flags, *change, "--out", str(run)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_disk_that_takes_no_more_is_one_line_and_loses_nothing(flags, tmp_path):
    """A limit on the size of files fails the same writes as a full disk does."""
    run = tmp_path / "run"
    command = ["train", *flags, "--out", str(run)]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    status, output = finish(start_run(command, run, limit))
    assert status == 2
    last = output.splitlines()[-1]
    assert last.startswith("o1core: error:") and "too large" in last
    assert RunFolder(run).states() == []
    assert main([*command, "--resume"]) == 0


def test_train_does_not_go_on_unasked(flags, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *flags, "--out", str(run)]) == 0
    for path in (run / "pruned").iterdir():
        path.unlink()
    (run / "pruned").rmdir()
    assert main(["train", *flags, "--out", str(run)]) == 2
    assert "--resume" in capsys.readouterr().err


def test_the_peak_in_the_log_is_the_process_own(monkeypatch):
    """getrusage's maximum outlives exec: a small process started by a large one has the large one's."""
    inherited = resource.struct_rusage([0.0, 0.0, 1 << 40, *[0] * 13])
    monkeypatch.setattr("resource.getrusage", lambda who: inherited)
    if sys.platform == "linux":
        assert 10 < peak_memory(torch.device("cpu")) < 1 << 24
