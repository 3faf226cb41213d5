"""The numbers of a chart, against ones counted by hand."""

import numpy as np

from o1core.charts import write_png
from o1core.metrics import Answers
from o1core.report.run_charts import MOST_MARKS, each_problem, first_steps


def test_each_problem_is_marked_by_what_became_of_its_accuracy():
    lengths = np.array([[10, 30], [40, 60], [20, 20], [8, 8]])
    before = Answers("abcd", lengths, np.array([[1, 0], [1, 1], [0, 0], [1, 1]], bool))
    lengths = np.array([[10, 20], [30, 50], [30, 20], [8, 8]])
    after = Answers("abcd", lengths, np.array([[1, 1], [1, 0], [0, 0], [1, 1]], bool))
    chart = each_problem(before, after)
    assert chart.rows == [
        ["as often right", "2", "14.0", "16.5", "0"],
        ["more often right", "1", "20.0", "15.0", "1"],
        ["less often right", "1", "50.0", "40.0", "1"],
    ]
    assert "shorter after, 2 of 4 problems" in chart.note


def test_thousands_of_problems_are_thinned_in_the_picture_and_counted_whole(tmp_path):
    count = 2 * MOST_MARKS + 1
    side = Answers([""] * count, np.arange(count)[:, None], np.zeros((count, 1), bool))
    chart = each_problem(side, side)
    assert chart.rows == [["as often right", str(count), f"{count // 2}.0", f"{count // 2}.0", "0"]]
    assert f"Drawn: {-(-count // 3):,}" in chart.note  # every third
    write_png([chart], "", tmp_path / "chart.png")


def test_rounds_are_marked_where_they_begin():
    log = [{"step": step, "round": number} for step, number in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2))]
    assert first_steps([*log[:2], {"step": 9}, *log[2:]]) == [3, 5]
    assert first_steps(log[:2]) == []
