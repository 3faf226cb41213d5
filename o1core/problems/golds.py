"""The gold answer in a published solution: GSM8K's "#### 72", a box, or "The answer is 72"."""

import re

from ..grading import last_box

_WORD = r"[^\W\d_]+\.?"
_NUMBER = re.compile(
    r"([-+−]?\s?(?:[$€£¥₹]\s?)?[-+−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s?/\s?\d+)?\s?%?)"
    rf"((?:\s+{_WORD}){{0,2}})\.?"
)
_COUNTING = re.compile(  # words after a number that change what it comes to: "5 million" is not 5
    r"(?:hundred|thousand|million|billion|trillion|dozen|pair|couple|score|gross|percent|hal[fv]e?|third|quarter"
    r"|\w*(?:fth|xth|nth|hth)|hundredth|thousandth|below|and|or|to|am|pm|[ap])s?\.?",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"\d+[.)]\s|[IVX]+\.\s|(?:step|part|case|solution|explanation|note|hint|approach|method|conclusion|summary|analysis"
    r"|verification|check|problem|question|given|result|proof|calculation|reasoning|understanding|thought)s?\b",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"(?:^|\b)(?:final\s+)?answer(?:\s+is\s*:?|\s*:)\s*(.*)", re.IGNORECASE)
_ANSWER_HEADING = re.compile(r"(?:the\s+)?(?:final\s+)?answer", re.IGNORECASE)


def gold_of(answer: str) -> str | None:
    """The gold answer that a row's answer states: the answer itself, or that in the solution which it is. None where it
    is a solution of GSM8K's kind without a final answer."""
    found = gold_in(answer)
    if found is not None or "####" in answer or "<<" in answer:
        return found or None
    return without_dollars(answer)


def gold_in(solution: str) -> str | None:
    r"""The gold answer of a solution, or None. In this order:

    1. the last line "#### 72" that is a number, its unit left out ("#### 5 apples" is 5, "#### 5 million" is not);
    2. the last \boxed{...} ("" where it is empty);
    3. the last line "#### x + 1" that is no heading of a section;
    4. what follows the last "answer is" or "answer:" on its line.
    """
    marked = list(_marked(solution))
    for text in reversed(marked):
        if (number := bare_number(text)) is not None:
            return number
    if r"\boxed" in solution or r"\fbox" in solution:
        return last_box(solution) or ""
    for text in reversed(marked):
        if text and not _HEADING.match(text) and not text.endswith(":"):
            return without_dollars(text)
    said = [match[1] for line in solution.splitlines() if (match := _ANSWER.search(line)) and match[1].strip(" *_$.")]
    if not said:
        return None
    text = without_dollars(said[-1].strip(" *_").removesuffix(".").strip(" *_"))
    return bare_number(text) or text


def _marked(solution: str) -> list[str]:
    """What the lines that begin with "####" say; below a heading "#### Answer", what the next line says."""
    lines = [line.strip() for line in solution.splitlines() if line.strip()]
    found = []
    for line, below in zip(lines, [*lines[1:], ""]):
        head, mark, text = line.rpartition("####")
        if not mark or head.strip("# "):
            continue
        text = text.strip(" #*_\t")
        if _ANSWER_HEADING.fullmatch(text.rstrip(": *_")):
            text = below.strip(" *_")
        elif answer := _ANSWER.match(text):
            text = answer[1].strip(" *_")
        found.append(text)
    return found


def bare_number(text: str) -> str | None:
    """The number of "5", "$1,234.50", "3/4" or "5 apples"; None where the words after it count too."""
    match = _NUMBER.fullmatch(text)
    if match is None or any(_COUNTING.fullmatch(word) for word in match[2].split()):
        return None
    return match[1].strip()


def without_dollars(text: str) -> str:
    r"""The formula of "$\frac12$"; "$5" is a price."""
    text = text.strip()
    in_dollars = len(text) > 1 and text[0] == text[-1] == "$" and text.count("$") == 2
    return text[1:-1].strip() if in_dollars else text
