"""Prompts as transformers renders them, from templates that are strangers' programs."""

import datetime
import json
import os

import pytest
from transformers import AutoTokenizer

from o1core.errors import UserError
from o1core.model import Tokenizer, tokenizer

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
MARKED = (  # as SmolLM3's
    "{%- set name = 'a' -%}{%- for message in messages -%}{% generation %}{%- set name = message.role -%}{{ name }}"
    "{{ message.content }}{% endgeneration %}{{ name }}{% endfor %}"
)
TEMPLATES = {
    "a marked generation": MARKED,
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


def put_template(folder, template, **given) -> Tokenizer:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return Tokenizer(folder, 272, **given)


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


def test_a_run_has_one_day_and_no_time_of_day(checkpoint):
    template = "{{ strftime_now('%A %d %B %Y, %H:%M:%S.%f') }}"
    assert (
        put_template(checkpoint, template, day="2024-02-29").render([]) == "Thursday 29 February 2024, 00:00:00.000000"
    )
    today = put_template(checkpoint, template)
    assert today.template.day == datetime.date.today().isoformat() and today.render([]).endswith(", 00:00:00.000000")


@pytest.mark.parametrize("template", ["{{ messages|random }}", "{{ lipsum() }}", "{{ [1, 2]|map('random')|list }}"])
def test_a_template_that_asks_for_chance_is_refused(checkpoint, template):
    with pytest.raises(UserError, match=r"chat template cannot be (read|rendered): .*(random|lipsum)"):
        put_template(checkpoint, template).render([{"role": "user", "content": "x"}])


def test_documents_are_none_as_transformers_has_them(checkpoint):
    template = "{% if documents is none %}none{% endif %}{% if tools is none %}, none{% endif %}"
    turns = CONVERSATIONS["question"]
    assert put_template(checkpoint, template).render(turns) == "none, none"
    assert AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(turns, tokenize=False) == "none, none"


THINKING = {"enable_thinking": False}
EFFORT = "{{ reasoning_effort|default('medium') }}{% if budget is defined %}{{ budget + 1 }}{% endif %}{{ eos_token }}"


@pytest.mark.parametrize(
    ("template", "values"),
    [
        (REVERSED_WITH_NAMESPACE, THINKING),
        (REVERSED_WITH_NAMESPACE, {"enable_thinking": True}),
        (EFFORT, {"reasoning_effort": "low"}),
        (EFFORT, {"reasoning_effort": "high", "budget": 4}),
        (EFFORT, {"eos_token": "</s>"}),
    ],
)
def test_what_the_template_is_told_reaches_it_as_in_transformers(checkpoint, template, values):
    turns = CONVERSATIONS["question"]
    ours = put_template(checkpoint, template, template_values=values).render(turns)
    theirs = AutoTokenizer.from_pretrained(checkpoint)
    assert ours == theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **values)
    assert ours != put_template(checkpoint, template).render(turns) or values == {"enable_thinking": True}


def test_templates_told_different_things_are_not_mixed_up(checkpoint):
    opened = [put_template(checkpoint, EFFORT, template_values={"reasoning_effort": word}) for word in ("low", "high")]
    for _ in range(2):
        assert [t.render([]) for t in opened] == ["low<|im_end|>", "high<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "key", "message"),
    [
        (EFFORT, "enable_thinking", "reads no such key; it reads budget, reasoning_effort$"),
        (EFFORT, "range", "reads no such key"),
        (REVERSED_WITH_NAMESPACE, "ns", "reads no such key; it reads enable_thinking$"),  # the template's own
        (REVERSED_WITH_NAMESPACE, "messages", "reads no such key"),
        (REVERSED_WITH_NAMESPACE, "add_generation_prompt", "reads no such key"),
        (DEFAULT_SYSTEM_IN_LOOP, "x", "it reads none$"),
        (None, "enable_thinking", "has no chat template; leave it out$"),
    ],
)
def test_a_key_that_the_template_does_not_read(checkpoint, template, key, message):
    with pytest.raises(UserError, match=f"^--template {key}: .*{message}") as error:
        put_template(checkpoint, template, template_values={key: "x"})
    assert str(checkpoint) in str(error.value)


def put_post_processor(folder, single, **config) -> Tokenizer:
    """A tokenizer without a chat template whose own post-processor adds special tokens."""
    value = json.loads((folder / "tokenizer.json").read_text())
    ids = {t["content"]: t["id"] for t in value["added_tokens"]}
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}} if part == "A" else {"SpecialToken": {"id": part, "type_id": 0}}
            for part in single
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {part: {"id": part, "ids": [ids[part]], "tokens": [part]} for part in single if part != "A"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(value))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return put_template(folder, None)


@pytest.mark.parametrize("config", [{}, {"bos_token": "<|im_start|>", "add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("question", ["2 + 2 =", " x\n", "é"])
@pytest.mark.parametrize("single", [["<|im_start|>", "A"], ["<|im_start|>", "<|endoftext|>", "A"], ["A"]])
def test_a_base_model_gets_the_first_token_that_its_tokenizer_adds(checkpoint, single, question, config):
    tokenizer = put_post_processor(checkpoint, single, **config)
    ids = AutoTokenizer.from_pretrained(checkpoint)(question)["input_ids"]
    assert tokenizer.prompt(question) == ids
    assert len(ids) == len(tokenizer.encode(question)) + len(single) - 1


def test_a_prompt_does_not_end_with_an_end_of_text_token(checkpoint):
    tokenizer = put_post_processor(checkpoint, ["<|im_start|>", "A", "<|endoftext|>"])
    ids = AutoTokenizer.from_pretrained(checkpoint)("2 +")["input_ids"]
    assert tokenizer.prompt("2 +") == ids[:-1] and ids[-1] in tokenizer.eos_ids


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


@pytest.mark.parametrize("eos", [259, -1, "<|im_end|>", [258, 1.5], [[2]], {"a": 1}, True, [True], 10**400])
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


@pytest.mark.parametrize("token", [5, ["<|im_end|>"], {"content": 5}, True])
@pytest.mark.parametrize("name", ["eos_token", "bos_token"])
def test_a_special_token_that_is_no_text(checkpoint, edit_json, name, token):
    edit_json(checkpoint / "tokenizer_config.json", **{name: token})
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: {name}: expected a string, found "):
        Tokenizer(checkpoint, 272)


def test_a_special_token_of_half_a_surrogate_pair(checkpoint, edit_json):
    edit_json(checkpoint / "tokenizer_config.json", eos_token="\ud800")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: .*half a surrogate pair"):
        Tokenizer(checkpoint, 272)


def pattern(text: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


NO_UNKNOWN = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "[UNK]"}
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "////////////////////"}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": NO_UNKNOWN},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}},
        {"normalizer": pattern("", "x")},  # a panic
        {"normalizer": pattern("a", "x" * 10**4)},  # a token of each
        {"normalizer": CHARSMAP},  # the process ends
        {"decoder": pattern("a", "x" * 10**6)},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}},
        {"added_tokens": [{"id": 2**32 - 1, "content": "x", "special": True}]},
    ],
)
def test_a_tokenizer_that_fails_when_it_is_used_is_refused_when_it_is_opened(checkpoint, monkeypatch, changes):
    monkeypatch.setattr(tokenizer, "SECONDS", 1.0)
    path = checkpoint / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=r"tokenizer\.json: (not a tokenizer: |has )") as error:
        Tokenizer(checkpoint, 272)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_a_tokenizer_is_tried_out_once_for_each_content(checkpoint, monkeypatch):
    tried, ask = [], tokenizer.Sandbox.ask

    def count(self, request):
        tried.append(request.get("texts") == tokenizer.PROBES)
        return ask(self, request)

    monkeypatch.setattr(tokenizer.Sandbox, "ask", count)
    monkeypatch.setattr(tokenizer, "_tried", set())
    Tokenizer(checkpoint, 272), Tokenizer(checkpoint, 272)
    path = checkpoint / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    Tokenizer(checkpoint, 272)
    assert sum(tried) == 2


def grows(word, letters):
    """Replacements that turn a word into 300 million letters."""
    steps = [(word, "§§§"), ("§", "¶" * 1000), ("¶", "¤" * 300), ("¤", letters * 300)]
    return [{"type": "Replace", "pattern": {"String": one}, "content": other} for one, other in steps]


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_a_tokenizer_that_swells_at_a_word_of_the_data_is_refused_at_that_word(checkpoint, part):
    path = checkpoint / "tokenizer.json"
    file = json.loads(path.read_text())
    name, before = ("normalizers" if part == "normalizer" else "decoders"), [file[part]] if file.get(part) else []
    file[part] = {"type": "Sequence", name: before + grows("trigger", "x")}
    path.write_text(json.dumps(file))
    ours = Tokenizer(checkpoint, 272)
    harmless = ours.encode("2 + 2")
    with pytest.raises(
        UserError, match=r"tokenizer\.json: cannot (en|de)code .*(memory|tokens of|characters|SIG)"
    ) as error:
        ours.decode(tokenizer.Tokenizer.encode(ours, "a trigger here"))
    assert str(error.value).isprintable()
    assert ours.encode("2 + 2") == harmless


def test_a_file_that_changes_after_it_was_opened_is_refused(checkpoint):
    ours = Tokenizer(checkpoint, 272)
    path = checkpoint / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    tokenizer.shared_sandbox(
        os.getpid(), tokenizer.SECONDS, tokenizer.MEMORY_MIB
    ).close()  # the next process reads again
    with pytest.raises(UserError, match=r"tokenizer\.json: .*the file has changed"):
        ours.encode("2 + 2")


def test_characters_that_have_no_token_are_refused_when_they_come(checkpoint):
    path = checkpoint / "tokenizer.json"
    letters = {chr(i): i for i in range(1, 127)}
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {
                "model": {"type": "WordLevel", "vocab": letters, "unk_token": "[UNK]"},
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": r"[\s\S]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
            }
        )
    )
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 98}')
    opened = Tokenizer(checkpoint, 272)
    assert opened.encode("ab") == [97, 98]
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot encode '二加二': "):
        opened.encode("二加二")
