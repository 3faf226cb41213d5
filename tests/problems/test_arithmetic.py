"""The generated arithmetic: problems that keep their splits apart, and thoughts that go wrong as often as they should.

Thoughts are read back from their text here, by a parser of its own, and every sum in them is done again.
"""

import ast
import operator
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

import o1core
from o1core.model import Tokenizer
from o1core.problems import arithmetic_examples, arithmetic_problems
from o1core.problems.arithmetic import LARGEST, LAW, RECHECKS, SPLITS, Chain, normal_form

TINY = Path(o1core.__file__).parent / "tiny_o1"
EXPRESSION = re.compile(r"\d+(?:[-+*]\d+)+")
STEP = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass
class Pass:
    """One derivation of a thought as read from its text: (a, operation, b, c) of each step, and what it concludes."""

    steps: list[tuple[int, str, int, int]]
    says: int
    verdict: str | None


def read(thought: str) -> tuple[list[Pass], int]:
    """The derivations of a thought and the number in its box."""
    *lines, last = thought.split("\n")
    passes = []
    for i, line in enumerate(lines):
        steps = [(int(a), op, int(b), int(c)) for a, op, b, c in STEP.findall(line)]
        end = re.search(r"So the answer is (\d+)\.$" if i == 0 else r"(Yes|No), (\d+)\.$", line)
        assert end, line
        assert i == 0 or line.startswith(RECHECKS)
        passes.append(Pass(steps, int(end.groups()[-1]), end[1] if i else None))
    return passes, int(re.fullmatch(r"Final answer: \\boxed\{(\d+)\}", last)[1])


def value(expression: str) -> int:
    """What an expression comes to, by Python's own parser and precedence."""
    return eval(compile(ast.parse(expression, mode="eval"), "expression", "eval"), {"__builtins__": {}})


@pytest.fixture(scope="module")
def drawn():
    return arithmetic_examples("train", 4000, seed=7)


@pytest.fixture(scope="module")
def thoughts(drawn):
    return [(problem, *read(thought)) for problem, thought in drawn]


def test_splits_share_no_problem_even_with_their_terms_in_another_order():
    seen = {
        split: {terms(p.question) for seed in (0, 1) for p in arithmetic_problems(split, 1500, seed)}
        for split in SPLITS
    }
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def terms(question: str) -> tuple[str, ...]:
    """The signed terms of a question in a fixed order, products with their factors in order: read from the text."""
    expression = EXPRESSION.search(question)[0]
    parts = re.findall(r"[-+][\d*]+", "+" + expression)
    assert "".join(parts) == "+" + expression
    return tuple(sorted(part[0] + "*".join(sorted(part[1:].split("*"))) for part in parts))


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    assert arithmetic_examples("test", 50, seed=3) == arithmetic_examples("test", 50, seed=3)
    assert arithmetic_problems("test", 50, seed=3) != arithmetic_problems("test", 50, seed=4)
    assert len({p.id for p in arithmetic_problems("test", 50, seed=3)}) == 50


def test_answers_are_what_python_makes_of_the_question(drawn):
    for problem, _ in drawn:
        expression = EXPRESSION.search(problem.question)[0]
        assert value(expression) == int(problem.answer), problem
        assert len(re.findall("[-+*]", expression)) == int(problem.level)


def test_terms_in_another_order_are_the_same_problem():
    chains = {"6*7+15-8": "+15 +6*7 -8", "7*6+15-8": "+15 +6*7 -8", "47+38-19": "+38 +47 -19"}
    for text, expected in chains.items():
        assert normal_form(chain(text)) == expected


def chain(text: str) -> Chain:
    first, *rest = re.findall(r"\d+|[-+*]", text)
    return Chain(int(first), tuple(zip(rest[::2], map(int, rest[1::2]))))


def test_each_derivation_follows_the_question_and_stays_in_range(thoughts):
    for problem, passes, _ in thoughts:
        first, *rest = re.findall(r"\d+|[-+*]", EXPRESSION.search(problem.question)[0])
        operations = list(zip(rest[::2], map(int, rest[1::2])))
        for one in passes:
            assert [(op, b) for _, op, b, _ in one.steps] == operations
            assert [a for a, *_ in one.steps] == [int(first), *(c for *_, c in one.steps[:-1])]
            assert all(0 <= c <= LARGEST for *_, c in one.steps)
            assert one.says == one.steps[-1][3]


def test_the_box_and_the_verdicts_agree_with_what_was_derived(thoughts):
    for _, passes, box in thoughts:
        assert box == passes[-1].says
        for before, after in pairwise(passes):
            assert after.verdict == ("Yes" if after.says == before.says else "No")


def test_slips_happen_at_the_stated_rates(thoughts):
    """Each rate against its law, within 4 standard errors of a fair count."""
    rates = defaultdict(list)
    for _, passes, _ in thoughts:
        rates["slip_first"] += wrong_steps(passes[0])
        for before, after in pairwise(passes):
            if not any(wrong_steps(before)):
                rates["slip"] += wrong_steps(after)
            else:
                rates["repeat"].append(after.steps == before.steps)
    for name, found in rates.items():
        p = getattr(LAW, name)
        error = 4 * (p * (1 - p) / len(found)) ** 0.5
        # A fresh start may make the same slip again, with a chance of at most slip * steps / kinds of slip.
        extra = (1 - p) * LAW.slip if name == "repeat" else 0
        assert p - error <= mean(found) <= p + extra + error, (name, mean(found), p)


def wrong_steps(one: Pass) -> list[bool]:
    """For each step, whether its sum is wrong; if so it must be off by one of the stated amounts."""
    offs = [c - OPERATIONS[op](a, b) for a, op, b, c in one.steps]
    assert all(off in (0, *LAW.slips) for off in offs)
    return [off != 0 for off in offs]


def test_longer_is_less_accurate_and_harder_is_longer(thoughts):
    by_rechecks, by_level = defaultdict(list), defaultdict(list)
    for problem, passes, box in thoughts:
        by_rechecks[min(len(passes) - 1, 3)].append(box == int(problem.answer))
        by_level[int(problem.level)].append((len(passes), sum(len(p.steps) for p in passes)))
    accuracy = [mean(by_rechecks[r]) for r in range(4)]
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] > 0.97
    assert accuracy[3] < 0.75
    for hard, easy in ((5, 3), (4, 2)):
        assert mean(p for p, _ in by_level[hard]) > mean(p for p, _ in by_level[easy])
        assert mean(s for _, s in by_level[hard]) > 1.4 * mean(s for _, s in by_level[easy])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TINY, vocab_size=384)


def test_the_shortest_thought_is_within_4_times_of_the_mean_at_every_level(drawn, tokenizer):
    lengths = defaultdict(list)
    for problem, thought in drawn:
        lengths[problem.level].append(len(tokenizer.encode(thought)) + 1)
    for level, found in lengths.items():
        assert mean(found) / min(found) < 4, level
    everything = [length for found in lengths.values() for length in found]
    assert mean(everything) / min(everything) < 4
    assert mean(thought.count("\n") == 1 for _, thought in drawn) > 0.1
    assert max(everything) + 40 < 512


def test_numbers_are_one_token_a_digit_and_words_are_whole(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("Wait, let me check that again. 47+8=55, so it is.")]
    assert pieces[:8] == ["Wait", ",", " let", " me", " check", " that", " again", "."]
    assert pieces[8:17] == [" ", "4", "7", "+", "8", "=", "5", "5", ","]


def test_the_shipped_folder_is_small_and_transformers_reads_it_as_we_do(drawn, tokenizer):
    transformers = pytest.importorskip("transformers")
    assert sum(f.stat().st_size for f in TINY.iterdir()) < 4_000_000
    theirs = transformers.AutoTokenizer.from_pretrained(TINY)
    for problem, thought in drawn[:50]:
        turns = [{"role": "user", "content": problem.question}]
        rendered = theirs.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert rendered == tokenizer.render(turns)
        assert theirs(rendered)["input_ids"] == tokenizer.prompt(problem.question)
        assert theirs(thought)["input_ids"] == tokenizer.encode(thought)
    assert theirs.eos_token_id in tokenizer.eos_ids
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY)
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    ours, _ = o1core.load(TINY)
    assert 1_000_000 <= sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in model.parameters())
