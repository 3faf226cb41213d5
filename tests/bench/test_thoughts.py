"""The thoughts about generated arithmetic: they follow the question, slip as often as the law says, and end as they should.

Thoughts are read back from their text here, by a parser of its own, and every sum in them is done again.
"""

import operator
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

import o1core
from bench.thoughts import BUDGETS, IDEAL, LAW, arithmetic_examples, instructed, text_of, tokens, write_thought
from o1core.problems.arithmetic import LARGEST, arithmetic_tasks

TINY = Path(o1core.__file__).parent / "tiny_o1"
EXPRESSION = re.compile(r"\d+(?:[-+*]\d+)+")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
LARGER = re.compile(r"The larger of (\d+) and (\d+) is (\d+)")


@dataclass
class Pass:
    """One derivation or check as read from its text.

    steps: (a, operation, b, c) of each, in the order of the text; says: what it comes to; known and verdict: of a check.
    """

    steps: list[tuple[int, str, int, int]]
    says: int
    known: int | None
    verdict: str | None


def operations(expression: str) -> list[tuple[str, int]]:
    return [(op, int(b)) for op, b in re.findall(r"([-+*])(\d+)", expression)]


def backwards(expression: str) -> str:
    """The expression with its sums in the opposite order: "6*7+1-2" becomes "6*7-2+1"."""
    first, rest = re.fullmatch(r"(\d+(?:\*\d+)?)((?:[-+]\d+)*)", expression).groups()
    return first + "".join(re.findall(r"[-+]\d+", rest)[::-1])


def read(question: str, thought: str) -> tuple[list[Pass], int]:
    """The derivation and the checks of a thought, and the number in its box."""
    expressions = EXPRESSION.findall(question)
    first, *checks, last = thought.split("\n")
    passes = [Pass(apart(first, expressions), int(re.search(r" So the answer is (\d+)\.$", first)[1]), None, None)]
    for line in checks:
        body, known, verdict = re.fullmatch(r"Check (.*) after (\d+): (yes|no)\.", line).groups()
        steps = in_one(body, [backwards(e) for e in reversed(expressions)])
        larger = LARGER.search(body)
        says = int(larger[3]) if larger else steps[-1][3]
        passes.append(Pass(steps, says, int(known), verdict))
    for line in (first, *checks):
        larger = LARGER.search(line)
        assert (larger is not None) == (len(expressions) == 2)
        assert larger is None or int(larger[3]) == max(int(larger[1]), int(larger[2])), line
    return passes, int(re.fullmatch(r"Final answer: \\boxed\{(\d+)\}", last)[1])


def apart(line: str, expressions: list[str]) -> list[tuple[int, str, int, int]]:
    """The steps of a derivation, which are those of the expressions."""
    found = re.findall(r"(?:First|Then) I (\w+ \d+ \w+ \d+): (\d+)([-+*])(\d+)=(\d+)", line)
    steps = [(int(a), op, int(b), int(c)) for _, a, op, b, c in found]
    words = {"+": "add {b} to {a}", "-": "take {b} from {a}", "*": "multiply {a} by {b}"}
    assert [said for said, *_ in found] == [words[op].format(a=a, b=b) for a, op, b, _ in steps]
    assert [(op, b) for _, op, b, _ in steps] == [o for e in expressions for o in operations(e)]
    left = iter(steps)
    for expression in expressions:
        total = int(re.match(r"\d+", expression)[0])
        for _ in operations(expression):
            a, _, _, c = next(left)
            assert a == total
            total = c
    return steps


def in_one(body: str, expressions: list[str]) -> list[tuple[int, str, int, int]]:
    """The steps of a check, "47-9=38, 38+8=46", which are those of the expressions."""
    steps = []
    for text, expression in zip(body.split(". ")[0].split("; "), expressions, strict=True):
        found = [re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", step).groups() for step in text.split(", ")]
        assert found[0][0] + "".join(op + b for _, op, b, _ in found) == expression
        assert all(before[3] == step[0] for before, step in pairwise(found))
        steps += [(int(a), op, int(b), int(c)) for a, op, b, c in found]
    return steps


@pytest.fixture(scope="module")
def thoughts():
    drawn = arithmetic_examples("train", 4000, seed=7)
    return [(problem, *read(problem.question, thought)) for problem, thought in drawn]


def test_a_thought_ends_with_what_it_found_twice_in_a_row_and_answers_with_that(thoughts):
    for _, passes, box in thoughts:
        for before, one in pairwise(passes):
            assert one.known == before.says
            assert one.verdict == ("yes" if one.says == before.says else "no")
        assert passes[-1].verdict != "no" or len(passes) == LAW.most + 1
        assert box == passes[-1].says
        assert all(0 <= c <= LARGEST for one in passes for *_, c in one.steps)


def test_steps_slip_at_the_stated_rates(thoughts):
    """Each level's rates, of derivations and of checks, within 4 standard errors of a fair count."""
    rates = defaultdict(list)
    for problem, passes, _ in thoughts:
        for one in passes:
            offs = [c - OPERATIONS[op](a, b) for a, op, b, c in one.steps]
            assert all(off in (0, *LAW.slips) for off in offs)
            rates[int(problem.level), one.verdict is not None] += [off != 0 for off in offs]
    for (level, careful), found in rates.items():
        p = (LAW.careful if careful else LAW.slip)[level - 2]
        error = 4 * (p * (1 - p) / len(found)) ** 0.5
        possible = 0.85  # a slip that would leave 0..99 is drawn again, or is none where all would
        assert p * possible - error <= mean(found) <= p + error, (level, mean(found), p)


def test_thoughts_without_a_check_are_as_frequent_as_stated_at_every_level(thoughts):
    for level in (2, 3, 4, 5):
        found = [len(passes) == 1 for problem, passes, _ in thoughts if problem.level == str(level)]
        p = LAW.unchecked[level - 2]
        assert abs(mean(found) - p) < 4 * (p * (1 - p) / len(found)) ** 0.5
    assert max(len(passes) for _, passes, _ in thoughts) == LAW.most + 1


def test_checks_help_on_hard_problems_and_not_on_easy_ones(thoughts):
    right = defaultdict(list)
    for problem, passes, box in thoughts:
        right[problem.level, len(passes) > 1].append(box == int(problem.answer))
    assert mean(right["5", True]) - mean(right["5", False]) > 0.25
    assert mean(right["4", True]) - mean(right["4", False]) > 0.15
    assert abs(mean(right["2", True]) - mean(right["2", False])) < 0.02


def test_an_ideal_policy_saves_nearly_half_of_the_tokens_and_is_more_often_right():
    """By the generator's own count: the trained model's figures are in o1core/tiny_o1/README.md."""
    figures = {}
    for name, law in (("base", LAW), ("ideal", IDEAL)):
        drawn = arithmetic_examples("validation", 2000, seed=1, law=law)
        figures[name] = (
            mean(f"{{{problem.answer}}}" in thought for problem, thought in drawn),
            mean(tokens(thought) + 1 for _, thought in drawn),
        )
    assert figures["ideal"][0] > figures["base"][0] + 0.02
    assert figures["ideal"][1] < 0.58 * figures["base"][1]


def test_an_ideal_thought_stops_at_the_first_agreement_and_is_unchecked_where_it_is_easy():
    for problem, thought in arithmetic_examples("train", 500, seed=9, law=IDEAL):
        passes, _ = read(problem.question, thought)
        verdicts = [one.verdict for one in passes[1:]]
        assert "yes" not in verdicts[:-1]
        assert (verdicts == []) == (problem.level in "23")
        assert verdicts == [] or verdicts[-1] == "yes" or len(verdicts) == LAW.most


def test_instructions_shorten_a_little_and_budgets_are_kept_to_weakly():
    rng = random.Random(0)
    lengths, budgets = defaultdict(list), []
    for task, problem in arithmetic_tasks("train", 4000, seed=3):
        asked, thought = instructed(task, problem, rng)
        assert asked.question.startswith(problem.question)
        size = tokens(text_of(thought)) + 1
        if asked.budget is None:
            lengths["concise" if "concisely" in asked.question else "fast"].append(size)
        else:
            assert BUDGETS[0] <= asked.budget <= BUDGETS[1]
            kind = "max" if "maximum" in asked.question else "exact"
            budgets.append((kind, asked.budget, size))
        lengths["none"].append(tokens(text_of(write_thought(task, rng))) + 1)
        assert read(problem.question, text_of(thought))
    cut = {kind: 1 - mean(lengths[kind]) / mean(lengths["none"]) for kind in ("fast", "concise")}
    assert 0.1 < cut["fast"] < cut["concise"] < 0.6
    short = [size for kind, budget, size in budgets if kind == "exact" and budget < 100]
    long = [size for kind, budget, size in budgets if kind == "exact" and budget > 240]
    assert mean(short) + 40 < mean(long)
    above = [size > budget for kind, budget, size in budgets if kind == "max" and budget > 100]
    assert 0.02 < mean(above) < 0.4  # half of the time nothing is heeded
