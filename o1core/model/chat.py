"""A checkpoint's chat template: from messages to the text of a prompt.

The template is Jinja text written by strangers. It is compiled and rendered in jinja2's immutable sandbox, in a process
of its own with limits of time and memory (worker.py), which is started once and serves every prompt of every
checkpoint: a prompt costs a line through a pipe and back.
"""

import atexit
import datetime
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..grading import THINK, ThoughtTags
from ..sandbox import Refused, Sandbox
from .folder import checkpoint_file, read_text, shown

# What templates are given of tokenizer_config.json, under the names that transformers gives them.
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
OURS = ("messages", "tools", "documents", "add_generation_prompt")  # what a prompt is made of: no --template sets these
ROOM = Path(__file__).with_name("worker.py")
SECONDS, MEMORY_MIB = 2.0, 512  # for one prompt: published templates take under a millisecond and 30 MiB
MOST_CHARACTERS = 1 << 22  # of a prompt, which at four a token are more than any context holds


class ChatTemplate:
    """The template of the checkpoint in `folder`, with what its tokenizer_config.json says; plain text where it has
    none (`text` is None).

    values: what --template says, by the names that the template reads (enable_thinking). day: "2026-11-30", the day that
    a template is told which asks for today's; without one it is today, for as long as this object lives.
    Raises UserError naming the folder where the template cannot be read, and naming the key where it does not read it.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], values: Mapping[str, Any] | None = None, day: str | None = None
    ) -> None:
        self.folder, self.day = folder, day or datetime.date.today().isoformat()
        self.text = read_template(folder, config)
        self.compiled: dict[str, Any] | None = None  # what the worker is told with each request
        read: list[str] = []
        if self.text is not None:
            special = {name: token for name in SPECIAL if (token := special_token(folder, config, name))}
            self.compiled = {"template": self.text, "values": special | dict(values or {}), "day": self.day}
            read = self._ask({"reads": True}, "read")["reads"]
        if unread := sorted((values or {}).keys() - (set(read) - set(OURS))):
            raise UserError(f"--template {unread[0]}: {self._reads(read)}")

    def _reads(self, read: list[str]) -> str:
        """What an error says of the names that may be set."""
        if self.text is None:
            return f"{self.folder} has no chat template; leave it out"
        free = [name for name in read if name not in (*OURS, *SPECIAL)]
        return f"the chat template of {self.folder} reads no such key; it reads {', '.join(free[:20]) or 'none'}"

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The prompt text for chat messages ({"role", "content"}), up to where the assistant's turn begins.

        Raises UserError where the template refuses them, fails, or takes more time or memory than it may.
        """
        contents = [content for m in messages if isinstance(content := m.get("content"), str)]
        if (length := sum(map(len, contents))) > MOST_CHARACTERS:
            raise UserError(f"{self.folder}: a prompt of {length} characters is too long; at most {MOST_CHARACTERS}")
        if self.compiled is None:
            return "".join(contents)
        text = self._ask({"messages": messages, "most": MOST_CHARACTERS}, "rendered")["text"]
        assert isinstance(text, str)
        return text

    def _ask(self, request: dict[str, Any], done: str) -> dict[str, Any]:
        try:
            return shared_sandbox(os.getpid()).ask((self.compiled or {}) | request)
        except Refused as refused:
            raise UserError(f"{self.folder}: chat template cannot be {done}: {refused}") from None


@functools.lru_cache(maxsize=1)
def shared_sandbox(pid: int) -> Sandbox:
    """The process that renders. By process id: a forked child must not write into its parent's pipes."""
    sandbox = Sandbox(ROOM, SECONDS, MEMORY_MIB)
    atexit.register(sandbox.close)
    return sandbox


def special_token(folder: Path, config: dict[str, Any], name: str) -> str:
    """A special token of tokenizer_config.json, written as a string or as {"content": string}; "" if absent."""
    token = config.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise UserError(f"{folder / 'tokenizer_config.json'}: {name}: expected a string, found {shown(text)}")
    return text or ""


def read_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template's text: chat_template.jinja, or what tokenizer_config.json says; None where there is neither."""
    path = checkpoint_file(folder, "chat_template.jinja")
    if path is None:
        text = config.get("chat_template")
    else:
        text = read_text(path)
    if isinstance(text, list):  # several named templates
        named = [entry for entry in text if isinstance(entry, dict) and entry.get("name") == "default"]
        text = named[0].get("template") if named else text
    if text is not None and not isinstance(text, str):
        raise UserError(f"{folder}: chat template cannot be read: expected a string, found {shown(text)}")
    return text


_NAME = r"(?:\w+[:_])?(?:think(?:ing)?|thoughts?|reasoning)"
_OPENS = re.compile(rf"<{_NAME}>|\[{_NAME}\]|<\|(?:begin|start)(?:_of)?_{_NAME}\|>", re.IGNORECASE)
_FINAL = re.compile(
    r"<output>|<\|begin_of_solution\|>", re.IGNORECASE
)  # opens what comes after a thought: closes it too


def closing(tag: str) -> str:
    """The tag that closes a thought which `tag` opens: </think>, [/THINK], <|end_of_thought|>."""
    if "|" in tag:
        return re.sub("begin|start", "end", re.sub("BEGIN|START", "END", tag, count=1), count=1)
    return f"{tag[0]}/{tag[1:]}"


def find_thought_tags(texts: list[str], folder: Path, stated: tuple[str, str] | None = None) -> ThoughtTags:
    """What a checkpoint's thoughts stand between: what its texts (template, added tokens, system turn) name, as
    <Thought> and <Output> of Marco-o1, or else <think>.

    stated: (opening, closing) tag instead. Raises UserError where those occur in none of the texts: such a thought would
    never be seen to begin, or never to end.
    """
    if stated is not None:
        missing = [tag for tag in stated if not any(tag in text for text in texts)]
        if missing and missing != [
            closing(stated[0])
        ]:  # Marco-o1's template writes <Thought> and leaves </Thought> to us
            raise UserError(
                f"--thought-tags {','.join(stated)}: {missing[0]} occurs neither in the chat template nor among the added "
                f"tokens of {folder}; correct it, or leave it out"
            )
        return ThoughtTags((stated[0],), (stated[1],))
    opens = tuple(dict.fromkeys(tag for text in texts for tag in _OPENS.findall(text)))
    if not opens:
        return THINK
    final = dict.fromkeys(tag for text in texts for tag in _FINAL.findall(text))
    return ThoughtTags(opens, (*map(closing, opens), *final))
