"""Whether two answers mean the same, where that takes no algebra: the comparisons of microseconds.

`tidy` removes from an answer what does not change its meaning. `quick_equal` decides equal text, plain numbers and
choice letters. What neither decides goes to math-verify in a worker process (pool.py, worker.py).
"""

import re
from decimal import Decimal

from .extract import WRAPPED

_PLAIN = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)?(?:\.\d{1,6})?")
_THOUSANDS = re.compile(r",\s*\\!\s*(?=\d{3})")
_NOISE = re.compile(r"(?<!\\)\\[!,;:]|\\?\$|[€£¥]|\\displaystyle|\\dollars?\b")
_LETTER = re.compile(r"\(?\s*([A-Ja-j])\s*\)?(?:[.:)]\s.*)?", re.DOTALL)
_MIXED = re.compile(r"([-+]?\d+)\s+(\d+)\s?/\s?(\d+)")
_BLANK = re.compile(r"(?<!\d) | (?!\d)")
_PERCENT = re.compile(r"\s*(?:percent|percentage points?|pct)$", re.IGNORECASE)
_SET_BUILDER = re.compile(r"\\\{\s*[a-zA-Z]\s*(?:\||:|\\mid|\\vert)\s*(.+)\\\}", re.DOTALL)
_QUANTITY = re.compile(
    r"([-+]?[\d.,/]*\d)(?:\s*(?:cm|mm|km|dm|ft|in|yd|mi|kg|mg|lbs?|oz|hrs?|ml|mL|sq)\b|\s+([A-Za-z]{3,}))"
    r"[A-Za-z\s.]*(?:\^\{?[23]\}?|[²³])?"
)
# Words after a number that are no unit: they change its value.
_NO_UNIT = {
    *("hundred", "thousand", "million", "billion", "trillion", "dozen", "halves", "thirds", "percent", "and", "over"),
    *("plus", "minus", "times", "mod", "choose", "factorial", "base", "sqrt", "sin", "cos", "tan", "log", "exp"),
}


def tidy(answer: str) -> str:
    r"""A bare answer without what does not change its meaning: dollars, spacing commands, a sentence's full stop, bold
    marks, \text{} around the whole, a unit in plain words after a number, the frame of a set builder. The mixed number
    "1 1/2" becomes 1\frac{1}{2}, as math-verify reads it."""
    text = _THOUSANDS.sub(",", answer.replace("−", "-"))
    text = _NOISE.sub("", text).strip().strip("*").rstrip(".").strip()
    if (match := WRAPPED.fullmatch(text)) is not None:
        text = match.group(1).strip().rstrip(".")
    if (match := _QUANTITY.fullmatch(text)) is not None and (match.group(2) or "").lower() not in _NO_UNIT:
        return match.group(1)
    if (match := _SET_BUILDER.fullmatch(text)) is not None:
        return match.group(1).strip()
    if (match := _MIXED.fullmatch(text)) is not None:
        return r"{}\frac{{{}}}{{{}}}".format(*match.groups())
    return _PERCENT.sub(r"\\%", text)


def _squeeze(text: str) -> str:
    return _BLANK.sub("", " ".join(text.split()).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac"))


def quick_equal(predicted: str, gold: str) -> bool | None:
    """Decides tidied answers that need no algebra, and None for the others. Equal text is equal; plain integers and
    decimals of at most 6 places (as far as math-verify looks) are compared by value; where the gold answer is a choice
    letter, so is the other, in either case. Blanks do not count, except between digits ("1 1/2")."""
    if predicted == gold:
        return gold != ""
    if _PLAIN.fullmatch(predicted) and _PLAIN.fullmatch(gold) and predicted[-1:].isdigit() and gold[-1:].isdigit():
        return Decimal(predicted.replace(",", "")) == Decimal(gold.replace(",", ""))
    if len(gold.strip("()")) == 1 and gold.strip("()") in "ABCDEFGHIJ" and (match := _LETTER.fullmatch(predicted)):
        return match.group(1).upper() == gold.strip("()")
    return True if _squeeze(predicted) == _squeeze(gold) else None
