"""The answer in a completion, or in a published solution: regular expressions, each linear in the length of the text.

Left out on purpose: a model that finds the answer. The rules are few, and the docstrings state them.
"""

import re
from dataclasses import dataclass

_UNSIGNED = r"(?:[1-9]\d{0,2}(?:,\d{3}){1,9}(?!\d)|\d+)(?:\.\d+)?|\.\d+"  # {1,9}: without a bound, quadratic
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BRACELESS_BOX = re.compile(r"\\(?:boxed|fbox)\s*([-+]?[\d.,/]*\d)")
_GSM8K = re.compile(rf"^[ \t]*####[ \t]*\$?([-+]?\$?(?:{_UNSIGNED})[ \t]*%?)\.?[ \t]*\r?$", re.MULTILINE)
_CHOICE = re.compile(
    r"\b[Aa]nswer(?:\s+is|\s*:|\s+is\s*:)[\s*$]*(?:[Oo]ption\s+|[Cc]hoice\s+)?(?:\\text\{)?"
    r"(?:\(([A-Ja-j])\)|([A-J])(?=[*$}]*(?:\s*$|\s*\n|[.,;:)])))"
)
_LONE_LETTER = re.compile(r"[ \t*(]{0,8}([A-J])[).* \t]{0,8}")
_ANSWER_IS = re.compile(r"\b[Aa]nswer(?:\s*:|\s+is\b(?:\s*:)?)")
WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|textrm|mbox|mathit)\{([^{}\\]*)\}")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_NUMBER = re.compile(
    rf"-?\\[dt]?frac\{{-?\d+\}}\{{\d+\}}|(?<![\w.])(?:(?<![\w)}}])[-−])?(?:{_UNSIGNED})(?:\s?/\s?\d+)?(?:\s?\\?%)?"
)


@dataclass(frozen=True)
class ThoughtTags:
    """What opens and closes a thought, in any of the spellings that a checkpoint uses."""

    opens: tuple[str, ...]
    closes: tuple[str, ...]


THINK = ThoughtTags(opens=("<think>",), closes=("</think>",))


def after_thought(text: str, tags: ThoughtTags = THINK, in_thought: bool = False) -> str | None:
    """The part of a completion in which its answer is looked for: what follows the last closing tag, or all of a text
    without any. None where the text, or the prompt before it (in_thought), opens a thought that never closes: what stands
    in there are tries, and a model that was paid for them would learn never to finish.
    """
    end = max((at + len(tag) for tag in tags.closes if (at := text.rfind(tag)) >= 0), default=0)
    rest = text[end:]
    if (in_thought and end == 0) or any(tag in rest for tag in tags.opens):
        return None
    return rest


def leaves_thought_open(prompt: str, tags: ThoughtTags = THINK) -> bool:
    """Whether a prompt ends inside a thought that its template has opened. A tag within the question opens none."""
    return prompt.rstrip().endswith(tags.opens)


def has_box(text: str) -> bool:
    """Whether a complete box with something in it stands in the text."""
    return _last_box(text) is not None


def extract_answer(text: str) -> str | None:
    r"""The answer of a completion (or of a published solution), or None. In this order:

    1. the last \boxed{...} or \fbox{...} with balanced braces that is not empty (of nested ones the inner; a box cut
       off at the end of the text does not count; "\boxed 17" does);
    2. the last line that is GSM8K's "#### 1,234";
    3. the last "answer is (B)" or "Answer: B", letters A to J; or a last line that is a letter alone, "**B**" or "(B)";
    4. the last bare number: "1,234.5", "-3", "3/4", "\frac{3}{4}", "50%".
    """
    box = _last_box(text)
    if box is not None:
        return box
    if "####" in text and (found := _GSM8K.findall(text)):
        return found[-1].strip()
    if "nswer" in text and (found := _CHOICE.findall(text)):
        return (found[-1][0] or found[-1][1]).upper()
    if (match := _LONE_LETTER.fullmatch(text.rstrip().rpartition("\n")[2])) is not None:
        return match.group(1)
    for line in reversed(text.splitlines()):
        if found := _NUMBER.findall(line):
            return found[-1].strip()
    return None


def extract_final(text: str) -> str | None:
    r"""The answer of a completion to a task whose answer may be anything (a word, a board of several lines), or None.

    In this order: the last \boxed{...} as above, without a \text{} around the whole; the last <answer>...</answer>;
    what follows the last "Answer:" or "answer is" on its line, or below it up to a blank line; the last line.
    """
    box = _last_box(text)
    if box is not None:
        wrapped = WRAPPED.fullmatch(box)
        return wrapped.group(1).strip() if wrapped else box
    before, tag, _ = text.rpartition("</answer>")
    if tag and "<answer>" in before:
        return before.rpartition("<answer>")[2].strip() or None
    start = max((match.end() for match in _ANSWER_IS.finditer(text)), default=None) if "nswer" in text else None
    if start is not None:
        line, _, below = text[start:].partition("\n")
        answer = line.strip(" \t\r*$`") or _BLANK_LINE.split(below.strip())[0].strip(" \t\r*$`\n")
        if answer:
            return answer
    return text.strip().rpartition("\n")[2].strip() or None


def _last_box(text: str) -> str | None:
    starts = [at for at in (text.find(r"\boxed"), text.find(r"\fbox")) if at >= 0]
    if not starts:
        return None
    # One pass with a stack: looking for the end of each box by itself would be quadratic in a text of open boxes.
    stack: list[int] = []  # where the content of an open box starts, or -1 for another brace
    best = (-1, -1)
    for match in _BRACE.finditer(text, min(starts)):
        token = match.group()
        if token == "{":
            stack.append(-1)
        elif token == "}":
            start = stack.pop() if stack else -1
            if start > best[0] and not text[start : match.start()].isspace() and start < match.start():
                best = (start, match.start())
        elif token[-1] == "{" and len(token) > 2:
            stack.append(match.end())
    for match in _BRACELESS_BOX.finditer(text, max(best[0], min(starts))):
        best = match.span(1)
    return text[slice(*best)].strip() if best[0] >= 0 else None
