"""Whether two answers mean the same, where that takes no algebra: the comparisons of microseconds.

`tidy` removes from an answer what does not change its meaning. `quick_equal` decides equal text, plain numbers, choice
letters, words and the bases of numbers. What neither decides goes to math-verify in a worker process (pool.py, worker.py).
"""

import re
from decimal import Decimal

from .extract import WRAPPED

_PLAIN = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)?(?:\.\d{1,6})?")
_THOUSANDS = re.compile(r",\s*\\!\s*(?=\d{3})")
_NOISE = re.compile(r"(?<!\\)\\[!,;:]|\\?\$|[€£¥]|\\displaystyle|\\dollars?\b")
_LETTER = re.compile(r"\(?\s*([A-Ja-j])\s*\)?(?:([.:)])\s(.*))?", re.DOTALL)
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


def quick_equal(predicted: str, gold: str) -> bool | None:
    """Decides tidied answers that need no algebra, and returns None for the others.

    Equal text is equal. Plain integers and decimals of at most 6 places (as far as math-verify looks) are compared by
    value. Where the gold answer is a choice letter, so must the other be, in either case. Words are compared letter by
    letter, in either case, since algebra would read "act" as the product that "cat" is. Numbers that state a base must
    state the same. White space does not count, except between digits ("1 1/2").
    """
    if predicted == gold:
        return gold != ""
    if _PLAIN.fullmatch(predicted) and _PLAIN.fullmatch(gold) and predicted[-1:].isdigit() and gold[-1:].isdigit():
        return Decimal(predicted.replace(",", "")) == Decimal(gold.replace(",", ""))
    letter = gold.strip("()")
    if len(letter) == 1 and letter in "ABCDEFGHIJ" and (match := _LETTER.fullmatch(predicted)):
        return match.group(1).upper() == letter and not _lists_more(match)
    if _squeeze(predicted) == _squeeze(gold):
        return True
    return False if _other_base(predicted, gold) else _same_words(predicted, gold)


def _squeeze(text: str) -> str:
    return _BLANK.sub("", " ".join(text.split()).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac"))


_LETTERS_ALONE = re.compile(r"(?:(?:and|or)\b|[A-J]\b|[\s().,:;&/])+")


def _lists_more(choice: re.Match[str]) -> bool:
    """Whether a choice letter is the first of several: "A) B) C)", or "A) 12 B) 13"."""
    letter, mark, rest = choice.group(1).upper(), choice.group(2), choice.group(3) or ""
    if _LETTERS_ALONE.fullmatch(rest):
        return set(re.findall(r"\b[A-J]\b", rest)) - {letter} != set()
    # "A. Carbon (C)" and "D. found in E. coli" are one choice each. A list goes on with the next letter and the same mark.
    before = r"\s" if mark == ")" else r"[,;.\n]\s*"
    return re.search(rf"{before}\(?{chr(ord(letter) + 1)}{re.escape(mark or '.')}\s", rest) is not None


_BASED = re.compile(  # an algebraic 2A_1 has no base: A is no digit below base 11
    r"(?<![\w}\\])(?:\d[\d.]*|\d[\dA-F.]*(?=\s*_\s*\{?\s*\(?\s*1[1-6]))"
    r"(?:\s*_\s*\{?\s*\(?\s*(\d+)|\s*(?:\\(?:text|mathrm)\{)?[\s(,]*base\s*(\d+))"
)


def _other_base(predicted: str, gold: str) -> bool:
    """Whether both state the base of a number ("101_2", "1A_{16}", "101 (base 2)"), and not the same. Of "5_{10} = 101_2"
    the last side counts. Either may leave the base to the question."""
    stated, asked = ({a or b for a, b in _BASED.findall(text)} for text in (predicted.rpartition("=")[2], gold))
    return bool(stated and asked and stated != asked)


_WORDS = re.compile(r"(?:[^\W\d_]|(?<=[^\W\d_])[-'’](?=[^\W\d_])|[\s,;])+")
_WORD_BREAK = re.compile(r"[,;]|\b(?:and|or)\b")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_PRODUCT = re.compile(r"[*·×\d]|\\(?:cdot|times)")
_FUNCTIONS = {
    *("sin", "cos", "tan", "sec", "csc", "cot", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln"),
    *("exp", "sqrt", "max", "min", "gcd", "lcm", "mod", "lim", "det"),
}


def _same_words(predicted: str, gold: str) -> bool | None:
    """Compares words as words, and lists of words in any order. None where the gold answer is no word."""
    if (asked := _words(gold)) is None:
        return None
    if (given := _words(predicted)) is not None:
        return given == asked
    letters, found = asked[0], _letters(_COMMAND.sub(" ", predicted))
    is_anagram = len(asked) == 1 and found != letters and sorted(found) == sorted(letters)
    return False if is_anagram and not _PRODUCT.search(predicted) else None


def _words(text: str) -> list[str] | None:
    """The sorted items of a list of words, each as its letters. None for other text, and for what may be a product: "xy"
    is one, and "no" is not, since o is no variable."""
    if not _WORDS.fullmatch(text):
        return None
    items = [item for part in _WORD_BREAK.split(text.casefold()) if (item := _letters(part))]
    words = {word for part in _WORD_BREAK.split(text.casefold()) for word in re.findall(r"[^\W\d_]+", part)}
    if words & _FUNCTIONS or not any(len(word) > 2 or (len(word) == 2 and "o" in word) for word in words):
        return None
    return sorted(items)


def _letters(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalpha())
