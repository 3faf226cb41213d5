"""A template that takes too much time or memory is refused in one line; the next prompt is rendered as if nothing was."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

import o1core
from o1core.errors import UserError
from o1core.model import Tokenizer, chat, read_config

TINY = Path(o1core.__file__).parent / "tiny_o1"
USER = [{"role": "user", "content": "x"}]
HOSTILE = {
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a repeated string": "{{ 'x' * 10**9 }}",
    "a string doubled": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "center": "{{ 'x'|center(1000000000) }}",
    "indent": "{{ ('x\n' * 100000)|indent(100000) }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format by method": "{{ '{:1000000000d}'.format(1) }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a huge join": "{{ (range(99999)|list * 9999)|join('x') }}",
    "a replacement": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "a list in itself": "{% set a = [1] * 10**9 %}{{ a|length }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "lorem": "{{ lipsum(99999, true, 1000, 2000) }}",
    "slices": "{{ range(99999)|slice(9999999)|list|length }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list|length }}",
    "wordwrap": "{{ ('a b ' * 1000000)|wordwrap(1) }}",
    "a prompt longer than any context": "{{ 'x' * 2**23 }}",
}


@pytest.fixture
def short_limits(monkeypatch):
    """A sandbox of 0.3 seconds and 150 MiB, so that the tests are quick."""
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    monkeypatch.setattr(chat, "MEMORY_MIB", 150)
    chat.shared_sandbox.cache_clear()
    yield
    chat.shared_sandbox(os.getpid()).close()
    chat.shared_sandbox.cache_clear()


def open_with(folder: Path, template) -> Tokenizer:
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder, read_config(folder).vocab_size)


def test_no_template_takes_more_than_its_share(short_limits, tmp_path):
    good = open_with(tmp_path / "good", "{{ messages[0].content }}!")
    for name, template in HOSTILE.items():
        folder = tmp_path / name
        with pytest.raises(UserError, match=r"chat template cannot be (read|rendered): ") as error:
            open_with(folder, template).render(USER)
        message = str(error.value)
        assert message.startswith(str(folder)) and message.isprintable() and len(message) < 400 + len(str(folder))
        assert good.render(USER) == "x!"


def test_the_error_names_the_limit(short_limits, tmp_path):
    with pytest.raises(UserError, match=r"rendered: it takes more than 0\.3 s of processor time"):
        open_with(tmp_path, HOSTILE["nested ranges"]).render(USER)
    with pytest.raises(UserError, match=r"(read|rendered): it needs more than 150 MiB of memory"):
        open_with(tmp_path, HOSTILE["a repeated string"]).render(USER)
    with pytest.raises(
        UserError, match=r"ValueError: the prompt has 8388608 characters, more than the 4194304 allowed"
    ):
        open_with(tmp_path, HOSTILE["a prompt longer than any context"]).render(USER)


def test_prompts_go_on_after_the_worker_was_killed(tmp_path):
    tokenizer = open_with(tmp_path, "{{ messages[0].content }}!")
    sandbox = chat.shared_sandbox(os.getpid())
    for when in ("idle", "again"):
        assert tokenizer.render(USER) == "x!", when
        os.kill(sandbox.process.pid, signal.SIGKILL)
    assert tokenizer.render(USER) == "x!"


def test_templates_of_several_checkpoints_are_not_mixed_up(tmp_path):
    one, other = (open_with(tmp_path / name, name + " {{ messages[0].content }}{{ eos_token }}") for name in "ab")
    for text in ("1", "2"):
        turns = [{"role": "user", "content": text}]
        assert (one.render(turns), other.render(turns)) == (f"a {text}<|im_end|>", f"b {text}<|im_end|>")


def test_threads_get_their_own_prompts(tmp_path):
    tokenizers = [open_with(tmp_path / str(i), f"{i} {{{{ messages[0].content }}}}") for i in range(2)]
    wrong = []

    def render(which: int) -> None:
        for n in range(200):
            text = tokenizers[which].render([{"role": "user", "content": str(n)}])
            if text != f"{which} {n}":
                wrong.append(text)

    threads = [threading.Thread(target=render, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", None])
def test_a_question_longer_than_any_context_is_refused(tmp_path, template):
    tokenizer = open_with(tmp_path, template)
    with pytest.raises(UserError, match="a prompt of 4194305 characters is too long; at most 4194304"):
        tokenizer.prompt("x" * (2**22 + 1))


@pytest.mark.parametrize("text", ["\ud800", "a\udcff"])
def test_half_a_surrogate_pair_is_refused(tmp_path, text):
    for template in ("{{ messages[0].content }}", None):
        tokenizer = open_with(tmp_path, template)
        with pytest.raises(UserError, match=r"tokenizer\.json: cannot encode ") as error:
            tokenizer.prompt(text)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("turns", [[], [{"role": "user"}], [{"role": "user", "content": None}]])
def test_plain_text_of_odd_messages_is_empty(tmp_path, turns):
    assert open_with(tmp_path, None).render(turns) == ""
