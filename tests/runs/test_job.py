"""What a run is about: which problems are selected, how they are asked, what is evaluated, and whose folder it is."""

import json
import os
from pathlib import Path

import pytest

import o1core.model
from o1core.cli import main
from o1core.errors import UserError
from o1core.problems import drawn_budget
from o1core.recipe import Recipe
from o1core.rollout import read_groups
from o1core.run_folder import RunFolder
from o1core.runs import open_job
from o1core.runs.loop import is_complete
from o1core.training import Rollouts, read_log
from o1core.types import Problem


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
    assert kept == sorted(hardness[g.problem] for g in Rollouts(first, 99).between_percentiles("40-80").groups)
    assert read_log(run / "log.jsonl")[0]["units"] <= sum(s.length for g in first for s in g.samples) / 2


@pytest.mark.parametrize(
    "count, tests, message",
    [
        (1, None, "train.jsonl: one problem cannot be both trained and evaluated on; add more, or --eval-data"),
        (3, ["train.jsonl"], "train.jsonl: every problem in it is a test problem too; nothing is left to train on"),
        (3, ["average.jsonl"], "--eval-data: average.jsonl: a test cannot be called average; rename the file"),
        (3, ["a/test.jsonl", "b/test.jsonl"], "--eval-data: two files have the same name (test); rename one of them"),
    ],
    ids=["one problem", "all in the test", "average", "one name"],
)
def test_problems_that_cannot_serve_are_refused(checkpoint, tmp_path, monkeypatch, count, tests, message):
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps({"problem": f"What is {n} + 5?", "answer": str(n + 5)}) + "\n" for n in range(count))
    for name in ("train.jsonl", "average.jsonl", "a/test.jsonl", "b/test.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(rows)
    with pytest.raises(UserError) as error:
        open_job(checkpoint, "train.jsonl", tests, "auto", Recipe.of())
    assert str(error.value) == message


def test_one_problem_cannot_be_trained_on_and_evaluated_between_rounds(checkpoint, tmp_path):
    for name, n in (("train", 1), ("test", 2)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"problem": f"What is {n} + 5?", "answer": str(n + 5)}))
    data, test = (str(tmp_path / f"{name}.jsonl") for name in ("train", "test"))
    with pytest.raises(
        UserError, match="--eval-every round: holds out some of the training problems, and there is one"
    ):
        open_job(checkpoint, data, [test], "auto", Recipe.of(eval_every="round"))


def test_settings_keep_the_command_that_began_the_run(tmp_path):
    """A dial on another number of threads claims the folder too."""
    for threads, rounds, command in ((1, 1, "o1core prune"), (2, 1, "o1core dial"), (2, 2, "o1core prune --rounds 2")):
        with RunFolder(tmp_path / "run") as run:
            run.claim(
                {"threads": threads, "rounds": rounds}, {"threads"}, {}, {"command": command, "checkpoint": command}
            )
        held = run.read_settings()
        assert (held["threads"], held["checkpoint"]) == (threads, command)
        assert held["command"] == ("o1core prune" if rounds == 1 else command)


def test_percentiles_need_all_rollouts_of_the_first_round(tmp_path):
    """In a later round nothing can bring them back: the policy has moved."""
    run, recipe = RunFolder(tmp_path / "run"), Recipe.of(percentiles="30-70")
    problems = [Problem(str(i), f"What is {i} + 5?", str(i + 5)) for i in range(3)]
    assert not is_complete(run, problems, recipe, 0)
    with pytest.raises(
        UserError, match=r"round-00/rollouts: holds 0 of 3 problems, and --percentiles needs all; restore"
    ):
        is_complete(run, problems, recipe, 1)


def test_further_rounds_need_them_too(flags, tmp_path, capsys):
    run = tmp_path / "run"
    command = [*flags, "--percentiles", "0-60", "--out", str(run)]
    assert main(["prune", *command, "--rounds", "1"]) == 0
    for shard in (run / "round-00" / "rollouts").iterdir():
        shard.unlink()
    assert main(["prune", *command, "--rounds", "2"]) == 2
    assert "--percentiles needs all; restore its files" in capsys.readouterr().err.splitlines()[-1]


def test_a_method_that_does_not_train_is_evaluated_with_its_instruction(flags, checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *flags, "--method", "fast-prompt", "--out", str(run)]) == 2
    assert "there is nothing to train" in capsys.readouterr().err
    assert main(["prune", *flags, "--method", "fast-prompt", "--out", str(run)]) == 0
    assert json.loads((run / "result.json").read_text())["checkpoint"] == str(checkpoint)
    asked = [
        json.loads((run / side / "problems" / "problems.json").read_text())["problems"] for side in ("base", "after")
    ]
    assert [p["question"] for p in asked[0]] == [p["question"].partition("\nBe confident")[0] for p in asked[1]]
    prompts = [len(read_groups(run / side / "problems" / "rollouts")[0].prompt) for side in ("base", "after")]
    assert prompts[0] < prompts[1]


def test_budgets_stand_in_the_prompts_that_are_sampled_trained_and_evaluated(flags, checkpoint, tmp_path):
    run = tmp_path / "run"
    budgets = ["--budget-low", "5", "--budget-high", "20", "--eval-budget", "9"]
    assert main(["prune", *flags, "--method", "l1-max", *budgets, "--out", str(run)]) == 0
    tokenizer = o1core.model.load(checkpoint)[1]
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


def test_a_changed_byte_of_the_checkpoint_or_letter_of_the_data_is_named(flags, checkpoint, problems, tmp_path, capsys):
    """Whatever decides a result is in the fingerprint, bytes in the middle of the weights too."""
    command = ["sample", *flags, "--out", str(tmp_path / "run")]
    assert main(command) == 0
    weights = checkpoint / "model.safetensors"
    changes = {
        weights: lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :],
        checkpoint / "tokenizer.json": lambda raw: raw + b" ",
        checkpoint / "tokenizer_config.json": lambda raw: raw.replace(b"assistant", b"Assistant"),
        checkpoint / "chat_template.jinja": lambda raw: b"{{ messages[-1].content }}",
        checkpoint / "generation_config.json": lambda raw: raw + b"\n",
        problems: lambda raw: raw.replace(b"3 + 5 =", b"3  + 5 ="),
    }
    for path, change in changes.items():
        before, times = path.read_bytes() if path.exists() else None, path.stat() if path.exists() else None
        path.write_bytes(change(before or b""))
        if times is not None:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        capsys.readouterr()
        assert main(command) == 2
        what = "train_print" if path == problems else f"model_print: {path.name}"
        assert f"holds a run with other settings ({what}: " in capsys.readouterr().err
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    assert main(command) == 0
