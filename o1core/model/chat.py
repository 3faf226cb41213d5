"""A checkpoint's chat template: from messages to the text of a prompt.

The template is Jinja text written by strangers, so it is rendered in jinja2's immutable sandbox.
"""

import datetime
import json
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from ..errors import UserError
from ..text import one_line

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")  # what templates are given of tokenizer_config.json


class ChatTemplate:
    """The template of the checkpoint in `folder`, with what its tokenizer_config.json says; plain text where it has
    none. Raises UserError naming the folder where the template cannot be read."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.template = read_template(folder, config)
        self.special = {name: text for name in SPECIAL if (text := text_of(config.get(name)))}

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt text for chat messages ({"role", "content"}), up to where the assistant's turn begins."""
        if self.template is None:
            return "".join(m["content"] for m in messages)
        try:
            return self.template.render(messages=messages, add_generation_prompt=True, tools=None, **self.special)
        except Exception as error:  # a stranger's template can raise anything
            raise UserError(f"{self.folder}: chat template cannot be rendered: {described(error)}") from None


def text_of(token: Any) -> str:
    """A special token stands in tokenizer_config.json as a string or as {"content": string}; absent is empty."""
    return (token.get("content", "") if isinstance(token, dict) else token) or ""


def read_template(folder: Path, config: dict[str, Any]) -> jinja2.Template | None:
    """The compiled chat template: chat_template.jinja, or the text in tokenizer_config.json; None where neither is."""
    path = folder / "chat_template.jinja"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else config.get("chat_template")
        if isinstance(text, list):  # several named templates
            text = next(entry["template"] for entry in text if entry["name"] == "default")
        return None if text is None else environment().from_string(text)
    except Exception as error:  # unreadable, not text, or not Jinja
        raise UserError(f"{folder}: chat template cannot be read: {described(error)}") from None


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which lets an unsafe attribute be printed as nothing: here reaching for one is an error."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise jinja2.exceptions.SecurityError(f"{attribute!r} of a {type(obj).__name__} is out of bounds")


def environment() -> jinja2.Environment:
    """Jinja as chat templates expect it (the switches and names that transformers gives them), and nothing more."""
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return sandbox


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML; templates expect plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: str) -> NoReturn:
    """What templates call to reject a conversation."""
    raise jinja2.TemplateError(message)


def described(error: Exception) -> str:
    """An error of somebody else's code, on one line."""
    return one_line(f"{type(error).__name__}: {error}")
