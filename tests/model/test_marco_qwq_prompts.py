"""The prompts of the paper's two models, by chat templates of the published structure in our own words (tests/data)."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from o1core.model import Tokenizer

DATA = Path(__file__).parents[1] / "data"
BOTH = ("marco-o1", "qwq-32b")
MARCO_SYSTEM = (  # with the published one's line feed in front and its indented line and end
    "\n你是一个解数学题的助手。\n        \n## 请注意！\n先在<Thought>内思考，再在<Output>内写出答案。\n"
    "<Thought>用英文，公式用markdown；<Output>用提问的语言。\n        "
)
QWQ_SYSTEM = "You solve problems with care. Think step by step."
RENDERED = [
    (
        "marco-o1",
        [{"role": "user", "content": "What is 2 + 2?"}],
        f"<|im_start|>system\n{MARCO_SYSTEM}<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "marco-o1",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "二加二？"}],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n二加二？<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "marco-o1",  # the default turn stands where the first message is no system one, whatever comes later
        [
            {"role": "user", "content": "2 + 2"},
            {"role": "assistant", "content": "<Thought>Easy.</Thought>\n<Output>4</Output>"},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Sure? "},
        ],
        f"<|im_start|>system\n{MARCO_SYSTEM}<|im_end|>\n<|im_start|>user\n2 + 2<|im_end|>\n"
        "<|im_start|>assistant\n<Thought>Easy.</Thought>\n<Output>4</Output><|im_end|>\n"
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSure? <|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "qwq-32b",
        [{"role": "user", "content": "What is 2 + 2?"}],
        f"<|im_start|>system\n{QWQ_SYSTEM}<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "qwq-32b",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Let $x < 3$.\nFind $x$."}],
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nLet $x < 3$.\nFind $x$.<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "qwq-32b",  # messages with calls and their answers, though no tools are offered
        [
            {"role": "user", "content": "17 * 19?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "times", "arguments": {"a": 17, "b": 19}}}],
            },
            {"role": "tool", "content": "323"},
            {"role": "assistant", "content": "It is 323."},
            {"role": "user", "content": "And doubled?"},
        ],
        f"<|im_start|>system\n{QWQ_SYSTEM}<|im_end|>\n<|im_start|>user\n17 * 19?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "times", "arguments": {"a": 17, "b": 19}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n323\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nIt is 323.<|im_end|>\n<|im_start|>user\nAnd doubled?<|im_end|>\n<|im_start|>assistant\n",
    ),
]


def template_of(name: str) -> str:
    return json.loads((DATA / name / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]


@pytest.mark.parametrize(("name", "messages", "expected"), RENDERED)
def test_a_prompt_is_rendered_as_written_here_and_by_transformers(checkpoint, edit_json, name, messages, expected):
    edit_json(checkpoint / "tokenizer_config.json", chat_template=template_of(name))
    ours, theirs = Tokenizer(checkpoint, 272), AutoTokenizer.from_pretrained(checkpoint)
    assert ours.render(messages) == expected
    assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode(ours.render(messages)) == ids
    assert ids.count(ours.token_id("<|im_start|>")) == expected.count("<|im_start|>")  # one id, not 12 bytes


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("system", [None, "Be brief.", ""])
def test_the_prompt_of_a_question_ends_where_the_answer_begins(checkpoint, edit_json, name, system):
    edit_json(checkpoint / "tokenizer_config.json", chat_template=template_of(name))
    tokenizer = Tokenizer(checkpoint, 272)
    ids = tokenizer.prompt("What is 2 + 2?", system=system)
    default = {"marco-o1": MARCO_SYSTEM, "qwq-32b": QWQ_SYSTEM}[name]
    assert tokenizer.decode(ids, special=True) == (
        f"<|im_start|>system\n{default if system is None else system}<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )
