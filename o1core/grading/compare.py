"""Whether two answers mean the same, where that takes no algebra: the comparisons of microseconds.

`tidy` removes from an answer what does not change its meaning. `quick_equal` decides equal text, plain numbers, choice
letters, words and the bases of numbers. What neither decides goes to math-verify in a worker process (grader.py, worker.py).
"""

import re
from decimal import Decimal
from fractions import Fraction

from .extract import WRAPPED
from .quantities import (
    changing_words,
    in_digits,
    in_first_unit,
    read_clock,
    read_compound,
    read_quantity,
    simple_value,
    without_wrappers,
)
from .spelling import plain_spelling, without_groups

_PLAIN = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)?(?:\.\d{1,6})?")
_THOUSANDS = re.compile(r",\s*\\!\s*(?=\d{3})")
_NOISE = re.compile(r"(?<!\\)\\[!,;:]|\\?\$|[€£¥]|\\displaystyle(?![a-zA-Z])|\\dollars?\b")
_LETTER = re.compile(r"\(?\s*([A-Ja-j])\s*\)?(?:([.:)])\s(.*))?", re.DOTALL)
_MIXED = re.compile(r"([-+]?\d+)\s+(\d+)\s?/\s?(\d+)")
_BLANK = re.compile(r"(?<!\d) | (?!\d)")
_PERCENT = re.compile(r"\s*(?:\\text\{\s*)?\b(?:percent|percentage points?|pct)\s*\}?$", re.IGNORECASE)
_SET_BUILDER = re.compile(r"\\\{\s*[a-zA-Z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\||:|\\mid|\\vert)\s*(.+)\\\}", re.DOTALL)


def decide(predicted: str, gold: str) -> bool | tuple[str, str]:
    r"""Whether two bare answers mean the same, or the pair in the spelling that algebra is to compare.

    The cheapest comes first: plain numbers and words in microseconds, then one spelling for both (spelling.py), labels of
    choices, times of day, and numbers with words (quantities.py). A word that changes a number must stand on both sides.
    """
    if (equal := quick_equal(predicted, gold)) is not None:
        return equal
    predicted, gold = (_unannounced(plain_spelling(text)) for text in (predicted, gold))
    if _PLAIN.fullmatch(predicted):
        gold = without_groups(gold)
    elif _PLAIN.fullmatch(gold):
        predicted = without_groups(predicted)
    if (equal := quick_equal(predicted, gold)) is not None:
        return equal
    if _IS_PAIR.fullmatch(gold) and _IS_SET.fullmatch(predicted):
        return False  # (0, 1) has an order or a length, \{0, 1\} has neither
    if (equal := _same_letters(predicted, gold)) is not None:
        return equal
    label, predicted_value = _read_label(predicted)
    asked, gold_value = _read_label(gold)
    if asked and label:
        return label == asked and not (gold_value == "" and _lists_more(label, predicted_value))
    if label and not _is_letter(gold):
        predicted = predicted_value or predicted
    if asked:
        gold = gold_value or gold
    predicted, gold = _on_the_clock(predicted, gold), _on_the_clock(gold, predicted)
    if (equal := _same_time(predicted, gold)) is not None:
        return equal
    if (numbers := (in_digits(predicted), in_digits(gold))) != (predicted, gold):
        predicted, gold = numbers
        if (equal := quick_equal(predicted, gold)) is not None:
            return equal
    if _same_percentage(predicted, gold):
        return True
    settled = _settle_quantities(predicted, gold)
    if isinstance(settled, bool):
        return settled
    predicted, gold = (tidy(text) for text in settled)
    if not predicted or not gold:
        return False
    if (equal := quick_equal(predicted, gold)) is not None:
        return equal
    return (predicted, gold) if changing_words(predicted) == changing_words(gold) else False


_ANNOUNCED = re.compile(
    r"(?:(?:the\s+)?(?:(?:final|correct)\s+)?answer(?:\s+is|\s*:)\s*:?"
    r"|(?:about|approximately|approx\.|roughly|exactly|only|a\s+total\s+of)\s)\s*(?=.)",
    re.IGNORECASE,
)


def _unannounced(text: str) -> str:
    """An answer without words before it that change nothing: "The answer is", "about", "a total of"."""
    plain = without_wrappers(text)
    return text if (match := _ANNOUNCED.match(plain)) is None else plain[match.end() :].rstrip(".")


_IS_PAIR = re.compile(r"(?:\\left\s*)?\(([^()\[\]{}]|\{[^{}]*\})*,.*\)", re.DOTALL)
_IS_SET = re.compile(r"(?:\\left\s*)?\\\{[^()]*\\\}", re.DOTALL)
_ALL_LETTERS = re.compile(r"[A-J]{2,6}")


def _same_letters(predicted: str, gold: str) -> bool | None:
    """Compares the choices of a question with several right ones: "AC" and "A, C". None for other answers."""
    sides = [without_wrappers(text) for text in (predicted, gold)]
    together = [_ALL_LETTERS.fullmatch(side) is not None for side in sides]
    if not any(together) or not all(_LETTERS_ALONE.fullmatch(side) or one for side, one in zip(sides, together)):
        return None
    ours, asked = (set(re.findall(r"[A-J]", side)) for side in sides)
    return ours == asked


def tidy(answer: str) -> str:
    r"""A bare answer without what does not change its meaning: dollars, spacing commands, a sentence's full stop, bold
    marks, \text{} around the whole, the frame of a set builder. The mixed number "1 1/2" becomes 1\frac{1}{2}, as
    math-verify reads it."""
    text = _NOISE.sub("", _THOUSANDS.sub(",", answer)).strip().strip("*").rstrip(".,;").strip()
    if (match := WRAPPED.fullmatch(text)) is not None:
        text = match.group(1).strip().rstrip(".")
    if (match := _SET_BUILDER.fullmatch(text)) is not None and r"\in" not in match.group(1):
        return match.group(1).strip()
    if (match := _MIXED.fullmatch(text)) is not None:
        return r"{}\frac{{{}}}{{{}}}".format(*match.groups())
    return _PERCENT.sub(r"\\%", text)


_LABEL = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s*(?:is\s*)?:?\s*)?"
    r"(?:\(\s*([A-J])\s*\)[.:]?|\[\s*([A-J])\s*\]|([A-J])\s*[.:)](?=\s|\\|\$|\d|-|$)|([A-J])$)\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)


def _read_label(text: str) -> tuple[str, str]:
    r"""The letter and the rest of an answer that begins with the label of a choice: "(C)\ 12", "\text{C. } 12", "Option
    C". Two empty texts for other answers; small letters are labels only in brackets, and with nothing after them."""
    plain = without_wrappers(text).replace("$", "").strip(" *\\")
    match = _LABEL.fullmatch(plain)
    if match is None:
        return "", ""
    letter, rest = next(group for group in match.groups()[:4] if group), match[5].strip()
    if letter.islower() and rest:
        return "", ""
    return letter.upper(), rest


def _is_letter(gold: str) -> bool:
    letter = gold.strip("()")
    return len(letter) == 1 and letter in "ABCDEFGHIJ"


_HUNDREDTHS = re.compile(r"\s*\\?%$")


def _same_percentage(predicted: str, gold: str) -> bool:
    r"""Whether two numbers are equal, of which one at least is a percentage: 66\frac{2}{3}\% is 66\frac{2}{3} and 2/3."""
    ours, asked = (simple_value(_HUNDREDTHS.sub("", text)) for text in (predicted, gold))
    if ours is None or asked is None:
        return False
    said = [_HUNDREDTHS.search(text) is not None for text in (predicted, gold)]
    return any(said) and (ours == asked or (not all(said) and ours == asked * (100 if said[0] else Fraction(1, 100))))


_O_CLOCK = re.compile(r"(\d{1,2})\s*o\s?['’]?\s?clock", re.IGNORECASE)


def _on_the_clock(text: str, other: str) -> str:
    """ "3 o'clock" as 3:00 beside a time that has a colon, and as 3 beside another number."""
    return _O_CLOCK.sub(r"\1:00" if ":" in other else r"\1", without_wrappers(text)) if "clock" in text else text


def _same_time(predicted: str, gold: str) -> bool | None:
    """Compares times of day. One that leaves its half of the day to the question may be in either."""
    ours, asked = read_clock(predicted), read_clock(gold)
    if ours is None or asked is None or not (ours[1] or asked[1]):
        return None
    return ours[0] == asked[0] if ours[1] and asked[1] else ours[0] % 720 == asked[0] % 720


def _settle_quantities(predicted: str, gold: str) -> bool | tuple[str, str]:
    """Compares two numbers with units of one kind, or takes the units off: a unit alone makes nothing wrong, as most
    questions state theirs."""
    sides = predicted, gold
    many = [read_compound(side) for side in sides]
    one = [read_quantity(side) if several is None else None for side, several in zip(sides, many)]
    # In seconds, millimetres, cents, where both sides say so.
    totals = [
        several[:2] if several is not None else in_first_unit(single) if single is not None else None
        for several, single in zip(many, one)
    ]
    for several, other in zip(many, reversed(sides)):  # "2 hours and 30 minutes" are 2.5, or 150, where no unit is said
        if several is not None and (value := simple_value(other)) is not None:
            return value in several[3]
    ours, asked = totals
    if ours and asked and ours[0] == asked[0] and ours[1] is not None and asked[1] is not None:
        return ours[1] == asked[1]
    values = [
        ", ".join(several[2]) if several is not None else single.value if single is not None else side
        for side, several, single in zip(sides, many, one)
    ]
    # "12m" is twelve metres beside a number, and twelve times m beside "6m + 6m".
    for at in (0, 1):
        single = one[at]
        if single is not None and single.symbols_only and _VARIABLE.search(values[1 - at]):
            values[at] = sides[at]
    return values[0], values[1]


_VARIABLE = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")


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
    if _is_letter(gold) and (match := _LETTER.fullmatch(predicted)):
        return match[1].upper() == gold.strip("()") and not _lists_more(match[1].upper(), match[3] or "", match[2])
    if _squeeze(predicted) == _squeeze(gold):
        return True
    return False if _other_base(predicted, gold) else _same_words(predicted, gold)


def _squeeze(text: str) -> str:
    return _BLANK.sub("", " ".join(text.split()).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac"))


_LETTERS_ALONE = re.compile(r"(?:(?:and|or)\b|[A-J]\b|[\s().,:;&/])+")


def _lists_more(letter: str, rest: str, mark: str | None = None) -> bool:
    """Whether a choice letter is the first of several: "A) B) C)", or "A) 12 B) 13"."""
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
        return given == asked or _singular(predicted) == _singular(gold)
    letters, found = asked[0], _letters(_COMMAND.sub(" ", predicted))
    is_anagram = len(asked) == 1 and found != letters and sorted(found) == sorted(letters)
    return False if is_anagram and not _PRODUCT.search(predicted) else None


def _singular(text: str) -> list[str]:
    """The sorted items of a list of words without an article before them and an s behind: "an ellipse", "no solutions"."""
    parts = (_ARTICLE.sub("", part.strip()) for part in _WORD_BREAK.split(text.casefold()))
    return sorted(item.removesuffix("s") if len(item) > 3 else item for part in parts if (item := _letters(part)))


_ARTICLE = re.compile(r"(?:an?|the)\s+")


def _words(text: str) -> list[str] | None:
    """The sorted items of a list of words, each as its letters. None for other text, and for what may be a product: "xy"
    is one, and "no" is not, since o is no variable."""
    if not _WORDS.fullmatch(text):
        return None
    items = [item for part in _WORD_BREAK.split(text.casefold()) if (item := _letters(part))]
    words = {word for part in _WORD_BREAK.split(text.casefold()) for word in re.findall(r"[^\W\d_]+", part)}
    if words & _FUNCTIONS or not any(len(word) > 2 or (len(word) == 2 and "o" in word) for word in words):
        return None
    return sorted(items) or None  # "²" is a sign of words, and no letter


def _letters(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalpha())
