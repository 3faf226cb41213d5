"""Scoring: every format's small file comes to the same figures, which are counted by hand.

Three problems, two completions each (files/): 42 in 12 tokens and 48 in 9; 0.75 in 20 and .75 in 30; 3 for -3 in 15, and
one cut off at 40 tokens.
"""

import csv
import io
import itertools
import json
import re
import subprocess
import sys
import zipfile
from math import comb
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import o1core
from o1core.cli import main
from o1core.metrics import MOST_SUBSETS, aes, majority_at, pass_at
from o1core.scoring import Judge, compared, read_generations, score_file

FILES, EMBEDDED = Path(__file__).parent / "files", Path(o1core.__file__).parent / "tiny_o1"
LENGTHS, RIGHT = [[12, 9], [20, 30], [15, 40]], [[True, False], [True, True], [False, False]]


def lighteval_details(path: Path) -> Path:
    """The same completions as lighteval writes its details."""
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = []
    for line in (FILES / "vllm.jsonl").read_text().splitlines():
        row = json.loads(line)
        doc = {
            "query": row["prompt"],
            "choices": [row["answer"]],
            "gold_index": [0],
            "id": row["id"],
            "task_name": "sums",
        }
        texts, ids = ([o[name] for o in row["outputs"]] for name in ("text", "token_ids"))
        response = {"input": row["prompt"], "text": texts, "output_tokens": ids, "truncated_tokens_count": 0}
        rows.append({"doc": doc, "model_response": response, "metric": {"extractive_match": 1.0}})
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def archive(files: dict[str, object], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of JSON files, as Inspect packs an .eval."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", packing) as file:
        for name, value in files.items():
            file.writestr(name, json.dumps(value))
    return packed.getvalue()


def damaged(packing: int) -> bytes:
    """An archive whose first file's contents are not what its packing makes: each packing has an error of its own."""
    whole = archive({"header.json": {"eval": {}}}, packing)
    start = whole.index(b"header.json") + len(b"header.json")
    return whole[:start] + bytes(12) + whole[start + 12 :]


def inspect_archive(path: Path) -> Path:
    """The Inspect log as the .eval that Inspect itself writes."""
    log = json.loads((FILES / "inspect.json").read_text())
    samples = {f"samples/{s['id']}_epoch_{s['epoch']}.json": s for s in log.pop("samples")}
    path.write_bytes(archive({"_journal/start.json": {}, **samples, "header.json": log}))
    return path


MADE = {"lighteval.parquet": lighteval_details, "inspect.eval": inspect_archive}


@pytest.mark.parametrize(
    "name, counted, states_cuts, options",
    [
        ("vllm.jsonl", True, True, {}),
        ("one_a_line.jsonl", True, True, {}),
        ("openai_batch.jsonl", True, True, {"golds": {"p0": "42", "p1": r"\frac{3}{4}", "p2": "-3"}}),
        ("lm_eval.jsonl", False, False, {}),
        ("verl.jsonl", False, False, {}),
        ("inspect.json", True, True, {}),
        ("ours.jsonl", True, True, {}),
        ("inspect.eval", True, True, {}),
        ("lighteval.parquet", True, False, {}),
    ],
)
def test_every_format_comes_to_the_same_figures(name, counted, states_cuts, options, tmp_path):
    path = MADE[name](tmp_path / name) if name in MADE else FILES / name
    (score,) = score_file(path, Judge(**options))
    assert (score.problems, score.samples) == (3, 2)
    assert score.answers.correct.tolist() == RIGHT and score.accuracy.mean == pytest.approx(3 / 6)
    assert score.pass_at == pytest.approx({"1": 0.5, "2": 2 / 3})
    assert score.majority_at == pytest.approx({"1": 0.5, "2": (0.5 + 1 + 0) / 3})
    assert score.truncated == (pytest.approx(1 / 6) if states_cuts else None)
    if counted:
        assert score.answers.lengths.tolist() == LENGTHS
        assert (score.mean_tokens, score.median_tokens) == (21.0, 17.5)
        assert (score.tokens_right, score.tokens_wrong) == pytest.approx((62 / 3, 64 / 3))
        assert score.ockscore == pytest.approx(50 - 10 * np.log10(21 / 10_000))
    else:
        assert score.mean_tokens is score.ockscore is None
    assert score.disagree == (0 if name in ("verl.jsonl", "inspect.json", "inspect.eval", "ours.jsonl") else None)


def test_a_file_of_several_models_has_a_score_for_each():
    first, second = compared(score_file(FILES / "matharena.jsonl", Judge()), True, [(1, 3, 5), (1, 5, 10)], [10, 40])
    assert (first.name, second.name, first.disagree) == ("long", "short", 0)
    assert first.accuracy_within == pytest.approx([0, 3 / 6]) and second.accuracy_within == pytest.approx(
        [2 / 6, 3 / 6]
    )
    assert first.budget_area == pytest.approx(((40 - 12) + (40 - 20) + (40 - 30)) / 40 / 6)
    assert first.against is None and second.against.left_out == 0
    cut = 1 - np.mean([6, 4, 10, 15, 7, 20]) / 21
    assert second.against.aes["1/5/10"].mean == pytest.approx(cut) and second.against.accuracy.mean == 0


def brute_pass(correct: np.ndarray, k: int) -> float:
    return float(np.mean([[any(s) for s in itertools.combinations(row, k)] for row in correct]))


def test_pass_at_k_by_hand():
    """Of 4 completions 1 is right: of the 6 pairs 3 hold it; of the 4 triples 3 do."""
    one_of_four = np.array([[True, False, False, False]])
    assert [pass_at(one_of_four, k) for k in (1, 2, 3, 4)] == pytest.approx([1 / 4, 3 / 6, 3 / 4, 1])
    correct = np.random.default_rng(0).random((7, 6)) < 0.4
    assert [pass_at(correct, k) for k in range(1, 7)] == pytest.approx([brute_pass(correct, k) for k in range(1, 7)])


def test_majority_at_k_by_hand():
    """Votes right, right, wrong A, wrong B. Pairs: RR wins, four of R with another tie (1/2 each), AB loses: (1 + 4/2) / 6.
    Triples: RRA and RRB win, RAB twice is a tie of three: (2 + 2/3) / 4. All four: two against one and one."""
    votes = np.array([[0, 0, 1, 2]])
    assert [majority_at(votes, k) for k in (1, 2, 3, 4)] == pytest.approx([0.5, 3 / 6, (2 + 2 / 3) / 4, 1])
    assert majority_at(np.array([[0, 1, 1, -1]]), 4) == 0, "two wrong ones agree"
    assert majority_at(np.array([[0, -1, -1, -1]]), 4) == 1, "no answer is no vote"
    assert majority_at(np.array([[-1, -1]]), 2) == 0
    most = sum(comb(12, right) * comb(8, 9 - right) for right in range(5, 10)) / comb(20, 9)  # more right than wrong
    off = 5 * (most * (1 - most) / MOST_SUBSETS) ** 0.5  # five standard errors of what is drawn
    assert majority_at(np.array([[0] * 12 + [1] * 8]), 9) == pytest.approx(most, abs=off)


def test_wrong_answers_that_are_equal_are_one_vote(tmp_path):
    path = tmp_path / "votes.jsonl"
    texts = [r"\boxed{7}", r"\boxed{5}", r"\boxed{5.0}", r"\boxed{7}", r"\boxed{5}"]
    path.write_text("".join(json.dumps({"id": 1, "gold": "7", "output": text}) + "\n" for text in texts))
    (score,) = score_file(path, Judge())
    assert score.majority_at["5"] == 0 and score.accuracy.mean == 0.4
    assert score.majority_at["4"] == pytest.approx((0 + 0 + 3 * 0.5) / 5), "without a 7 or with two of each"


def run(capsys, *words: object) -> str:
    assert main(["score", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_two_files_are_compared_over_the_problems_of_both(tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    lines = (FILES / "vllm.jsonl").read_text().splitlines()[:2]
    other.write_text(
        "\n".join([*lines, json.dumps({"id": "p9", "answer": "1", "outputs": ["1", "1"], "tokens": [3, 4]})])
    )
    found = json.loads(run(capsys, other, "--base", FILES / "vllm.jsonl", "--json"))[1]["against"]
    assert (found["problems"], found["left_out"]) == (2, 2) and found["accuracy"]["mean"] == found["tokens"][
        "mean"
    ] == 0
    text = run(capsys, other, "--base", FILES / "vllm.jsonl")
    assert "other: 2 problems that only one of the two files has are left out." in text and "AES 1/3/5" in text
    by_question = run(capsys, FILES / "verl.jsonl", "--base", FILES / "inspect.json", "--json")
    assert json.loads(by_question)[1]["against"]["problems"] == 3, "ids differ, the questions do not"


def test_the_forms_of_the_output(tmp_path, capsys):
    base, after = FILES / "vllm.jsonl", FILES / "ours.jsonl"
    (row,) = csv.DictReader(io.StringIO(run(capsys, base, "--csv")))
    assert row["name"] == "vllm" and float(row["pass_at.2"]) == pytest.approx(2 / 3)
    latex = run(capsys, after, "--base", base, "--latex", "--aes", "1/3/5,1/5/10")
    assert r"50.0 \%" in latex and latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 4
    assert "AES 1/3/5 & AES 1/5/10" in latex
    answers = json.loads(run(capsys, FILES / "openai_batch.jsonl", "--data", FILES / "problems.jsonl", "--json"))
    assert answers[0]["accuracy"]["mean"] == 0.5
    run(capsys, base, "--chart", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(run(capsys, base, "--samples", "1", "--json"))[0]["accuracy"]["mean"] == pytest.approx(2 / 3)


def test_the_files_verdicts_can_stand(tmp_path, capsys):
    path = tmp_path / "graded.jsonl"
    path.write_text(json.dumps({"id": 1, "output": "5", "answer": "5", "correct": False, "tokens": 3}) + "\n")
    assert "1 of 1 verdicts differ from the file's own" in run(capsys, path).replace("’", "'")
    assert json.loads(run(capsys, path, "--as-graded", "--json"))[0]["accuracy"]["mean"] == 0
    path.write_text(json.dumps({"id": 1, "output": "5", "correct": True}) + "\n")
    assert json.loads(run(capsys, path, "--json"))[0]["accuracy"]["mean"] == 1, (
        "no gold answer: the verdict is all there is"
    )


def rows_file(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row, texts, tokens, correct",
    [
        ({"doc": {"choices": ["a", "b", "c"]}, "doc_id": 0, "resps": [["B"]], "target": "B"}, ["B"], None, None),
        ({"id": 1, "choices": ["1", "2"], "response": "1", "answer": "1"}, ["1"], None, None),
        (
            {"id": 1, "response": r"\boxed{42}", "answer": "41", "gold_answer": "42", "num_tokens": [350]},
            [r"\boxed{42}"],
            350,
            None,
        ),
        ({"id": 1, "output": "5", "answer": "5", "correct": [False], "token_ids": [9]}, ["5"], 1, False),
        ({"id": 1, "output": "5", "answer": "5", "output_tokens": []}, ["5"], None, None),
        (
            {
                "id": 1,
                "output": [{"type": "reasoning"}, {"type": "message", "content": [{"text": "5"}]}],
                "target": True,
            },
            ["5"],
            None,
            None,
        ),
        (
            {"id": float("nan"), "uid": "u1", "question": "1?", "output": "1", "target": "", "answer": "1"},
            ["1"],
            None,
            None,
        ),
    ],
)
def test_what_fields_mean_beside_others(tmp_path, row, texts, tokens, correct):
    found = read_generations(rows_file(tmp_path / "rows.jsonl", row))
    assert [g.text for g in found] == texts
    assert (found[0].tokens, found[0].correct) == (tokens, correct) and len(found[0].golds) == 1
    assert found[0].problem not in ("nan", "u1"), "of a gap, and of a single completion"


def test_ids_that_stand_for_other_questions_are_not_paired(tmp_path, capsys):
    """The base counts its problems in another order: what is common is the questions."""
    rows = [{"id": at, "question": f"{at} + 1?", "answer": str(at + 1), "output": str(at + 1)} for at in (1, 2)]
    base = rows_file(tmp_path / "base.jsonl", rows[0] | {"output": "0"}, rows[1])
    turned = rows_file(tmp_path / "turned.jsonl", rows[0] | {"id": 2}, rows[1] | {"id": 1})
    asked = rows_file(tmp_path / "asked.jsonl", *(row | {"question": f"Think. {row['question']}"} for row in rows))
    other = rows_file(tmp_path / "other.jsonl", *(row | {"question": "7?", "answer": "7"} for row in rows))
    for path in (turned, asked):
        found = json.loads(run(capsys, path, "--base", base, "--json"))[1]["against"]
        assert (found["problems"], found["accuracy"]["mean"]) == (2, 0.5)
    assert main(["score", str(other), "--base", str(base)]) == 2
    assert "base and other have no problem in common" in capsys.readouterr().err


def test_a_rows_own_gold_answer_comes_before_that_of_the_data(tmp_path, capsys):
    path = rows_file(tmp_path / "rows.jsonl", {"id": "1", "output": "5", "answer": "5"}, {"id": "2", "output": "7"})
    data = rows_file(tmp_path / "data.jsonl", *({"id": at, "question": f"{at}?", "answer": "7"} for at in "12"))
    assert json.loads(run(capsys, path, "--data", data, "--json"))[0]["accuracy"]["mean"] == 1


def test_a_grader_of_ones_own_judges_rows_without_a_gold_answer(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def never(problem, answer):\n    return False\n")
    path = rows_file(tmp_path / "rows.jsonl", {"id": 1, "output": "5", "correct": True}, {"id": 2, "output": "5"})
    assert (
        json.loads(run(capsys, path, "--grader", f"{tmp_path / 'mine.py'}:never", "--json"))[0]["accuracy"]["mean"] == 0
    )


def test_rows_without_a_model_go_by_the_files_name(tmp_path):
    row = {"id": 1, "output": "5", "answer": "5"}
    path = rows_file(tmp_path / "rows.jsonl", row | {"model": "m"}, row)
    assert [s.name for s in score_file(path, Judge())] == ["m", "rows"]


def test_a_file_without_tokens_leaves_the_scores_of_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("o1core.metrics.RESAMPLES", 500)
    rows = [{"id": at, "output": "5", "answer": "5"} for at in range(3)]
    bare = rows_file(tmp_path / "bare.jsonl", *rows)
    counted = rows_file(tmp_path / "counted.jsonl", *(row | {"num_tokens": 7} for row in rows))
    zero = rows_file(tmp_path / "zero.jsonl", *(row | {"num_tokens": 0} for row in rows))
    assert "AES 1/3/5" in run(capsys, bare, counted, "--base", counted)
    against = json.loads(run(capsys, counted, "--base", zero, "--json"))[1]["against"]
    assert against["aes"] == {"1/3/5": None}


def test_a_tokenizer_counts_in_place_of_the_file(capsys):
    found = json.loads(run(capsys, FILES / "vllm.jsonl", "--tokenizer", EMBEDDED, "--json"))[0]
    backend = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    counts = [len(backend.encode(g.text, add_special_tokens=False).ids) for g in read_generations(FILES / "vllm.jsonl")]
    assert found["mean_tokens"] == pytest.approx(np.mean(counts))


def test_the_page_prints_what_the_command_prints(capsys, monkeypatch):
    page = (FILES.parents[2] / "docs" / "score.md").read_text()
    monkeypatch.chdir(FILES.parents[2])
    command, _, printed = page.partition("```console\n$ o1core ")[2].partition("```")[0].partition("\n")
    assert main(command.split()) == 0
    assert capsys.readouterr().out == printed


def test_aes_has_its_coefficients():
    assert aes(0.5, 100, 0.4, 50, alpha=1, beta=5, gamma=10) == pytest.approx(0.5 - 10 * 0.2)


def test_nothing_of_torch_is_imported():
    code = "import sys; from o1core.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "score", str(FILES / "vllm.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


ROW = {"id": 1, "output": "5", "answer": "5"}


@pytest.mark.parametrize(
    "rows, flags, message",
    [
        ([{"output": "5", "answer": "5"}], [], "line 1: no id and no question; give each row the id of its problem"),
        ([{"id": 1, "answer": "5"}], [], "line 1: no completion; a row needs a field such as completion"),
        ([{"id": 1, "output": "5"}], [], "problem 1 has neither a gold answer nor a verdict; name the problem file"),
        ([{"id": 1, "output": [5], "answer": "5"}], [], "line 1: a completion must be text, not int"),
        (
            [ROW, ROW, ROW | {"id": 2}],
            [],
            "problem 2 has 1 completions and problem 1 has 2; --samples 1 takes the first 1",
        ),
        ([ROW | {"output": []}], [], "line 1: holds an empty list of completions; sample it again"),
        (
            [ROW | {"question": "A"}, ROW | {"question": "B"}],
            [],
            "problem 1 has two questions, 'A' and 'B'; give each an id of its own",
        ),
        ([ROW], ["--samples", "3"], "problem 1 has 1 completions; use --samples 1 or fewer"),
        ([ROW], ["--samples", "0"], "--samples: 0 is below 1"),
        (
            [ROW],
            ["--base", str(FILES / "vllm.jsonl")],
            "vllm and rows have no problem in common \\(ids p0, p1, p2 and 1\\)",
        ),
        ([ROW], ["--base", str(FILES / "matharena.jsonl")], "--base: .* holds 2 models"),
        ([ROW], ["--aes", "1/3"], "--aes: 1/3 is not A/B/C"),
        ([ROW], ["--budgets", "1" * 5000], "--budgets: 1.* is not a rising list"),
        ([ROW], ["--budgets", "400,200"], "--budgets: 400,200 is not a rising list"),
        ([ROW], ["--thought-tags", "<think>"], "--thought-tags: <think> is not OPEN,CLOSE"),
        ([ROW], ["--chart", "x.png"], "--chart: nothing to draw"),
        ([3], [], "line 1: a row must be an object with an id and a completion, not int"),
        ([], [], "holds no completions"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(rows, flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", "rows.jsonl", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("log.eval", b"PK", "log.eval: is damaged, or no log of Inspect"),
        ("log.eval", archive({"header.json": {"eval": {}}}), "log.eval: is no finished log of Inspect"),
        ("log.eval", archive({"header.json": {"eval": {}}, "samples/1.json": {"id": 1}}), "1.json: has no output"),
        ("log.eval", archive({"header.json": {}}).replace(b"\x08\x00", b"\x5d\x00"), "is packed with Zstandard"),
        ("log.eval", damaged(zipfile.ZIP_LZMA), "log.eval: is damaged, or no log of Inspect"),
        ("log.eval", damaged(zipfile.ZIP_BZIP2), "log.eval: is damaged, or no log of Inspect"),
        ("x.parquet", b"PAR1", "cannot be read as parquet"),
        ("one.json", b'{\n "a": 1\n}\n', "is one object, and no log of Inspect"),
        ("half.jsonl", b'{"id": 1, "output": "5", "answer": "5"}\n{"id": ', "half.jsonl, line 2: not valid JSON"),
        ("log.json", b'{"eval": {}, "samples": [{"id": 1}]}', "samples[1]: has no output"),
    ],
)
def test_a_file_that_cannot_be_read(name, content, message, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert main(["score", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
