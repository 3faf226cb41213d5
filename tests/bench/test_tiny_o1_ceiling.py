"""The ceiling in tiny-o1's tables: what the generator's ideal policy makes of the problems of a test."""

import pytest

from bench.thoughts import IDEAL, LAW
from bench.tiny_o1_ceiling import SAMPLES, asked, ceiling
from o1core.recipe import EvaluationSettings, SelectionSettings
from o1core.runs.job import BY_LEVEL, generated_by_level, generated_tests


def test_it_is_taken_on_the_problems_that_a_run_evaluates_on():
    settings, everything = EvaluationSettings(problems=40), SelectionSettings()
    assert [p for _, p in asked(40, 5, "2-5")] == generated_tests(settings, everything, 5)["arithmetic"]
    by_level = generated_by_level(settings, everything, 5)
    assert {name: [p for _, p in asked(40, 5, levels)] for name, levels in BY_LEVEL.items()} == by_level


def test_where_nothing_is_checked_it_is_right_as_often_as_no_step_slips():
    """An easy thought is the derivation alone: right with (1 - slip) ** 2 at level 2 where every term counts."""
    assert IDEAL.unchecked[0] == 1
    found = ceiling(300, 0, "2")
    right = (1 - LAW.slip[0]) ** 2
    assert found.accuracy == pytest.approx(right, abs=4 * (right * (1 - right) / (300 * SAMPLES)) ** 0.5 + LAW.slip[0])
    assert 50 < found.tokens < 75  # two steps of some 20 tokens, and 20 for the answers


def test_it_slips_as_its_teacher_does():
    """Three steps slip often enough for a policy that never slips to be told apart from it."""
    found = ceiling(600, 0, "3")
    right = (1 - LAW.slip[1]) ** 3
    error = 4 * (right * (1 - right) / (600 * SAMPLES)) ** 0.5
    harmless = 0.4 * (1 - right)  # a slip in the smaller of two chains, or one that cannot be and is none
    assert right - error < found.accuracy < right + error + harmless < 1
