"""Prompts as transformers renders them, from templates that are strangers' programs."""

import datetime
import json

import pytest
from transformers import AutoTokenizer

from o1core.errors import UserError
from o1core.model import Tokenizer

# Our own short templates, of the structure of the published ones.
DEFAULT_SYSTEM_IN_LOOP = (  # as Marco-o1's and SmolLM2's
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n你是一个助手。\n<Thought> 和 <Output> 标签。<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM_AND_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou should think step-by-step.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {{- tool_call.arguments | tojson }}
        {%- endfor %}
        {{- '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""  # as Qwen2.5's and QwQ's
REVERSED_WITH_NAMESPACE = """{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') if loop.index0 < ns.last else message.content %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""  # as Qwen3's
SPECIAL_NAMES = """{% if bos_token is defined %}{{ bos_token }}{% endif %}
{% for message in messages %}
    {% if message['role'] == 'system' and not loop.first %}
{{ raise_exception('A system turn comes first') }}
    {% endif %}
{{ message['content'].strip() }}{{ eos_token }}
{% endfor %}
{{ {"b": "é", "a": [1, none]} | tojson }}{{ {"b": "<é>", "a": 1} | tojson(indent=2) }}
{{ strftime_now('%Y') }}"""
TEMPLATES = {
    "default system turn in the loop": DEFAULT_SYSTEM_IN_LOOP,
    "default system turn and tools": DEFAULT_SYSTEM_AND_TOOLS,
    "reversed with a namespace": REVERSED_WITH_NAMESPACE,
    "special names": SPECIAL_NAMES,
}
CONVERSATIONS = {
    "question": [{"role": "user", "content": "What is 2 + 2? <b>&\n"}],
    "own system turn": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi"}],
    "several turns": [
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "<think>Wait.</think>\n4"},
        {"role": "user", "content": "是吗？"},
    ],
}


def put_template(folder, template) -> Tokenizer:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return Tokenizer(folder, 272)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_rendered_and_encoded_as_transformers_does(checkpoint, template, conversation):
    messages = CONVERSATIONS[conversation]
    ours = put_template(checkpoint, TEMPLATES[template])
    theirs = AutoTokenizer.from_pretrained(checkpoint)
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.render(messages) == text
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode(ours.render(messages)) == ids
    assert ours.decode(ids, special=True) == theirs.decode(ids)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_template_in_its_own_file_comes_first(checkpoint):
    (checkpoint / "chat_template.jinja").write_text("Q: {{ messages[-1].content }}\nA:", encoding="utf-8")
    tokenizer = Tokenizer(checkpoint, 272)
    assert tokenizer.render([{"role": "user", "content": "why"}]) == "Q: why\nA:"
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template == "Q: {{ messages[-1].content }}\nA:"


def test_of_several_named_templates_the_default_one(checkpoint):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}!"}]
    assert put_template(checkpoint, named).render([{"role": "user", "content": "yes"}]) == "yes!"


def test_prompt_with_and_without_a_system_turn(checkpoint):
    tokenizer = put_template(checkpoint, DEFAULT_SYSTEM_AND_TOOLS)
    asked = tokenizer.decode(tokenizer.prompt("2 + 2"), special=True)
    assert asked.startswith("<|im_start|>system\nYou should think step-by-step.<|im_end|>\n<|im_start|>user\n2 + 2")
    told = tokenizer.decode(tokenizer.prompt("2 + 2", system="Be brief."), special=True)
    assert told == asked.replace("You should think step-by-step.", "Be brief.")
    assert tokenizer.prompt("x").count(tokenizer.token_id("<|im_start|>")) == 3  # special tokens are one id each


def test_no_template_is_plain_text(checkpoint):
    tokenizer = put_template(checkpoint, None)
    assert tokenizer.decode(tokenizer.prompt("2 + 2 =")) == "2 + 2 ="


def test_the_day_of_today(checkpoint):
    tokenizer = put_template(checkpoint, "{{ strftime_now('%Y-%m') }}")
    assert tokenizer.render([]) == datetime.datetime.now().strftime("%Y-%m")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__ }}",
        "{{ (messages|attr('__class__')).__base__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__base__}'.format(messages) }}",
        "{{ messages['__class__'] }}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_that_leaves_the_sandbox_is_refused(checkpoint, template):
    tokenizer = put_template(checkpoint, template)
    with pytest.raises(UserError, match="chat template cannot be rendered") as error:
        tokenizer.render([{"role": "user", "content": "x"}])
    assert str(checkpoint) in str(error.value) and "\n" not in str(error.value)


def test_what_a_template_says_when_it_rejects_a_conversation(checkpoint):
    tokenizer = put_template(checkpoint, SPECIAL_NAMES)
    turns = [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]
    with pytest.raises(UserError, match="A system turn comes first"):
        tokenizer.render(turns)


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ 1", 5, [{"name": "tool_use", "template": "x"}], [3]]
)
def test_a_template_that_is_none(checkpoint, template):
    with pytest.raises(UserError, match="chat template cannot be read") as error:
        put_template(checkpoint, template)
    assert str(checkpoint) in str(error.value) and "\n" not in str(error.value)


def test_eos_of_generation_config(checkpoint):
    assert Tokenizer(checkpoint, 272).eos_ids == (256, 258)  # [258, 256] there, and the tokenizer's own is 258


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [
        ({"eos_token_id": 7}, 9, (7, 258)),  # one id, which goes before config.json's
        ({}, 9, (9, 258)),
        (None, [9, 11], (9, 11, 258)),
        (None, None, (258,)),  # only the tokenizer tells
    ],
)
def test_where_eos_is_looked_for(checkpoint, edit_json, generation, model, expected):
    (checkpoint / "generation_config.json").unlink()
    if generation is not None:
        (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    edit_json(checkpoint / "config.json", eos_token_id=model)
    assert Tokenizer(checkpoint, 272).eos_ids == expected


@pytest.mark.parametrize("eos", [259, -1, "<|im_end|>", [258, 1.5]])
def test_eos_that_the_tokenizer_does_not_have(checkpoint, edit_json, eos):
    edit_json(checkpoint / "generation_config.json", eos_token_id=eos)
    with pytest.raises(UserError, match=r"eos_token_id: .* is not among the tokenizer's 259 ids"):
        Tokenizer(checkpoint, 272)


def test_nothing_ends_a_text(checkpoint, edit_json):
    (checkpoint / "generation_config.json").unlink()
    edit_json(checkpoint / "config.json", eos_token_id=None)
    edit_json(checkpoint / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match="must state eos_token_id"):
        Tokenizer(checkpoint, 272)


def test_a_tokenizer_larger_than_the_vocabulary(checkpoint):
    Tokenizer(checkpoint, 259)
    with pytest.raises(UserError, match=r"tokenizer\.json: has 259 ids, but vocab_size in config\.json is 258"):
        Tokenizer(checkpoint, 258)


@pytest.mark.parametrize("text", [None, "", "{", '{"model": 3}', '{"version": "1.0", "model": {"type": "Nonesuch"}}'])
def test_broken_tokenizer(checkpoint, text):
    path = checkpoint / "tokenizer.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json: (no such file|not a tokenizer)") as error:
        Tokenizer(checkpoint, 272)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_json_beside_it(checkpoint, name, text):
    if name == "config.json":  # asked for eos only where generation_config.json is silent
        (checkpoint / "generation_config.json").unlink()
    (checkpoint / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: (not valid JSON|must hold a JSON object)"):
        Tokenizer(checkpoint, 272)


def test_length_limits_stored_in_tokenizer_json_do_not_cut_prompts(checkpoint):
    value = json.loads((checkpoint / "tokenizer.json").read_text())
    value["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    value["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    (checkpoint / "tokenizer.json").write_text(json.dumps(value))
    assert len(Tokenizer(checkpoint, 272).encode("0123456789")) == 10
