"""Text to token ids and back, at the edges of the program: tokenizer.json, and prompts by the checkpoint's own template.

One function makes the prompt, for sampling, training and evaluation alike: a ratio taken under another prompt than the
one that produced the text means nothing (fault 1 of the official code).
"""

from pathlib import Path

from tokenizers import Tokenizer as Backend

from ..errors import UserError
from ..files import read_object
from .chat import ChatTemplate, described, text_of


class Tokenizer:
    """Encodes and decodes text. `size` is one above the largest id; `eos_ids` end a completion."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder = folder
        path = folder / "tokenizer.json"
        if not path.exists():
            raise UserError(f"{path}: no such file; only tokenizers in this format are read")
        try:
            self.backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception for every kind of broken file
            raise UserError(f"{path}: not a tokenizer: {described(error)}") from None
        self.backend.no_truncation()
        self.backend.no_padding()
        self.size = max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not 0 < self.size <= vocab_size:
            raise UserError(f"{path}: has {self.size} ids, but vocab_size in config.json is {vocab_size}; not a pair")
        self.config = read_object(folder / "tokenizer_config.json")
        self.eos_ids = read_eos(folder, self)
        self.template = ChatTemplate(folder, self.config)

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
        return self.template.render(messages)

    def prompt(self, question: str, system: str | None = None) -> list[int]:
        """Ids of the prompt that asks `question`, with an optional system turn before it."""
        turns = [{"role": "system", "content": system}] if system is not None else []
        return self.encode(self.render([*turns, {"role": "user", "content": question}]))


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
