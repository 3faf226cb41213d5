"""Text to token ids and back, at the edges of the program: tokenizer.json, and prompts by the checkpoint's own template.

One function makes the prompt, for sampling, training and evaluation alike: a ratio taken under another prompt than the
one that produced the text means nothing (fault 1 of the official code).

tokenizer.json is a stranger's program for a library in Rust: some files end the process that loads them, others panic
at the first text. So it is first tried out in a process of its own (worker.py), once for each content.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as Backend

from ..errors import UserError
from ..files import read_object
from .chat import ChatTemplate, special_token
from .folder import checkpoint_file, need_file, reason, shown
from .sandbox import Refused, Sandbox

SECONDS, MEMORY_MIB = 30.0, 1024  # to try a tokenizer out: 151,643 tokens take 0.7 s and 170 MiB
PROBES = (
    "",
    "What is 17 * 23? Let $x < 3$.\n\n  So x = -1.5e3, i.e. \\frac{1}{2} [it's a 'test'] #1 & <b>@home_page</b> ~10%\t^2|3;",
    "".join(map(chr, range(1, 127))),
    "a" * 200 + "!" + " " * 200 + "1" * 200 + "\n" * 200 + "ab" * 200,
    "Größe, 是吗？ 二加二。 \u00a0\u2003 naïve №① ½ 한국어 हिन्दी עברית ภาษา 👩‍👩‍👧 🇫🇷 e\u0301 \ufffd \U0010ffff",
)
T = TypeVar("T")
_tried: set[bytes] = set()  # digests of the files that passed in this process


class Tokenizer:
    """Encodes and decodes text. `size` is one above the largest id; `eos_ids` end a completion.

    template_values and day: what the chat template is told, see ChatTemplate.
    Raises UserError that names the file where the folder holds no usable tokenizer of at most vocab_size ids.
    """

    def __init__(
        self, folder: Path, vocab_size: int, template_values: Mapping[str, Any] | None = None, day: str | None = None
    ) -> None:
        self.folder = folder
        path = need_file(folder, "tokenizer.json")
        self.backend = open_backend(path)
        self.size = max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not 0 < self.size <= vocab_size:
            raise UserError(
                f"{path}: has {self.size} ids, but vocab_size in config.json is {vocab_size}; they do not belong together"
            )
        self.config = read_object(need_file(folder, "tokenizer_config.json"))
        self.eos_ids = read_eos(folder, self)
        self.template = ChatTemplate(folder, self.config, template_values, day)

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it is: special tokens in it are recognised, none is added. Raises UserError for text
        that the tokenizer cannot encode: half a surrogate pair, or a character that it has no token for."""
        failure = f"{self.folder / 'tokenizer.json'}: cannot encode {shown(text)}"
        return guarded(lambda: self.backend.encode(text, add_special_tokens=False).ids, failure)

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Text of the ids; special tokens are left out unless asked for."""
        failure = f"{self.folder / 'tokenizer.json'}: cannot decode {shown(ids)}"
        return guarded(lambda: self.backend.decode(list(ids), skip_special_tokens=not special), failure)

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The prompt text for chat messages ({"role", "content"}), up to where the assistant's turn begins."""
        return self.template.render(messages)

    def prompt(self, question: str, system: str | None = None) -> list[int]:
        """Ids of the prompt that asks `question`, with an optional system turn before it."""
        turns = [{"role": "system", "content": system}] if system is not None else []
        text = self.render([*turns, {"role": "user", "content": question}])
        if self.template.text is not None:  # a template writes the first token itself
            return self.encode(text)
        failure = f"{self.folder / 'tokenizer.json'}: cannot encode {shown(text)}"
        encoded = guarded(lambda: self.backend.encode(text, add_special_tokens=True), failure)
        end = len(encoded.ids)
        while end and encoded.special_tokens_mask[end - 1]:  # some append an end-of-text token: nothing follows that
            end -= 1
        return encoded.ids[:end]


def open_backend(path: Path) -> Backend:
    """Load tokenizer.json, after it was tried out elsewhere."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    digest = hashlib.sha256(content).digest()
    if digest not in _tried:
        with Sandbox(SECONDS, MEMORY_MIB) as sandbox:
            try:
                sandbox.ask({"tokenizer": str(path), "texts": PROBES})
            except Refused as refused:
                raise UserError(f"{path}: not a tokenizer: {refused}") from None
        _tried.add(digest)
    backend = guarded(lambda: Backend.from_buffer(content), f"{path}: not a tokenizer")
    backend.no_truncation()
    backend.no_padding()
    return backend


def guarded(call: Callable[[], T], failure: str) -> T:
    """What the tokenizer library returns. It raises a bare Exception for every kind of fault; its panics are none."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{failure}: {error}") from None


def read_eos(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends a completion: of generation_config.json or else config.json, and the tokenizer's own."""
    stated, where = None, folder
    for name in ("generation_config.json", "config.json"):
        if stated is None and (path := checkpoint_file(folder, name)) is not None:
            stated, where = read_object(path).get("eos_token_id"), path
    found: set[int] = set()
    for i in stated if isinstance(stated, list) else [] if stated is None else [stated]:
        if type(i) is not int or not 0 <= i < tokenizer.size:
            raise UserError(f"{where}: eos_token_id: {shown(i)} is not among the tokenizer's {tokenizer.size} ids")
        found.add(i)
    own = special_token(folder, tokenizer.config, "eos_token")
    own_id = tokenizer.token_id(own) if own else None
    if own_id is not None:
        found.add(own_id)
    if not found:
        raise UserError(
            f"{folder}: generation_config.json or config.json must state eos_token_id: without it no completion ends"
        )
    return tuple(sorted(found))
