"""Selection by level and subject."""

import pytest

from o1core.errors import UserError
from o1core.problems import parse_levels, parse_subjects, select
from o1core.types import Problem

MIXED = [
    Problem("a", "1?", "1", level="3", subject="Algebra"),
    Problem("b", "2?", "2", level="4", subject="Number Theory"),
    Problem("c", "3?", "3", level="5", subject="Algebra"),
    Problem("d", "4?", "4"),
]


@pytest.mark.parametrize(
    ("levels", "subjects", "ids"),
    [
        (None, None, "abcd"),
        (["3", "5"], None, "ac"),
        ({"4"}, None, "b"),
        (None, ["algebra"], "ac"),
        (["5", "4"], ["ALGEBRA", "number theory"], "bc"),
    ],
)
def test_select(levels, subjects, ids):
    assert "".join(problem.id for problem in select(MIXED, levels, subjects)) == ids


def test_a_selection_that_leaves_nothing_says_what_there_is():
    with pytest.raises(UserError, match=r'level "6"; there are: 3 \(1\), 4 \(1\), 5 \(1\)$'):
        select(MIXED, levels=["3", "6"])
    with pytest.raises(UserError, match=r'subject "Biology"; there are: Algebra \(2\), Number Theory \(1\)$'):
        select(MIXED, subjects=["Biology"])
    with pytest.raises(UserError, match=r"one of these subjects; there are: Algebra, level 3 \(1\), .*, level 4 \(1\)"):
        select(MIXED, levels=["4"], subjects=["Algebra"])
    with pytest.raises(UserError, match="there are: none"):
        select(MIXED[3:], levels=["1"])


def test_parse_levels_and_subjects():
    assert parse_levels("3,4, 5") == parse_levels("3-5") == ["3", "4", "5"]
    assert parse_levels("1,3-4,Level 5,hard") == ["1", "3", "4", "5", "hard"]
    assert parse_subjects("Algebra, Number Theory") == ["Algebra", "Number Theory"]
    with pytest.raises(UserError, match='"5-3" runs backwards; write 3-5'):
        parse_levels("5-3")
    for text in ("", "3,,4", "3,"):
        with pytest.raises(UserError, match="empty entry"):
            parse_levels(text)
