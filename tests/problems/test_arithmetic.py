"""The generated arithmetic: problems that keep their splits apart, and the model that is shipped with them."""

import ast
import re
from pathlib import Path
from statistics import mean

import pytest

import o1core.model
from bench.thoughts import arithmetic_examples
from o1core.files import read_json
from o1core.model import Tokenizer, read_config
from o1core.problems import arithmetic_problems
from o1core.problems.arithmetic import (
    LARGER_WORDINGS,
    LARGEST,
    SPLITS,
    SUM_WORDINGS,
    Chain,
    arithmetic_tasks,
    normal_form,
)

TINY = Path(o1core.__file__).parent / "tiny_o1"
EXPRESSION = re.compile(r"\d+(?:[-+*]\d+)+")


def value(expression: str) -> int:
    """What an expression comes to, by Python's own parser and precedence."""
    return eval(compile(ast.parse(expression, mode="eval"), "expression", "eval"), {"__builtins__": {}})


@pytest.fixture(scope="module")
def drawn():
    return arithmetic_examples("train", 4000, seed=7)


def test_splits_share_no_problem_even_with_their_terms_in_another_order():
    seen = {
        split: {terms(p.question) for seed in (0, 1) for p in arithmetic_problems(split, 1500, seed)}
        for split in SPLITS
    }
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def terms(question: str) -> tuple[tuple[str, ...], ...]:
    """The signed terms of each expression of a question in a fixed order, products with their factors in order: read from
    the text."""
    found = []
    for expression in EXPRESSION.findall(question):
        parts = re.findall(r"[-+][\d*]+", "+" + expression)
        assert "".join(parts) == "+" + expression
        found.append(tuple(sorted(part[0] + "*".join(sorted(part[1:].split("*"))) for part in parts)))
    return tuple(sorted(found))


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    assert arithmetic_examples("test", 50, seed=3) == arithmetic_examples("test", 50, seed=3)
    assert arithmetic_problems("test", 50, seed=3) != arithmetic_problems("test", 50, seed=4)
    assert len({p.id for p in arithmetic_problems("test", 50, seed=3)}) == 50


def test_answers_are_what_python_makes_of_the_question(drawn):
    for problem, _ in drawn:
        expressions = EXPRESSION.findall(problem.question)
        assert max(map(value, expressions)) == int(problem.answer), problem
        assert len(re.findall("[-+*]", " ".join(expressions))) == int(problem.level)


def test_both_kinds_are_asked_in_every_wording(drawn):
    for wordings, expressions in ((SUM_WORDINGS, 1), (LARGER_WORDINGS, 2)):
        asked = {
            EXPRESSION.sub("{}", p.question) for p, _ in drawn if len(EXPRESSION.findall(p.question)) == expressions
        }
        assert asked == set(wordings)
    assert len(SUM_WORDINGS) == 10


def test_totals_stay_in_range_both_ways_and_two_results_differ():
    for task, _ in arithmetic_tasks("train", 2000, seed=1):
        for chain in task.chains:
            assert all(0 <= total <= LARGEST for total in (*chain.totals, *chain.other_way.totals))
            assert chain.totals[-1] == chain.other_way.totals[-1]
        assert len({chain.totals[-1] for chain in task.chains}) == len(task.chains)


def test_terms_in_another_order_are_the_same_problem():
    chains = {"6*7+15-8": "+15 +6*7 -8", "7*6+15-8": "+15 +6*7 -8", "47+38-19": "+38 +47 -19"}
    for text, expected in chains.items():
        assert normal_form(chain(text)) == expected


def chain(text: str) -> Chain:
    first, *rest = re.findall(r"\d+|[-+*]", text)
    return Chain(int(first), tuple(zip(rest[::2], map(int, rest[1::2]))))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TINY, read_config(TINY).vocab_size)


def test_nearly_all_thoughts_fit_in_the_recipe_and_the_shortest_is_within_5_times_of_the_mean(drawn, tokenizer):
    lengths = [len(tokenizer.encode(thought)) + 1 for _, thought in drawn]
    assert mean(lengths) / min(lengths) < 5
    assert mean(length <= 440 for length in lengths) > 0.97
    assert max(lengths) + 60 < read_json(TINY / "config.json")["max_position_embeddings"]


def test_numbers_are_one_token_a_digit_and_words_are_whole(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("Check 47-9=38, 38 after 45: no.\nFinal answer")]
    assert pieces == [
        "Check",
        " ",
        *"47-9=38",
        ",",
        " ",
        *"38",
        " after",
        " ",
        *"45",
        ":",
        " no",
        ".\n",
        "Final",
        " answer",
    ]


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
    ours, _ = o1core.model.load(TINY)
    assert 1_000_000 <= sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in model.parameters())
