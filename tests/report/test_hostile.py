"""Text of strangers in every output: ids, names of tests, levels, answers and labels that try to drive a terminal, to end
a table cell, or to be no characters of XML."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from o1core.evaluation import (
    DisharmonyResult,
    DisharmonyRow,
    Figures,
    Interval,
    RunResult,
    Spread,
    StudyResult,
    StudyRow,
    compare,
)
from o1core.files import write_json
from o1core.model import Tokenizer, read_config
from o1core.records import to_json
from o1core.report import (
    disharmony_tables,
    plot_disharmony,
    plot_run,
    plot_study,
    run_table,
    sample_lines,
    study_tables,
    to_markdown,
    to_text,
    write_page,
)
from o1core.rollout import write_shard
from o1core.run_folder import RunFolder
from o1core.types import Group, Problem, Sample
from tests.campaigns.fuzz_report import evaluation, fuzz_report
from tests.campaigns.harness import CONTROL, ESCAPE, TEXTS, TINY

NAMES = (ESCAPE, "\u202ea | b\n$\\foo$")  # of tests, which are folders
STORED = [text for text in TEXTS if "\ud800" not in text]  # a file that holds half a surrogate pair is refused
SPREAD = Spread(0.5, 0.4, 0.6)
FIGURES = Figures(SPREAD, Spread(30.0, 29.0, 31.0), SPREAD, SPREAD, SPREAD)


def hostile_run(path: Path) -> RunResult:
    """A run with a test for each name, each with a problem for each text, the text in all of its fields."""
    run = RunFolder(path)
    tokenizer = Tokenizer(TINY, read_config(TINY).vocab_size)
    path.mkdir(parents=True)
    write_json(run.settings, {"model": str(TINY), **{text: text for text in STORED}})
    ids = torch.tensor(tokenizer.encode("1+1=2"), dtype=torch.int32)
    problems = [Problem(text or "empty", text, text, level=text or "0", subject=text) for text in STORED]
    groups = [Group(p.id, ids, (Sample(ids, torch.zeros(len(ids)), "stop", p.answer, True),)) for p in problems]
    for name in NAMES:
        for side in ("base", "after"):
            run.evaluation(side, name).begin(problems)
            write_shard(run.evaluation(side, name).rollouts, groups)
    sides = {name: evaluation(30.0) for name in NAMES}
    result = RunResult(compare(sides, sides), 1.0, "pruned", {})
    write_json(run.result, to_json(result))
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[RunFolder, RunResult]:
    path = tmp_path_factory.mktemp("hostile") / "run"
    return RunFolder(path), hostile_run(path)


def study_of_labels() -> StudyResult:
    rows = [StudyRow("base", None, [], FIGURES, {"t": FIGURES})]
    rows += [StudyRow(text, text, [f"seed-0/{i}"], FIGURES, {"t": FIGURES}) for i, text in enumerate(TEXTS)]
    return StudyResult("lambda", ["t"], 1, rows, {})


def disharmony_of_labels(labels: Sequence[str] = TEXTS) -> DisharmonyResult:
    parts = [Interval(i + 1, 0.5, 0.4, 0.6, 50.0) for i in range(2)]
    rows = [DisharmonyRow(text, 3, parts, SPREAD) for text in labels]
    return DisharmonyResult("disharmony", 3, 2, 2, rows)


def test_tables_have_a_line_a_row_and_no_control_characters(run):
    tables = [run_table(run[1]), *study_tables(study_of_labels()), *disharmony_tables(disharmony_of_labels())]
    for table in tables:
        for text, heads in ((to_text(table), 1), (to_markdown(table), 2)):
            assert not CONTROL.search(text)
            assert len(re.split("[\n\u2028\u2029\x85]", text)) == len(table.rows) + heads
        for line in to_markdown(table).splitlines():
            assert len(re.findall(r"(?<!\\)\|", line)) == len(to_markdown(table).splitlines()[1].split("|")) - 1


def test_plots_are_drawn_whatever_the_labels(run, tmp_path):
    plot_run(*run)
    plot_study(study_of_labels(), tmp_path / "study.png")
    plot_disharmony(disharmony_of_labels(), tmp_path / "disharmony.png")
    assert all((p.read_bytes()[:4] == b"\x89PNG") for p in (run[0].plot, *tmp_path.glob("*.png")))


def test_the_page_is_text_and_its_charts_are_xml(run, tmp_path):
    study = tmp_path / "study"
    write_json_of(study, to_json(disharmony_of_labels(STORED)))
    page = write_page([run[0].path, study], tmp_path / "page.html").read_text(encoding="utf-8")
    assert not CONTROL.search(page)
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 4 * len(NAMES) + 1
    assert all(ElementTree.fromstring(chart).tag == "svg" for chart in charts)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert not CONTROL.search(json.dumps(data, ensure_ascii=False))
    assert page.count("<script") == 2
    assert ">level #0b6e99</text>" in page, "a colour in a name stays a name"


def write_json_of(folder: Path, value: dict) -> None:
    folder.mkdir()
    write_json(folder / "result.json", value)


def test_samples_in_a_terminal_have_no_control_characters(run):
    lines = list(sample_lines(run[0].path))
    assert len(lines) > 6 * len(NAMES) * len(STORED)
    assert not CONTROL.search("\n".join(lines))


@pytest.mark.parametrize("case", range(6))
def test_a_damaged_run_is_shown_or_refused_in_a_line(case, tmp_path):
    assert fuzz_report(random.Random(case), tmp_path / "case") in ("ok", "refused")
