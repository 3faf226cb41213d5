"""What a checkpoint's thoughts stand between, prompts that begin one, and questions that hold its control tokens."""

import json

import pytest
from transformers import AutoTokenizer

from o1core.errors import UserError
from o1core.grading import THINK, ThoughtTags, after_thought, leaves_thought_open
from o1core.model import Tokenizer
from o1core.types import Problem
from tests.model.test_marco_qwq_prompts import template_of

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
)
PREFILLED = TURNS + "{{ '<think>\n' }}{% endif %}"  # as DeepSeek's distillations have it
SWITCHED = (
    TURNS + "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)  # as Qwen3's
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def opened(folder, template, tokens=(), special=False, **given) -> Tokenizer:
    """A tokenizer with this template and these added tokens."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": template}
    named = {str(259 + i): ADDED | {"content": token, "special": special} for i, token in enumerate(tokens)}
    if named:
        for i, token in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
            named[str(256 + i)] = ADDED | {"content": token, "special": True}
        config["added_tokens_decoder"] = named
    path.write_text(json.dumps(config))
    return Tokenizer(folder, 272, **given)


def opens(tokenizer, **asked) -> bool:
    return leaves_thought_open(tokenizer.decode(tokenizer.prompt("2 + 2?", **asked), special=True), tokenizer.tags)


@pytest.mark.parametrize(
    ("template", "tokens", "tags"),
    [
        (TURNS + "{% endif %}", (), THINK),
        (PREFILLED, (), THINK),
        (PREFILLED, ("<think>", "</think>"), THINK),
        (TURNS + "{% endif %}", ("<thought>", "</thought>"), ThoughtTags(("<thought>",), ("</thought>",))),
        (TURNS + "{{ '[THINK]' }}{% endif %}", (), ThoughtTags(("[THINK]",), ("[/THINK]",))),
        (TURNS + "{{ '<seed:think>' }}{% endif %}", (), ThoughtTags(("<seed:think>",), ("</seed:think>",))),
        (
            TURNS + "{% endif %}",
            ("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>"),
            ThoughtTags(("<|begin_of_thought|>",), ("<|end_of_thought|>", "<|begin_of_solution|>")),
        ),
        (
            TURNS + "{% endif %}",
            ("<|START_THINKING|>", "<|END_THINKING|>"),
            ThoughtTags(("<|START_THINKING|>",), ("<|END_THINKING|>",)),
        ),
        ("marco-o1", (), ThoughtTags(("<Thought>",), ("</Thought>", "<Output>"))),
        ("qwq-32b", (), THINK),
    ],
)
def test_the_tags_are_the_checkpoints_own(checkpoint, template, tokens, tags):
    text = template_of(template) if template in ("marco-o1", "qwq-32b") else template
    assert opened(checkpoint, text, tokens).tags == tags


def test_the_answer_of_marco_o1_is_what_follows_its_thought(checkpoint):
    tags = opened(checkpoint, template_of("marco-o1")).tags
    said = r"<Thought>Is it \boxed{5}?</Thought>" + "\n" + r"<Output>It is \boxed{4}.</Output>"
    assert after_thought(said, tags) == r"It is \boxed{4}.</Output>"
    assert after_thought(r"<Thought>Is it \boxed{5}? <Output>\boxed{4}", tags) == r"\boxed{4}"
    assert after_thought(r"<Thought>Is it \boxed{5}?", tags) is None


def test_the_system_turn_may_name_the_tags(checkpoint):
    tokenizer = opened(checkpoint, TURNS + "{% endif %}")
    system = "Think between <|begin_of_thought|> and <|end_of_thought|>."
    assert tokenizer.find_tags(system=system) == ThoughtTags(("<|begin_of_thought|>",), ("<|end_of_thought|>",))
    assert tokenizer.find_tags(("<|begin_of_thought|>", "<|end_of_thought|>"), system) == tokenizer.tags


@pytest.mark.parametrize("tokens", [(), ("<think>", "</think>")])
def test_a_prompt_that_its_template_ends_inside_a_thought(checkpoint, tokens):
    tokenizer = opened(checkpoint, PREFILLED, tokens)
    assert opens(tokenizer) and opens(tokenizer, system="Be brief.")
    theirs = AutoTokenizer.from_pretrained(checkpoint)
    turns = [{"role": "user", "content": "2 + 2?"}]
    ids = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert tokenizer.prompt("2 + 2?") == ids


def test_a_switch_of_the_template_closes_the_thought(checkpoint):
    assert not opens(opened(checkpoint, SWITCHED))
    assert not opens(opened(checkpoint, SWITCHED, template_values={"enable_thinking": False}))


def test_a_tag_in_the_question_opens_no_thought(checkpoint):
    for tokens in ((), ("<think>", "</think>")):
        tokenizer = opened(checkpoint, TURNS + "{% endif %}", tokens)
        text = tokenizer.decode(tokenizer.prompt("What is <think>"), special=True)
        assert "<think>" in text and not leaves_thought_open(text, tokenizer.tags)


@pytest.mark.parametrize("special", [True, False])
def test_the_text_of_a_completion_keeps_the_tags_of_its_thought(checkpoint, special):
    """Some checkpoints have them as special tokens, which a completion's text is read without."""
    tokenizer = opened(checkpoint, PREFILLED, ("<think>", "</think>", "<tool>"), special)
    ids = tokenizer.encode("<think>a</think>b<tool><|im_end|>")
    assert tokenizer.decode(ids) == "<think>a</think>b" + ("" if special else "<tool>")
    assert tokenizer.decode(ids, special=True) == "<think>a</think>b<tool><|im_end|>"
    assert tokenizer.find_tags(("<tool>", "</think>")).opens == ("<tool>",)
    assert tokenizer.decode(ids) == ("a</think>b<tool>" if special else "<think>a</think>b<tool>")


@pytest.mark.parametrize(
    ("stated", "missing"),
    [
        (("<foo>", "</foo>"), "<foo>"),
        (("<think>", "<done>"), "<done>"),
        (("<done>", "</think>"), "<done>"),
        (("<foo>", "</think>"), "<foo>"),
    ],
)
def test_tags_that_occur_nowhere_are_refused(checkpoint, stated, missing):
    tokenizer = opened(checkpoint, PREFILLED, ("<think>", "</think>"))
    with pytest.raises(UserError, match=f"^--thought-tags {','.join(stated)}: {missing} occurs neither") as error:
        tokenizer.find_tags(stated)
    assert str(checkpoint) in str(error.value) and tokenizer.tags == THINK


def test_a_closing_tag_may_go_without_saying(checkpoint):
    tokenizer = opened(checkpoint, template_of("marco-o1"))
    assert tokenizer.find_tags(("<Output>", "</Output>")) == ThoughtTags(("<Output>",), ("</Output>",))


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|user|>"])
@pytest.mark.parametrize("template", [TURNS + "{{ '<|user|>' if false }}{% endif %}", None])
def test_a_problem_that_holds_a_control_token_is_refused(checkpoint, template, token):
    tokenizer = opened(checkpoint, template, ("<|user|>", "<b>", "\n\n"))
    if token == "<|user|>" and template is None:  # then nothing is made of it
        return
    problems = [Problem("a", "2 + 2?", "4"), Problem("b", f"Say {token} 3", "3"), Problem("c", "x", "1", system=token)]
    message = rf"turn holds '{token}', a control token of {checkpoint}: .*; take the problem out, or spell"
    for name in "bc":
        with pytest.raises(
            UserError, match=rf"^problem '{name}': .*".replace("|", r"\|") + message.replace("|", r"\|")
        ):
            tokenizer.prompts([p for p in problems if p.id in ("a", name)])
    asked = [Problem("a", "Is <b>x</b> bold?\n\nSay so.", "yes"), Problem("b", "| im_end |", "1")]
    assert [tokenizer.decode(ids).count("bold") for ids in tokenizer.prompts(asked)] == [1, 0]


def test_all_prompts_are_rendered_and_the_one_that_fails_is_named(checkpoint):
    template = TURNS + "{% endif %}{% if 'slow' in messages[0].content %}{{ 'x' * 10**9 }}{% endif %}"
    tokenizer = opened(checkpoint, template)
    problems = [Problem(str(i), "2 + 2?", "4") for i in range(3)]
    assert tokenizer.prompts(problems) == [tokenizer.prompt("2 + 2?")] * 3
    with pytest.raises(UserError, match=r"^problem '7': .*model: chat template cannot be rendered: it needs more than"):
        tokenizer.prompts([*problems, Problem("7", "a slow one", "4")])
    length = len(tokenizer.prompt("2 + 2?"))
    assert tokenizer.prompts(problems, length + 1)
    with pytest.raises(UserError, match=rf"^problem '0': a prompt of {length} tokens, and the model's context holds"):
        tokenizer.prompts(problems, length)
