"""Text to token ids and back, at the edges of the program: tokenizer.json, and prompts by the checkpoint's own template.

One function makes the prompt, for sampling, training and evaluation alike: a ratio taken under another prompt than the
one that produced the text means nothing (fault 1 of the official code).

tokenizer.json is a stranger's program for a library in Rust: some files end the process that loads them, others panic,
swell or hang at one text in a thousand. So every text and every list of ids goes through a process with limits
(worker.py), which has first tried the file out. A call costs a tenth of a millisecond more than here. What is loaded
here serves to look ids up.
"""

import atexit
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ..errors import UserError
from ..files import read_object
from ..grading import ThoughtTags
from ..sandbox import Refused, Sandbox
from ..types import Problem
from .chat import ROOM, SPECIAL, ChatTemplate, find_thought_tags, special_token
from .folder import checkpoint_file, need_file, reason, shown

SECONDS, MEMORY_MIB = 30.0, 1024  # for one request: to load 151,643 tokens takes 0.7 s and 170 MiB
PROBES = (
    "",
    "What is 17 * 23? Let $x < 3$.\n\n  So x = -1.5e3, i.e. \\frac{1}{2} [it's a 'test'] #1 & <b>@home_page</b> ~10%\t^2|3;",
    "".join(map(chr, range(1, 127))),
    "a" * 200 + "!" + " " * 200 + "1" * 200 + "\n" * 200 + "ab" * 200,
    "Größe, 是吗？ 二加二。 \u00a0\u2003 naïve №① ½ 한국어 हिन्दी עברית ภาษา 👩‍👩‍👧 🇫🇷 e\u0301 \ufffd \U0010ffff",
)
TAG = re.compile(r"[<\[{|｜].+[>\]}|｜]", re.DOTALL)  # an added token that is made to stand for no text
T = TypeVar("T")
_tried: set[str] = set()  # digests of the files that passed in this process


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
        self.backend, digest = open_backend(path)
        self.file: dict[str, Any] = {"tokenizer": str(path.absolute()), "digest": digest, "added": []}
        self.config = read_object(need_file(folder, "tokenizer_config.json"))
        if "added_tokens_decoder" not in self.config:  # transformers before 4.34 wrote two more files
            self.config |= read_beside(folder, "special_tokens_map.json")
        own = self.backend.get_added_tokens_decoder()
        self.file["added"] = add_tokens(self.backend, self.file, folder, self.config, vocab_size)
        self.size = max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not 0 < self.size <= vocab_size:
            raise UserError(
                f"{path}: has {self.size} ids, but vocab_size in config.json is {vocab_size}; they do not belong together"
            )
        self.added = self.backend.get_added_tokens_decoder()
        for i, token in own.items():  # special in one file is special, as the library has it
            self.added[i].special = self.added[i].special or token.special
        self.eos_ids = read_eos(folder, self)
        self.template = ChatTemplate(folder, self.config, template_values, day)
        self.find_tags()

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it is: special tokens in it are recognised, none is added. Raises UserError for text
        that the tokenizer cannot encode: half a surrogate pair, or a character that it has no token for."""
        return self.encoded(text)[0]

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Text of the ids; special tokens are left out unless asked for, but for the tags of a thought."""
        read = ids if special else [i for i in ids if i not in self.hidden]
        failure = f"{self.folder / 'tokenizer.json'}: cannot decode {shown(ids)}"
        text: str = ask(self.file | {"decode": list(read)}, failure)["text"]
        return text

    def encoded(self, text: str, with_special: bool = False) -> tuple[list[int], list[int]]:
        """Ids of the text, and 1 for each that is a special token which the tokenizer itself has put there."""
        failure = f"{self.folder / 'tokenizer.json'}: cannot encode {shown(text)}"
        reply = ask(self.file | {"encode": text, "special": with_special}, failure)
        return reply["ids"], reply["mask"]

    def find_tags(self, stated: tuple[str, str] | None = None, system: str | None = None) -> ThoughtTags:
        """What this model's thoughts stand between, from now on: `stated`, or what the chat template, the added tokens
        and the system turn name. Raises UserError as find_thought_tags does."""
        texts = [self.template.text or "", *(token.content for token in self.added.values()), system or ""]
        self.tags = find_thought_tags(texts, self.folder, stated)
        tags = (*self.tags.opens, *self.tags.closes)
        self.hidden = {i for i, token in self.added.items() if token.special and token.content not in tags}
        written = self.template.text or ""
        self.control = [
            token.content
            for token in self.added.values()
            if token.content not in tags
            and (TAG.fullmatch(token.content) or (token.special and not token.content.isspace()))
            and (token.special or token.content in written)
        ]
        return self.tags

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The prompt text for chat messages ({"role", "content"}), up to where the assistant's turn begins."""
        return self.template.render(messages)

    def prompt(self, question: str, system: str | None = None) -> list[int]:
        """Ids of the prompt that asks `question`, with an optional system turn before it. Raises UserError where either
        holds a token that the chat template is made of, as <|im_end|>: it would end the turn that it stands in."""
        for token in self.control:
            if token and (token in question or token in (system or "")):
                raise UserError(
                    f"the question or its system turn holds {shown(token)}, a control token of {self.folder}: the model would "
                    "not read it as text; take the problem out, or spell the token otherwise"
                )
        turns = [{"role": "system", "content": system}] if system is not None else []
        text = self.render([*turns, {"role": "user", "content": question}])
        if self.template.text is not None:  # a template writes the first token itself
            return self.encode(text)
        ids, mask = self.encoded(text, with_special=True)
        end = len(ids)
        while end and mask[end - 1]:  # some append an end-of-text token: nothing follows that
            end -= 1
        return ids[:end]

    def prompts(self, problems: Iterable[Problem], room: int | None = None) -> list[list[int]]:
        """Ids of the prompt of each problem. room: tokens that the model's context holds.

        All of them are rendered, under the template's limits of time and memory, so that a run which could not ask its
        last problem ends before its first. Raises UserError that names the problem.
        """
        found = []
        for problem in problems:
            try:
                found.append(self.prompt(problem.question, problem.system))
            except UserError as error:
                raise UserError(f"problem {shown(problem.id)}: {error}") from None
            if room is not None and len(found[-1]) >= room:
                size = f"a prompt of {len(found[-1])} tokens, and the model's context holds {room}"
                raise UserError(f"problem {shown(problem.id)}: {size}; take the problem out")
        return found


@functools.lru_cache(maxsize=1)
def shared_sandbox(pid: int, seconds: float, memory_mib: int) -> Sandbox:
    """The process that encodes and decodes. By process id: a forked child must not write into its parent's pipes."""
    sandbox = Sandbox(ROOM, seconds, memory_mib)
    atexit.register(sandbox.close)
    return sandbox


def ask(request: dict[str, Any], failure: str) -> dict[str, Any]:
    try:
        return shared_sandbox(os.getpid(), SECONDS, MEMORY_MIB).ask(request)
    except Refused as refused:
        raise UserError(f"{failure}: {refused}") from None


def open_backend(path: Path) -> tuple[Backend, str]:
    """Load tokenizer.json, after it was tried out elsewhere. Returns its SHA-256 too."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    digest = hashlib.sha256(content).hexdigest()
    failure = f"{path}: not a tokenizer"
    if digest not in _tried:
        ask({"tokenizer": str(path.absolute()), "digest": digest, "added": [], "texts": PROBES}, failure)
        _tried.add(digest)
    backend = guarded(lambda: Backend.from_buffer(content), failure)
    backend.no_truncation()
    backend.no_padding()
    return backend, digest


def read_beside(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder, empty where there is no such file."""
    path = checkpoint_file(folder, name)
    return {} if path is None else read_object(path)


def add_tokens(
    backend: Backend, file: dict[str, Any], folder: Path, config: dict[str, Any], vocab_size: int
) -> list[dict[str, Any]]:
    """Add what tokenizer.json does not know and the files beside it do, with the ids that transformers gives it.

    That is added_tokens_decoder (where it is absent, added_tokens.json), then the special tokens that are named. Without
    them <think> falls to pieces and the end-of-text token is never found. A token that the model has no row for, as the
    <pad> of some Llamas, is left out. Returns those that were added, in their order, for the process that encodes.
    Raises UserError where a new token's id is not the one stated.
    """
    path = folder / "tokenizer_config.json"
    stated: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        for key, value in as_object(config["added_tokens_decoder"], path, "added_tokens_decoder").items():
            stated[as_id(key, path)] = as_token(value, path, "added_tokens_decoder")
    else:
        for text, value in read_beside(folder, "added_tokens.json").items():
            stated[as_id(value, folder / "added_tokens.json")] = AddedToken(text, normalized=True)
        stated |= backend.get_added_tokens_decoder()
    named = special_tokens(config, path)
    for token in stated.values():
        token.special = token.special or token.content in named
    known = {token.content for token in (*stated.values(), *backend.get_added_tokens_decoder().values())}
    unnumbered = [token for text, token in named.items() if text not in known]
    size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    todo = [*sorted(stated.items()), *((None, token) for token in unnumbered)]
    # The library normalises a token that it adds: first where that has limits.
    ask(file | {"added": [as_flags(token) for _, token in todo], "texts": []}, f"{path}: its tokens cannot be added")
    added = []
    for number, token in todo:
        new = backend.token_to_id(token.content) is None
        if new and size >= vocab_size:
            continue
        backend.add_tokens([token])
        added.append(as_flags(token))
        found = backend.token_to_id(token.content)
        if new and found is not None and found != number is not None:
            raise UserError(
                f"{path}: added_tokens_decoder: {shown(token.content)} has id {number} there, and {found} is the next free "
                "one in tokenizer.json; take both files from one place"
            )
        size += new
    return added


def special_tokens(config: dict[str, Any], path: Path) -> dict[str, AddedToken]:
    """The special tokens that tokenizer_config.json names, by their text, in transformers' order."""
    found = [(name, config[name]) for name in SPECIAL if isinstance(config.get(name), str | dict)]
    found += [(name, value) for name, value in config.items() if name.endswith("_token") and isinstance(value, str)]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    tokens = extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else []
    found += [("extra_special_tokens", token) for token in tokens]
    named: dict[str, AddedToken] = {}
    for name, value in found:
        if value:
            token = as_token(value, path, name)
            token.special = True
            named.setdefault(token.content, token)
    return named


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def as_token(value: Any, path: Path, field: str) -> AddedToken:
    """A token as tokenizer_config.json writes it: its text, or an object of its text and flags."""
    stated = {"content": value} if isinstance(value, str) else value
    text = stated.get("content") if isinstance(stated, dict) else None
    flags = {name: stated[name] for name in FLAGS if name in stated} if isinstance(stated, dict) else {}
    if not isinstance(text, str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise UserError(f"{path}: {field}: expected a string, found {shown(value)}")
    return AddedToken(text, **flags)


def as_flags(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content} | {name: getattr(token, name) for name in FLAGS}


def as_object(value: Any, path: Path, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {field}: expected an object, found {shown(value)}")
    return value


def as_id(value: Any, path: Path) -> int:
    """A token's id, which is a key of added_tokens_decoder or a value of added_tokens.json."""
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UserError(f"{path}: an added token has the id {shown(value)}; expected a whole number")
    return int(text)


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
            read, where = read_object(path), path
            text = read.get("text_config")  # of a model that sees images
            stated = read.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
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
