"""Whole runs on a small random checkpoint: killed and resumed, skipped where done, refused where they do not fit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import o1core
from o1core.cli import main
from o1core.problems import drawn_budget
from o1core.recipe import Recipe
from o1core.rollout import read_groups
from o1core.run_folder import RunFolder
from o1core.runs import open_job
from o1core.training import between_percentiles

SETTINGS = [
    "--samples",
    "4",
    "--picked",
    "3",
    "--problems",
    "10",
    "--rounds",
    "2",
    "--max-new-tokens",
    "24",
    "--temperature",
    "1",
    "--top-p",
    "1",
    "--ratio",
    "token",
    "--lr",
    "1e-3",
    "--batch",
    "4",
    "--save-every",
    "2",
    "--eval-problems",
    "3",
    "--eval-temperature",
    "1",
    "--slots",
    "8",
    "--device",
    "cpu",
]


@pytest.fixture
def problems(tmp_path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{a} + 5 = ?", "answer": str(a + 5)}) + "\n" for a in range(14)))
    return path


@pytest.fixture
def flags(checkpoint, problems):
    return ["--model", str(checkpoint), "--data", str(problems), *SETTINGS]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "pruned" / "model.safetensors")


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def run_until(command: list[str], condition, seconds: float = 60) -> bool:
    """Start o1core in a process of its own and kill -9 it once condition() holds. Whether it was still running then."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "o1core", *command], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline, "never came to the point where it was to be killed"
        time.sleep(0.002)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


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

        deaths += run_until([*command, *(["--resume"] if steps > 3 else [])], reached)
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
    monkeypatch.setattr("o1core.rollout.collect.SHARD_COMPLETIONS", 8)
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
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["prune", *flags, "--out", str(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (run / "result.json").unlink()
    shutil_free = {
        path: at for path, at in before.items() if path.name not in ("result.json", "plot.png", "run", "lock")
    }
    assert main(["prune", *flags, "--out", str(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in shutil_free} == shutil_free
    assert main(["show", str(run), "--samples", "2"]) == 0
    shown = capsys.readouterr().out
    assert "--- base:" in shown and "--- after:" in shown and "tokens, answer" in shown


def test_the_pruned_checkpoint_loads_in_transformers_with_the_same_logits(flags, tmp_path):
    from transformers import AutoModelForCausalLM

    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 0
    ids = torch.randint(259, (2, 17), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "pruned", dtype=torch.float32)
    ours, _ = o1core.load(tmp_path / "run" / "pruned", torch.float32)
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


def test_a_folder_with_something_else_in_it_is_left_alone(flags, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("It was")
    assert main(["prune", *flags, "--out", str(tmp_path / "thesis")]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_percentiles_keep_the_same_problems_in_every_round(flags, tmp_path):
    run = tmp_path / "run"
    assert main(["train", *flags, "--percentiles", "40-80", "--out", str(run)]) == 0
    first, second = (read_groups(run / f"round-0{i}" / "rollouts") for i in (0, 1))
    assert (len(first), len(second)) == (10, 4)
    # By accuracy and length: of problems that are equal in both, the order of the data decides, which files do not keep.
    hardness = {g.problem: (sum(s.correct for s in g.samples), sum(s.length for s in g.samples)) for g in first}
    kept = sorted(hardness[g.problem] for g in second)
    assert kept == sorted(hardness[g.problem] for g in between_percentiles(first, "40-80"))
    assert log(run)[0]["units"] <= sum(s.length for g in first for s in g.samples) / 2


def test_a_method_that_does_not_train_is_evaluated_with_its_instruction(flags, checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *flags, "--method", "fast-prompt", "--out", str(run)]) == 2
    assert "there is nothing to train" in capsys.readouterr().err
    assert main(["prune", *flags, "--method", "fast-prompt", "--out", str(run)]) == 0
    assert json.loads((run / "result.json").read_text())["checkpoint"] == str(checkpoint)
    asked = [json.loads((run / side / "problems" / "problems.json").read_text()) for side in ("base", "after")]
    assert [p["question"] for p in asked[0]] == [p["question"].partition("\nBe confident")[0] for p in asked[1]]
    prompts = [len(read_groups(run / side / "problems" / "rollouts")[0].prompt) for side in ("base", "after")]
    assert prompts[0] < prompts[1]


def test_budgets_stand_in_the_prompts_that_are_sampled_trained_and_evaluated(flags, checkpoint, tmp_path):
    run = tmp_path / "run"
    budgets = ["--budget-low", "5", "--budget-high", "20", "--eval-budget", "9"]
    assert main(["prune", *flags, "--method", "l1-max", *budgets, "--out", str(run)]) == 0
    tokenizer = o1core.load(checkpoint)[1]
    for group in read_groups(run / "round-01" / "rollouts"):
        text = tokenizer.decode(group.prompt.tolist())
        assert f"Think for maximum {drawn_budget(group.problem, 5, 20, 0)} tokens." in text
    after = [tokenizer.decode(g.prompt.tolist()) for g in read_groups(run / "after" / "problems" / "rollouts")]
    assert all("Think for maximum 9 tokens." in text for text in after)
    assert "Think" not in tokenizer.decode(read_groups(run / "base" / "problems" / "rollouts")[0].prompt.tolist())


def test_levels_and_subjects_are_chosen_before_the_problems_are_counted(flags, tmp_path, capsys):
    rows = [
        {"problem": f"{a} + 5 = ?", "answer": "1", "level": str(a % 3), "subject": "Sums" if a < 9 else "Other"}
        for a in range(15)
    ]
    data = tmp_path / "levelled.json"
    data.write_text(json.dumps(rows))
    command = ["sample", *flags, "--data", str(data), "--levels", "1-2", "--out"]
    assert main([*command, str(tmp_path / "a"), "--problems", "none"]) == 0
    assert len(read_groups(tmp_path / "a" / "round-00" / "rollouts")) == 8  # ten of them, less the two held out
    assert main([*command, str(tmp_path / "b"), "--subjects", "sums", "--limit", "2"]) == 0
    assert len(read_groups(tmp_path / "b" / "round-00" / "rollouts")) == 2
    assert main([*command, str(tmp_path / "c"), "--subjects", "Poetry"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "Poetry" in error and "Sums" in error


def test_generated_problems_of_a_level_are_as_many_as_asked_for():
    job = open_job(None, None, None, "auto", Recipe.of(problems=40, eval_problems=9, levels="4-5", max_new_tokens=4000))
    assert [len(problems) for problems in (job.train, job.tests["arithmetic"])] == [40, 9]
    assert {p.level for p in [*job.train, *job.tests["arithmetic"]]} == {"4", "5"}


def test_the_tests_of_a_comparison_are_asked_as_the_training_problems_are():
    recipe = Recipe.of(problems=5, eval_problems=7, prompt="boxed", system="Be nice.", max_new_tokens=4000)
    job = open_job(None, None, None, "auto", recipe, by_level=True)
    assert {name: {p.level for p in test} for name, test in job.tests.items()} == {
        "arithmetic-2": {"2"},
        "arithmetic-3": {"3"},
        "arithmetic-4-5": {"4", "5"},
    }
    for p in [*job.train, *(p for test in job.tests.values() for p in test)]:
        assert p.question.endswith("\\boxed{}.") and p.system == "Be nice."
    assert [len(test) for test in job.tests.values()] == [7, 7, 7]


def test_a_folder_whose_first_write_was_killed_can_be_claimed(flags, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".settings.json.partial").write_text("{")
    assert main(["sample", *flags, "--out", str(run)]) == 0


def test_show_tells_the_tests_of_a_run_apart(flags, checkpoint, tmp_path, capsys):
    files = []
    for name, number in (("one", 1), ("two", 2)):
        files.append(tmp_path / f"{name}.json")
        rows = [{"id": "1", "problem": f"{number} + 50 = ?", "answer": "3"}]
        files[-1].write_text(json.dumps(rows))
    run = tmp_path / "run"
    tests = ["--eval-data", *map(str, files)]
    assert main(["prune", *flags, *tests, "--method", "fast-prompt", "--out", str(run)]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "one base" in table and "two pruned" in table and "average base" in table
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "=== problem one/1" in shown and "=== problem two/1" in shown and "2 + 50 = ?" in shown


def test_what_is_evaluated_is_not_trained_on(flags, problems, tmp_path, caplog):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(problems.read_text().splitlines(keepends=True)[:3]))
    assert main(["sample", *flags, "--problems", "none", "--eval-data", str(few), "--out", str(tmp_path / "run")]) == 0
    assert "3 test problems are in the training data too" in caplog.text
    assert len(read_groups(tmp_path / "run" / "round-00" / "rollouts")) == 11


def test_no_problem_left_to_train_on_is_refused(flags, problems, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["prune", *flags, "--eval-problems", "none", "--eval-data", str(problems), "--out", str(run)]) == 2
    assert "nothing is left to train on" in capsys.readouterr().err


def test_a_disk_that_takes_no_more_is_one_line_and_loses_nothing(flags, tmp_path):
    """A limit on the size of files fails the same writes as a full disk does."""
    run = tmp_path / "run"
    limit = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from o1core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["train", *flags, "--out", str(run)]
    done = subprocess.run([sys.executable, "-c", limit, *command], capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
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
