"""What is right and what is wrong, a table by kinds: units, signs, labels, words, small numbers, formulas, thoughts."""

from pathlib import Path

import pytest

from o1core.grading import Attempt, Grader

ROWS = [
    tuple(line.split("\t"))
    for line in Path(__file__).with_name("kinds.tsv").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.fixture(scope="module")
def verdicts():
    attempts = [Attempt(text.replace("⏎", "\n"), gold) for _, _, gold, text in ROWS]
    with Grader(workers=2, seconds=20) as grader:
        return dict(zip(ROWS, grader.grade_many(attempts)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[3]} for {row[2]}")
def test_the_verdict_of(row, verdicts):
    assert verdicts[row].correct is (row[1] == "right"), verdicts[row]
