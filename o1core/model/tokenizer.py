"""Text to token ids and back, at the edges of the program: tokenizer.json and the checkpoint's own chat template.

The template is Jinja text written by strangers, so it is rendered in jinja2's immutable sandbox. One function renders
the prompt, for sampling, training and evaluation alike: a ratio taken under another prompt than the one that produced
the text means nothing (fault 1 of the official code).
"""

import datetime
import json
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer as Backend

from ..errors import UserError
from ..files import read_object

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")  # what templates are given of tokenizer_config.json


class Tokenizer:
    """Encodes and decodes text. `size` is one above the largest id; `eos_ids` end a completion."""

    def __init__(self, folder: Path, vocab_size: int):
        self.folder = folder
        path = folder / "tokenizer.json"
        if not path.exists():
            raise UserError(f"{path}: no such file; only tokenizers in this format are read")
        try:
            self.backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception for every kind of broken file
            raise UserError(f"{path}: not a tokenizer: {one_line(error)}") from None
        self.backend.no_truncation()
        self.backend.no_padding()
        self.size = max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not 0 < self.size <= vocab_size:
            raise UserError(f"{path}: has {self.size} ids, but vocab_size in config.json is {vocab_size}; not a pair")
        self.config = read_object(folder / "tokenizer_config.json")
        self.eos_ids = read_eos(folder, self)
        self.template = read_template(folder, self.config)

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it stands: special tokens in it are recognised, none is added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Text of the ids; special tokens are left out unless asked for."""
        return self.backend.decode(list(ids), skip_special_tokens=not special)

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt text for chat messages ({"role", "content"}), up to where the assistant's turn begins."""
        if self.template is None:
            return "".join(m["content"] for m in messages)
        special = {name: text for name in SPECIAL if (text := text_of(self.config.get(name)))}
        try:
            return self.template.render(messages=messages, add_generation_prompt=True, tools=None, **special)
        except Exception as error:  # a stranger's template can raise anything
            raise UserError(f"{self.folder}: chat template cannot be rendered: {one_line(error)}") from None

    def prompt(self, question: str, system: str | None = None) -> list[int]:
        """Ids of the prompt that asks `question`, with an optional system turn before it."""
        turns = [{"role": "system", "content": system}] if system is not None else []
        return self.encode(self.render([*turns, {"role": "user", "content": question}]))


def text_of(token) -> str:
    """A special token stands in tokenizer_config.json as a string or as {"content": string}; absent is empty."""
    return (token.get("content", "") if isinstance(token, dict) else token) or ""


def read_eos(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends a completion: of generation_config.json or else config.json, and the tokenizer's own."""
    ids = None
    for name in ("generation_config.json", "config.json"):
        if ids is None and (folder / name).exists():
            ids = read_object(folder / name).get("eos_token_id")
    found = set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    own = text_of(tokenizer.config.get("eos_token"))
    if own and (own_id := tokenizer.token_id(own)) is not None:
        found.add(own_id)
    for i in found:
        if not isinstance(i, int) or not 0 <= i < tokenizer.size:
            raise UserError(f"{folder}: eos_token_id: {i!r} is not among the tokenizer's {tokenizer.size} ids")
    if not found:
        raise UserError(f"{folder}: generation_config.json or config.json must state eos_token_id: nothing ends a text")
    return tuple(sorted(found))


def read_template(folder: Path, config: dict) -> jinja2.Template | None:
    """The compiled chat template: chat_template.jinja, or the text in tokenizer_config.json; None where neither is."""
    path = folder / "chat_template.jinja"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else config.get("chat_template")
        if isinstance(text, list):  # several named templates
            text = next(entry["template"] for entry in text if entry["name"] == "default")
        return None if text is None else environment().from_string(text)
    except Exception as error:  # unreadable, not text, or not Jinja
        raise UserError(f"{folder}: chat template cannot be read: {one_line(error)}") from None


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which lets an unsafe attribute be printed as nothing: here reaching for one is an error."""

    def unsafe_undefined(self, obj, attribute):
        raise jinja2.exceptions.SecurityError(f"{attribute!r} of a {type(obj).__name__} is out of bounds")


def environment() -> jinja2.Environment:
    """Jinja as chat templates expect it (the switches and names that transformers gives them), and nothing more."""
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return sandbox


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Jinja's own filter escapes HTML; templates expect plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: str):
    """What templates call to reject a conversation."""
    raise jinja2.TemplateError(message)


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
