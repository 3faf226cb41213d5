"""The room that runs what a stranger's checkpoint brings along, its chat template and its tokenizer.

It runs in a process with limits (sandbox.py) and imports nothing of o1core. Requests and replies:

    {"template": text, "values": {name: value}, "day": "2026-11-30"} and
        {"reads": true}                   the names that the template reads           -> {"reads": [...]}
        {"messages": [...], "most": N}    renders them to at most N characters        -> {"text": ...}
    {"tokenizer": path, "digest": its SHA-256, "added": [token, ...]} and
        {"texts": [...]}                  tries it out on them                        -> {}
        {"encode": text, "special": B}    with the tokenizer's own special tokens     -> {"ids": [...], "mask": [...]}
        {"decode": ids}                                                               -> {"text": ...}

Left out on purpose: a limit for each filter and operator of a template, of which one is always forgotten.
"""

import datetime
import functools
import hashlib
import json
from typing import Any, NoReturn

TOKENS_A_BYTE, CHARACTERS_A_TOKEN, SPARE = 16, 1024, 4096  # a tokenizer that makes more of a probe is out of its mind


def environment(day: str) -> Any:
    """Jinja as chat templates expect it (the switches and names that transformers gives them), and nothing more.

    Nothing here follows the clock or chance: a prompt is the same in a run, in its resume and on every rank.
    """
    import jinja2.ext
    import jinja2.sandbox
    from jinja2.nodes import CallBlock

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks what a trainer of transformers learns; here it is the text alone."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's way to declare them

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

        def marked(self, caller: Any) -> Any:
            return caller()

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        """Jinja's sandbox lets an unsafe attribute be printed as nothing: here reaching for one is an error."""

        def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
            raise jinja2.exceptions.SecurityError(f"{attribute!r} of a {type(obj).__name__} is out of bounds")

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.fromisoformat(day).strftime(form)
    del sandbox.filters["random"], sandbox.globals["lipsum"]
    return sandbox


@functools.lru_cache(maxsize=8)
def compiled(text: str, day: str) -> tuple[Any, list[str]]:
    """The template, and the names that it reads and that neither it nor Jinja sets."""
    from jinja2 import meta

    sandbox = environment(day)
    return sandbox.from_string(text), sorted(
        meta.find_undeclared_variables(sandbox.parse(text)) - sandbox.globals.keys()
    )


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
    import jinja2

    raise jinja2.TemplateError(message)


@functools.lru_cache(maxsize=2)
def backend(path: str, digest: str, added: str) -> Any:
    """The tokenizer of a file with this SHA-256, and with these tokens added one after the other, as JSON."""
    from tokenizers import AddedToken, Tokenizer

    with open(path, "rb") as file:
        content = file.read()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("the file has changed since it was opened; start again")
    found = Tokenizer.from_buffer(content)
    found.no_truncation()
    found.no_padding()
    for token in json.loads(added):
        found.add_tokens([AddedToken(token.pop("content"), **token)])
    return found


def probe(tokenizer: Any, texts: list[str]) -> None:
    """Use a tokenizer as a run does. Raises whatever the library does; a panic may end the process.

    Text that is not ASCII may be refused (a tokenizer without an unknown token), but nothing may panic.
    """
    for text in texts:
        try:
            decode(tokenizer, encode(tokenizer, text, False)["ids"])
        except Exception as error:
            if text.isascii() or isinstance(error, Swollen):
                raise ValueError(f"cannot encode {text!r}: {error}") from None
    if texts:
        decode(tokenizer, list(tokenizer.get_vocab(with_added_tokens=True).values()))


class Swollen(ValueError):
    """A tokenizer made far more of a text than texts hold."""


def encode(tokenizer: Any, text: str, special: bool) -> dict[str, Any]:
    found = tokenizer.encode(text, add_special_tokens=special)
    if len(found.ids) > TOKENS_A_BYTE * len(text.encode()) + SPARE:
        raise Swollen(f"makes {len(found.ids)} tokens of the {len(text)} characters {text[:200]!r}")
    return {"ids": found.ids, "mask": found.special_tokens_mask}


def decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    if len(text) > CHARACTERS_A_TOKEN * len(ids) + SPARE:
        raise Swollen(f"decodes {len(ids)} tokens to {len(text)} characters")
    return text


def use_tokenizer(request: dict[str, Any]) -> dict[str, Any]:
    tokenizer = backend(request["tokenizer"], request["digest"], json.dumps(request["added"]))
    if "encode" in request:
        return encode(tokenizer, request["encode"], request["special"])
    if "decode" in request:
        return {"text": decode(tokenizer, request["decode"])}
    probe(tokenizer, request["texts"])
    return {}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if "tokenizer" in request:
        return {"swollen": False} | use_tokenizer(request)  # a vocabulary may take much, and is kept
    template, reads = compiled(request["template"], request["day"])
    if "reads" in request:
        return {"reads": reads}
    given = {"messages": request["messages"], "tools": None, "documents": None}
    text = template.render(request["values"] | given, add_generation_prompt=True)
    if len(text) > request["most"]:
        raise ValueError(f"the prompt has {len(text)} characters, more than the {request['most']} allowed")
    return {"text": text}
