"""Tables and plots: the same figures in a terminal, in Markdown and in a picture's title."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from o1core.charts import COLOURS, Chart, write_png
from o1core.evaluation import Evaluation, Figures, Measures, RunResult, Spread, StudyResult, StudyRow, compare
from o1core.metrics import Answers
from o1core.report import in_one_line, rounds_table, run_headlines, run_table, study_tables, to_markdown, to_text
from o1core.report.samples import evenly
from o1core.tables import Cell, Column, Table


def evaluation(accuracy: float, tokens: float) -> Evaluation:
    return Evaluation(
        accuracy=accuracy,
        accuracy_low=accuracy - 0.1,
        accuracy_high=accuracy + 0.1,
        mean_tokens=tokens,
        median_tokens=tokens - 1,
        truncated=0.25,
        problems=10,
        samples=4,
        tokens_per_second=1234.4,
    )


def run_result(**tests: tuple[float, float]) -> RunResult:
    """The base has accuracy 0.5 and 100 tokens; tests: what each pruned one has."""
    base = {name: evaluation(0.5, 100) for name in tests}
    return RunResult(compare(base, {name: evaluation(*pruned) for name, pruned in tests.items()}), 1.0, "pruned", {})


def test_a_terminal_prints_aligned_columns():
    assert to_text(run_table(run_result(t=(0.6, 57.4)))).splitlines() == [
        "model   accuracy (95 % interval)  cut off  mean tokens  median   AES",
        "base     50.0 % (40.0 to 60.0 %)   25.0 %        100.0      99",
        "pruned   60.0 % (50.0 to 70.0 %)   25.0 %         57.4      56",
        "change              +10.0 points               -42.6 %          1.03",
    ]
    several = to_text(run_table(run_result(one=(0.6, 57.4), two=(0.6, 60.0)))).splitlines()
    assert several[0].split()[0] == "test" and several[-2].split()[:2] == ["average", "pruned"]


def test_rounds_say_how_far_the_sampler_is_from_the_trainer():
    line = {
        "round": 0,
        "round_accuracy": 0.5,
        "round_mean_tokens": 99.96,
        "reference_mean": 0.0213,
        "reference_max": 0.161,
    }
    later = line | {"round": 1, "round_accuracy": 0.75, "reference_mean": 1.5e-6, "reference_max": 3e-5}
    table = rounds_table([line, line | {"reference_mean": 9.0}, later, {"round": "x"}, {"round": 2}])
    assert to_text(table).splitlines() == [
        "round  accuracy of its samples  mean tokens  mean gap  largest gap",
        "1                       50.0 %        100.0     0.021         0.16",
        "2                       75.0 %        100.0   1.5e-06        3e-05",
    ]
    assert rounds_table([]) is None
    mixture = rounds_table([line | {"routed_alike": 0.984}, later | {"routed_alike": 1.0}])
    assert [row[-1].text for row in mixture.rows] == ["98.4 %", "100.0 %"] and "Routed alike" in mixture.note


def test_markdown_says_what_changed():
    line = to_markdown(run_table(run_result(t=(0.4, 105)))).splitlines()[-1]
    assert line == "| t | change | -10.0 points |  | +5.0 % |  | -1.05 |"  # a = -5 * 0.2, less 0.05 for the length


def test_changes_have_their_paired_intervals_in_the_table_and_in_one_line():
    """Three problems, tokens 100 each: by hand, Student's t of two degrees of freedom is 4.303."""
    right = np.array([[True], [False], [False]])
    before = Answers("abc", np.array([[100], [100], [100]]), right)
    after = Answers("abc", np.array([[40], [50], [60]]), ~right)
    base, pruned = (replace(evaluation(a, n), answers=s) for a, n, s in ((1 / 3, 100, before), (2 / 3, 50, after)))
    result = RunResult(compare({"t": base}, {"t": pruned}), 1.0, "pruned", {})
    table, line = run_table(result), in_one_line(run_headlines(result))
    half = 4.302652729749464 * 10 / 3**0.5
    ends = f"{-50 - half:.1f} to {-50 + half:.1f} %"
    assert table.rows[-1][2].text == "+33.3 points" and str(table.rows[-1][4]) == f"-50.0 % ({ends})"
    assert "Changes are paired over the problems" in table.note
    assert f"(-50.0 %; {ends})" in line and "(+33.3 points; -100.0 to +100.0)" in line


def test_an_outcome_is_one_line():
    outcome = compare({"t": evaluation(0.5, 100)}, {"t": evaluation(0.6, 50)}).average
    assert str(outcome) == "accuracy 50.0 to 60.0 %, +10.0 points; mean tokens 100.0 to 50.0, -50.0 %; AES 1.10"


def test_a_test_that_was_mostly_cut_off_is_named_with_what_helps():
    def note(share: float, **settings) -> str:
        mostly = replace(evaluation(0.5, 100), truncated=share)
        return run_table(RunResult(compare({"t": mostly}, {"t": evaluation(0.6, 50)}), 1.0, "pruned", settings)).note

    assert "Most completions of t were cut off (base 75 %, pruned 25 %): raise --max-new-tokens." in note(0.75)
    assert "--max-new-tokens" not in note(0.5)
    rule = "wrong then, unless a complete box stands after its thought"
    assert rule in note(0.5) and rule not in note(0.5, truncated="keep")


@pytest.mark.parametrize(
    "tokens, said", [(105.0, "100 to 105 (+5.0 %)"), (57.0, "100 to 57 (-43.0 %)"), (100.0, "100 to 100 (+0.0 %)")]
)
def test_a_model_that_got_longer_has_a_plus(tokens, said):
    headline = in_one_line(run_headlines(run_result(t=(0.6, tokens))))
    assert headline.startswith(f"Mean tokens {said}, accuracy 50.0 to 60.0 % (+10.0 points), AES ")
    assert "--" not in headline


def test_a_study_of_several_tests_joins_their_columns_in_markdown():
    def figures(accuracy: float) -> Figures:
        spread = Spread(accuracy, accuracy, accuracy)
        return Figures(spread, Spread(90.0, 80.0, 100.0), Spread(0.1, 0.1, 0.1), spread, None)

    rows = [
        StudyRow(name, None, runs, figures(0.5), {"a": figures(0.4), "b": figures(0.6)})
        for name, runs in (("base", []), ("x", ["seed-0/x"]))
    ]
    lines = to_markdown(*study_tables(StudyResult("compare", ["a", "b"], 2, rows, {}))).splitlines()
    assert lines[0] == (
        "|  | average accuracy | average tokens | average gain, points | average cut | average AES | "
        "a: accuracy / tokens / AES | b: accuracy / tokens / AES |"
    )
    assert lines[-1] == (
        "| x | 50.0 % | 90.0 (80.0 to 100.0) | +50.0 | 10.0 % | none | 40.0 % / 90.0 / none | 60.0 % / 90.0 / none |"
    )


def test_the_curve_of_a_study_ends_at_the_longest_budget():
    spread = Spread(0.5, 0.5, 0.5)
    measures = Measures(spread, None, None, spread, [1, 2, 4, 8, 1600], [0.0, 0.1, 0.25, 0.5, 0.75])
    figures = Figures(spread, spread, spread, spread, None)
    rows = [
        StudyRow("base", None, [], figures, {"a": figures}, measures=measures),
        StudyRow("x", "x", ["seed-0/x"], figures, {"a": figures}),
    ]
    table = study_tables(StudyResult("compare", ["a"], 1, rows, {}))[2]
    assert to_markdown(table).splitlines() == [
        "|  | accuracy within tokens 1 | accuracy within tokens 4 | accuracy within tokens 1,600 |",
        "| --- | --- | --- | --- |",
        "| base | 0.0 % | 25.0 % | 75.0 % |",
        "| x |  |  |  |",
    ]


def test_markdown_cells_stay_in_their_cell():
    table = Table("t", [Column("", label=True), Column("n")], [[Cell("a|b\n| c | <img> `x` [y](z) *"), Cell("1")]])
    assert to_markdown(table).splitlines()[2] == "| a\\|b \\| c \\| \\<img> \\`x\\` \\[y](z) \\* | 1 |"


def test_the_page_has_the_colours_of_the_plots():
    css = (Path(__file__).parents[2] / "o1core" / "report" / "page" / "page.css").read_text()
    light = css.split("@media")[0]
    for colour, name in COLOURS.items():
        assert re.search(rf"--{name}: {colour};", light), name


def test_a_plot_is_a_picture_of_its_charts(tmp_path):
    chart = Chart("a\x1b $b$", "", [], [], lambda axes: axes.plot([0, 1], [0, 1]) and None)
    write_png([chart, chart], "title\n\x07", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_items_are_evenly_spaced_from_the_first_to_the_last():
    assert evenly(range(101), 5) == [0, 25, 50, 75, 100]
    assert evenly("abc", 9) == ["a", "b", "c"]
    assert evenly("abc", 1) == ["a"]
