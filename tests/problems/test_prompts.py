"""How a question is put: the same text wherever it is asked, and nothing in it taken for a format."""

from collections import Counter

import pytest

from o1core.errors import UserError
from o1core.problems import FORMS, INSTRUCTIONS, ask_in_form, drawn_budget, instruct
from o1core.types import Problem

QUESTION = r"Find {x} in $\frac{1}{2}x = {}$."


@pytest.mark.parametrize("form", FORMS)
def test_the_question_stands_whole_in_every_form(form):
    assert QUESTION in ask_in_form(Problem("1", QUESTION, "1"), form, None).question


def test_plain_is_the_question_itself():
    problem = Problem("1", QUESTION, "1", level="3", system="Be kind.")
    assert ask_in_form(problem, "plain", None) == problem


def test_boxed_asks_for_a_box():
    asked = ask_in_form(Problem("1", "1 + 1?", "2"), "boxed", None).question
    assert asked == "1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}."


def test_a_system_turn_is_added_only_where_there_is_none():
    assert ask_in_form(Problem("1", "q", "a"), "paper", "S").system == "S"
    assert ask_in_form(Problem("1", "q", "a", system="own"), "paper", "S").system == "own"
    assert ask_in_form(Problem("1", "q", "a"), "paper", None).system is None


@pytest.mark.parametrize("char", ["\ud800", "\udcff"])
def test_a_system_turn_that_no_tokenizer_reads_is_refused(char):
    with pytest.raises(UserError, match="--system: holds bytes that are not UTF-8"):
        ask_in_form(Problem("1", "q", "a"), "paper", f"S{char}")


def test_an_instruction_ends_the_question_and_states_the_budget():
    problem = Problem("1", QUESTION, "1")
    assert instruct(problem, "none", 7) == problem
    assert instruct(problem, "exact", 70).question == QUESTION + "\nThink for 70 tokens."
    assert instruct(problem, "max", 70).question == QUESTION + "\nThink for maximum 70 tokens."
    assert all(instruct(problem, name, 70).question.startswith(QUESTION) for name in INSTRUCTIONS)


def test_budgets_are_even_over_their_span_and_always_the_same():
    drawn = [drawn_budget(f"p{i}", 10, 14, 0) for i in range(5000)]
    assert drawn == [drawn_budget(f"p{i}", 10, 14, 0) for i in range(5000)]
    counts = Counter(drawn)
    assert sorted(counts) == [10, 11, 12, 13, 14]
    assert all(850 < n < 1150 for n in counts.values())  # 1000 +- 5 standard deviations
    assert drawn != [drawn_budget(f"p{i}", 10, 14, 1) for i in range(5000)]
