"""The studies: their arithmetic on numbers done by hand, and whole ones on a small random checkpoint."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.methods import study_of
from o1core.cli import main
from o1core.evaluation import DisharmonyResult, Evaluation, compare, difficulties, read_result
from o1core.model import Tokenizer, read_config
from o1core.records import to_json
from o1core.report import disharmony_tables, plot_disharmony, study_tables, to_markdown
from o1core.runs import EMBEDDED
from o1core.studies import StudyFolder
from o1core.studies.compare import tokens_needed
from o1core.studies.disharmony import accuracy_by_interval
from o1core.studies.study import comma_list, figures_of
from o1core.types import Group, Problem, Sample

SETTINGS = [
    "--samples",
    "4",
    "--picked",
    "4",
    "--problems",
    "8",
    "--rounds",
    "1",
    "--max-new-tokens",
    "16",
    "--temperature",
    "1",
    "--top-p",
    "1",
    "--lr",
    "1e-3",
    "--batch",
    "8",
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
def files(tmp_path) -> dict[str, Path]:
    """A training file and two tests, with levels."""
    made = {}
    for name, start, count in (("train", 0, 12), ("easy", 40, 4), ("hard", 60, 4)):
        rows = [
            {"problem": f"{a} + 5 = ?", "answer": str(a + 5), "level": str(1 + a % 2)}
            for a in range(start, start + count)
        ]
        made[name] = tmp_path / f"{name}.jsonl"
        made[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture
def flags(checkpoint, files):
    tests = ["--eval-data", str(files["easy"]), str(files["hard"])]
    return ["--model", str(checkpoint), "--data", str(files["train"]), *SETTINGS], tests


def test_disharmony_cuts_each_problem_by_length():
    """Two problems, six samples, three intervals. By hand: sorted by length the verdicts are 11 10 00 and 10 11 11."""
    lengths = torch.tensor([[60, 10, 50, 20, 40, 30], [1, 2, 3, 4, 5, 6]])
    correct = torch.tensor([[False, True, False, True, False, True], [True, False, True, True, True, True]])
    (row,) = accuracy_by_interval(lengths, correct, ["x", "x"], 3)
    assert [part.accuracy for part in row.intervals] == [0.75, 0.75, 0.5]
    assert [part.mean_tokens for part in row.intervals] == [(15 + 1.5) / 2, (35 + 3.5) / 2, (55 + 5.5) / 2]
    # The problems' means in the last interval are 0 and 1, so a problem's samples agree entirely: Wilson's interval of 1
    # in 2, with Student's t of one degree of freedom.
    t = 12.706204736432095
    half = t / (1 + t**2 / 2) * math.sqrt(0.25 / 2 + t**2 / 16)
    ends = (row.intervals[2].accuracy_low, row.intervals[2].accuracy_high)
    assert ends == pytest.approx((0.5 - half, 0.5 + half))
    # Longest less shortest: 0 - 1 and 1 - 1/2.
    half = t * math.sqrt(((-1 + 0.25) ** 2 + (0.5 + 0.25) ** 2) / 1) / math.sqrt(2)
    assert row.gap.mean == pytest.approx(-0.25)
    assert row.gap.low == pytest.approx(max(-1, -0.25 - half))
    assert row.gap.high == pytest.approx(min(1, -0.25 + half))


def disharmony_result(intervals: int, rows: list) -> DisharmonyResult:
    return DisharmonyResult("disharmony", 20, 4, intervals, rows)


def test_disharmony_has_a_row_a_difficulty_and_loses_no_sample():
    lengths, correct = (
        torch.arange(1, 31).view(3, 10),
        torch.rand(3, 10, generator=torch.Generator().manual_seed(0)) < 0.5,
    )
    rows = accuracy_by_interval(lengths, correct, ["b", "a", "b"], 4)
    assert [(row.label, row.problems) for row in rows] == [("all", 3), ("a", 1), ("b", 2)]
    sizes = [3, 3, 2, 2]
    total = sum(n * part.accuracy for n, part in zip(sizes, rows[1].intervals))
    assert total == pytest.approx(correct[1].sum().item())
    assert "| b | 2 |" in to_markdown(*disharmony_tables(disharmony_result(4, rows)))


def test_a_level_from_a_strangers_file_is_text(tmp_path):
    rows = accuracy_by_interval(torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool), ["a|b\x1b[31m", "$\\foo$"], 2)
    result = disharmony_result(2, rows)
    text = to_markdown(*disharmony_tables(result))
    assert "\x1b" not in text and "a\\|b" in text
    plot_disharmony(result, tmp_path / "plot.png")


def test_more_difficulties_than_there_are_markers_are_drawn(tmp_path):
    rows = accuracy_by_interval(torch.ones(20, 4), torch.ones(20, 4, dtype=torch.bool), [str(i) for i in range(20)], 2)
    plot_disharmony(disharmony_result(2, rows), tmp_path / "plot.png")


def test_difficulty_is_the_level_or_the_third_by_accuracy():
    correct = torch.tensor([[1, 1], [0, 0], [1, 0]])
    levelled = [Problem(str(i), "q", "a", level=str(i)) for i in range(3)]
    assert difficulties(levelled, correct) == ["level 0", "level 1", "level 2"]
    bare = [*levelled[:2], Problem("2", "q", "a")]
    assert difficulties(bare, correct) == ["easiest third", "hardest third", "middle third"]


def evaluation(accuracy: float, tokens: float) -> Evaluation:
    return Evaluation(
        accuracy=accuracy,
        accuracy_low=0,
        accuracy_high=1,
        mean_tokens=tokens,
        median_tokens=tokens,
        truncated=0.0,
        tokens_per_second=1.0,
        problems=10,
        samples=1,
    )


def test_the_average_row_is_the_papers():
    """Table 2 of arXiv 2501.12570, Marco-o1-7B and its O1-Pruner row."""
    base = {"math": evaluation(0.738, 1156), "gsm8k": evaluation(0.892, 530), "gaokao": evaluation(0.571, 1112)}
    pruned = {"math": evaluation(0.775, 657), "gsm8k": evaluation(0.914, 343), "gaokao": evaluation(0.616, 664)}
    result = compare(base, pruned)
    assert [round(result.tests[name].aes, 2) for name in base] == [0.58, 0.43, 0.64]
    assert round(result.average.aes, 2) == 0.55
    assert round(100 * result.average.length_cut, 1) == 40.5
    assert round(100 * result.average.base.accuracy, 1) == 73.4 and round(result.average.base.mean_tokens, 1) == 932.7
    assert "accuracy_low" not in to_json(result)["pruned"], "an average over tests has no interval of its own"


def test_the_average_of_one_test_is_that_test():
    base, pruned = {"t": evaluation(0.5, 100)}, {"t": evaluation(0.6, 50)}
    result = compare(base, pruned)
    assert result.average.pruned == pruned["t"] and result.average.aes == pytest.approx(0.5 + 3 * 0.2)
    assert compare({"t": evaluation(0.0, 10)}, pruned).average.aes is None


def test_figures_of_several_seeds_are_the_mean_and_its_interval_over_the_seeds():
    """Two seeds: half their distance, times Student's t of one degree of freedom; a share ends at 0 and 1."""
    results = [compare({"t": evaluation(0.5, 100)}, {"t": evaluation(a, n)}).average for a, n in ((0.5, 50), (0.6, 80))]
    found, t = to_json(figures_of(results)), 12.706204736432095
    assert found["accuracy"] == {"mean": pytest.approx(0.55), "low": 0.0, "high": 1.0}
    half = 0.15 * t
    assert found["aes"] == pytest.approx({"mean": 0.65, "low": 0.65 - half, "high": 0.65 + half})
    assert to_json(figures_of([results[0], results[0]]))["aes"] == {"mean": 0.5}, "seeds that agree say nothing"


def test_compare_runs_every_method_on_the_same_rollouts(flags, tmp_path, capsys):
    job, tests = flags
    out = tmp_path / "study"
    methods = ["fast-prompt", "o1-pruner", "kimi"]
    assert main(["study", "compare", *job, *tests, "--methods", ",".join(methods), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert [row["label"] for row in result["rows"]] == ["base", *methods]
    assert result["tests"] == ["easy", "hard"]
    assert (out / "plot.png").stat().st_size > 10_000 and (out / "table.md").read_text() in printed + "\n"
    base, fast, pruned, _ = result["rows"]
    assert base["average"]["length_cut"]["mean"] == 0 and base["runs"] == [] and base["inference"]["ratio"] == 1
    assert pruned["runs"] == ["seed-0/o1-pruner"] and pruned["inference"]["seconds"] > 0
    shards = {name: sorted((out / "seed-0" / name / "base").glob("*/rollouts/shard-*")) for name in methods}
    assert len(shards["kimi"]) == 4
    for name in methods:
        assert [a.stat().st_ino for a in shards[name]] == [b.stat().st_ino for b in shards["o1-pruner"]], "made once"
    rollouts = [next((out / "seed-0" / name).glob("round-00/rollouts/*.jsonl")) for name in ("o1-pruner", "kimi")]
    assert rollouts[0].samefile(rollouts[1])
    assert not (out / "seed-0" / "fast-prompt" / "pruned").exists()
    asked = json.loads((out / "seed-0" / "fast-prompt" / "after" / "easy" / "problems.json").read_text())["problems"]
    assert all(p["question"].endswith("pause, stop or reflection.") for p in asked)
    assert fast["tests"]["easy"]["mean_tokens"]["mean"] > 0
    check_measures_and_cost(out, result)
    early = study_of(StudyFolder(out), 1)  # what bench.methods prints before the study's end
    rows = {row["label"]: {k: v for k, v in row.items() if k != "inference"} for row in result["rows"]}
    for row in early.rows:
        assert {k: v for k, v in to_json(row).items() if k != "inference"} == rows[row.label]


def check_measures_and_cost(out: Path, result: dict) -> None:
    """By counting in the files: 8 problems x 4 samples of at most 16 tokens are sampled and trained on, once."""
    base, fast, pruned, kimi = result["rows"]
    assert "cost" not in base
    nothing = {"mean": 0}
    assert fast["cost"] == {"samples": nothing, "trained_tokens": nothing, "seconds": nothing}
    assert pruned["cost"]["samples"]["mean"] == kimi["cost"]["samples"]["mean"] == 32
    (shard,) = (out / "seed-0" / "o1-pruner" / "round-00" / "rollouts").glob("*.jsonl")
    lines = shard.read_text().splitlines()
    assert pruned["cost"]["trained_tokens"]["mean"] == sum(json.loads(line)["length"] for line in lines)
    assert kimi["cost"]["seconds"]["mean"] > 0
    assert base["measures"]["budgets"] == [1, 2, 3, 4, 6, 8, 11, 16]
    lengths, verdicts = [], []
    for test in ("easy", "hard"):
        (shard,) = (out / "seed-0" / "o1-pruner" / "after" / test / "rollouts").glob("*.jsonl")
        found = [json.loads(line) for line in shard.read_text().splitlines()]
        lengths.append([line["length"] for line in found])
        verdicts.append([line["correct"] for line in found])
    scores = [
        100 * sum(right) / len(right) - 10 * math.log10(sum(n) / len(n) / 10_000) for n, right in zip(lengths, verdicts)
    ]
    measures = pruned["measures"]
    assert measures["ockscore"]["mean"] == pytest.approx(sum(scores) / 2)
    assert measures["accuracy_within"][-1] == pytest.approx(pruned["average"]["accuracy"]["mean"])
    assert (measures["tokens_right"] is None) == (not any(map(any, verdicts)))


@pytest.mark.parametrize(
    "text, holding",
    [
        (r"So it is 57. Final answer: \boxed{57}", r"So it is 57. Final answer: \boxed{57}"),
        (r"\boxed{57} and that is what there is to say about it", r"\boxed{57}"),
        (r"\boxed{1} or \boxed{57}, both", r"\boxed{1} or \boxed{57}"),
        (r"<think>\boxed{57}? yes</think> \boxed{57}.", r"<think>\boxed{57}? yes</think> \boxed{57}"),
        ("57, without a box", "57, without a box"),
    ],
)
def test_a_completion_may_be_cut_where_its_box_is_complete(text, holding):
    """As many tokens as the tokenizer needs for the text up to there, and no fewer: brute force over every cut."""
    tokenizer = Tokenizer(EMBEDDED, read_config(EMBEDDED).vocab_size)
    ids, end = tokenizer.encode(text), max(tokenizer.eos_ids)
    sample = Sample(torch.tensor([*ids, end]), torch.zeros(0), "stop", "57", True)
    group = Group("p", torch.tensor(tokenizer.prompt("?")), (sample,))
    needed = next(n for n in range(len(ids) + 1) if tokenizer.decode(ids[:n]).startswith(holding))
    assert tokens_needed(group, sample, tokenizer) == (needed if "boxed" in text else len(ids) + 1)
    wrong = replace(sample, correct=False)
    assert tokens_needed(group, wrong, tokenizer) == len(ids) + 1


def test_lambda_is_resumed_run_by_run(flags, tmp_path, capsys):
    job, tests = flags
    out = tmp_path / "study"
    command = ["study", "lambda", *job, *tests, "--seeds", "2", "--out", str(out)]
    assert main([*command, "--values", "0"]) == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("seed-*/**/*")}
    assert main([*command, "--values", "0,5"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    result = json.loads((out / "result.json").read_text())
    assert [(row["label"], row["value"], row["runs"]) for row in result["rows"]] == [
        ("base", None, []),
        ("lambda 0", 0.0, ["seed-0/lambda-0", "seed-1/lambda-0"]),
        ("lambda 5", 5.0, ["seed-0/lambda-5", "seed-1/lambda-5"]),
    ]
    assert to_markdown(*study_tables(read_result(out))).count("\n") == 4
    lines = [json.loads((out / run / "settings.json").read_text()) for run in result["rows"][2]["runs"]]
    assert [(s["lam"], s["seed"]) for s in lines] == [(5.0, 0), (5.0, 1)]


def test_difficulty_trains_on_its_part_of_the_problems(flags, tmp_path):
    job, tests = flags
    out = tmp_path / "study"
    assert main(["study", "difficulty", *job, *tests, "--percentiles", "0-50,50-100", "--out", str(out)]) == 0
    trained = {}
    for name in ("percentiles-0-50", "percentiles-50-100"):
        (line,) = (json.loads(text) for text in (out / "seed-0" / name / "log.jsonl").read_text().splitlines()[:1])
        trained[name] = line
        assert (out / "seed-0" / name / "round-00" / "rollouts").exists()
    assert all(line["units"] > 0 for line in trained.values())
    assert trained["percentiles-0-50"]["mean_length"] != trained["percentiles-50-100"]["mean_length"]


def test_disharmony_from_the_command_line(flags, files, tmp_path, capsys):
    job, _ = flags
    out = tmp_path / "study"
    command = ["study", "disharmony", *job, "--samples", "12", "--intervals", "3", "--out", str(out)]
    assert main(command) == 0
    assert "| all | 8 |" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert [row["label"] for row in result["rows"]] == ["all", "level 1", "level 2"]
    assert len(json.loads((out / "problems.json").read_text())["problems"]) == 8
    assert main(command) == 0, "a study that is done is read"


@pytest.mark.parametrize(
    "study, change, message",
    [
        ("disharmony", ["--intervals", "13", "--samples", "12"], "--intervals: 13 of 12 samples"),
        ("disharmony", ["--intervals", "1"], "--intervals: 1 of"),
        ("disharmony", ["--problems", "99"], "--problems: train holds 12 problems, not 99"),
        ("lambda", ["--values", "1,two"], "--values: 1,two is not a list of numbers"),
        ("lambda", ["--values", ""], "--values: '' must be a comma-separated list"),
        ("lambda", ["--values", "-1"], "--lam: -1.0 is below 0"),
        ("lambda", ["--seeds", "0"], "--seeds: 0"),
        ("difficulty", ["--percentiles", "0-40,40"], "--percentiles: 40 is not LOW-HIGH"),
        ("difficulty", ["--percentiles", "41-42"], "leaves none"),
        ("compare", ["--methods", "sft,grpo"], "--methods: grpo is none of o1-pruner"),
        ("compare", ["--methods", "dpo", "--eval-data", "a/x.json", "b/x.json"], "two files have the same name"),
        ("compare", ["--methods", "hapo", "--rounds", "1"], "--reward hapo: refers to the answers of earlier rounds"),
        (
            "compare",
            ["--methods", "all", "--rounds", "2", "--samples", "12"],
            "--budget-high: 4000 tokens do not fit within --max-new-tokens 16",
        ),
        ("lambda", ["--values", "1,1.0"], "repeats a value"),
        ("lambda", ["--values", "nan"], "--lam: must be a number, not NaN"),
        ("lambda", ["--method", "sft"], "has no lambda"),
        ("difficulty", ["--method", "fast-prompt"], "trains on no problems"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(flags, tmp_path, capsys, study, change, message):
    job, _ = flags
    assert main(["study", study, *job, *change, "--out", str(tmp_path / "study")]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("o1core: error: ")]
    assert len(error) == 1 and message in error[0]


def test_a_folder_with_something_else_in_it_is_left_alone(flags, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("It was")
    assert main(["study", "lambda", *flags[0], "--out", str(tmp_path / "thesis")]) == 2
    assert "holds no study lambda" in capsys.readouterr().err


def test_the_parts_of_a_comma_list():
    assert comma_list("--x", " a, b ,") == ["a", "b"]
