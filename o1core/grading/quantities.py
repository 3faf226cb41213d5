r"""Numbers with words: units, "5 million", "3 tenths", "5 feet 3 inches", "8:34 p.m.", "5 degrees below zero".

math-verify drops what \text{} holds, so "5 \text{ million}" would pass for 5. Here a word that changes the value changes
it, a unit goes, and what was asked for in one unit may be answered in another. Text that none of this fits is left alone.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_SCALES = {
    "hundred": 2,
    "thousand": 3,
    "million": 6,
    "billion": 9,
    "trillion": 12,
    "lakh": 5,
    "crore": 7,
    "万": 4,
    "亿": 8,
}
_SHORT_SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion"}  # $2M
_PART_OF = {
    **{"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9},
    **{"tenth": 10, "hundredth": 100, "thousandth": 1000, "millionth": 10**6},
}

# How many of the first unit of its line a unit is. Two answers that name units of one line are compared in them.
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (line.split()[0].partition("=")[0].partition(",")[0], Fraction(factor))
    for line in (
        "mm,millimeter,millimetre,毫米=1 cm,centimeter,centimetre,厘米=10 dm,decimeter=100 m,meter,metre,米=1000 "
        "km,kilometer,kilometre,千米,公里=1000000 in,inch,inches=127/5 ft,foot,feet=1524/5 yd,yard=4572/5 mi,mile=1609344",
        "s,sec,second,秒=1 min,minute,分钟=60 h,hr,hour,小时=3600 day,天=86400 week=604800",
        "mg,milligram=1 g,gram,克=1000 kg,kilogram,千克,公斤=1000000",
        "oz,ounce=1 lb,pound=16",
        "cent,¢=1 dollar,$=100",
    )
    for names, _, factor in (word.partition("=") for word in line.split())
    for name in names.split(",")
}
_SYMBOLS = {
    *("mm", "cm", "dm", "m", "km", "in", "ft", "yd", "mi", "s", "sec", "min", "h", "hr", "hrs", "mg", "g", "kg", "oz"),
    *(
        "lb",
        "lbs",
        "ml",
        "mL",
        "L",
        "l",
        "dL",
        "cL",
        "kL",
        "J",
        "kJ",
        "N",
        "kN",
        "W",
        "kW",
        "MW",
        "kWh",
        "V",
        "mV",
        "A",
    ),
    *(
        "mA",
        "Hz",
        "kHz",
        "MHz",
        "GHz",
        "Pa",
        "kPa",
        "MPa",
        "atm",
        "K",
        "C",
        "F",
        "mol",
        "rad",
        "mph",
        "kph",
        "rpm",
        "bps",
    ),
    *(
        "kB",
        "KB",
        "MB",
        "GB",
        "TB",
        "t",
        "ha",
        "nm",
        "um",
        "ns",
        "ms",
        "us",
        "eV",
        "Ω",
        "cal",
        "kcal",
        "USD",
        "EUR",
        "cu",
    ),
    *(
        "sq",
        "yr",
        "yrs",
        "units",
        "unit",
        "deg",
        "th",
        "st",
        "nd",
        "rd",
        "cc",
        "gal",
        "pts",
        "pt",
        "rev",
        "bit",
        "bits",
    ),
}
# Words that change what a number says, or that state no unit. They must be the same on both sides.
_NO_UNIT = {
    *("and", "over", "plus", "minus", "mod", "choose", "factorial", "base", "sqrt", "sin", "cos", "tan", "log", "exp"),
    *("not", "non", "no", "than", "below", "under", "negative", "except", "without", "or", "score", "to", "with", "if"),
    *(
        "dozen",
        "percent",
        "percentage",
        "pct",
        "times",
        "ln",
        "lg",
        "max",
        "min",
        "gcd",
        "lcm",
        "mod",
        "for",
        "when",
        "where",
    ),
    *_SCALES,
    *_PART_OF,
    *(f"{part}s" for part in _PART_OF),
    "halves",
}
_IN_WORDS = {
    **{"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9},
    **{"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16},
    **{"seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50},
    **{"sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90},
}
_NO_UNIT |= set(_IN_WORDS)
_CHANGING = {"not", "non", "no", "than", "below", "under", "negative", "minus", "except", "without", "dozen", "halves"}
_CHANGING |= {*_SCALES, *(f"{part}s" for part in _PART_OF), "half"}

_TEXT = re.compile(
    r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox|rm|operatorname)\s*\{([^{}]*)\}|\{\\rm\s+([^{}]*)\}"
)
_ORDINAL = re.compile(r"(?<=\d)\s*\^\s*\{?\s*(st|nd|rd|th)\s*\}?(?![A-Za-z])")
_SPACE = re.compile(r"\\(?:[,;:! ]|q?quad(?![A-Za-z]))|~")
_CURRENCY = r"(?:\\?[$€£¥₹₩₽฿￥]|Rs\.?\s|USD\s|(?:US|HK)\s?\\?\$)"
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
_GROUP = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_FRAC = rf"(?:\\frac\s*(?:{_GROUP}\s*{_GROUP}|\d\s*\d|{_GROUP}\s*\d|\d\s*{_GROUP}))"
_SIMPLE = rf"(?:{_NUMBER}\s*{_FRAC}|{_NUMBER}\s+\d+\s?/\s?\d+|{_NUMBER}\s?/\s?\d+|{_FRAC}|{_NUMBER})"
_SURD = rf"(?:(?:{_SIMPLE})?\s*\\?\*?\s*(?:\\pi(?![a-z])|\\sqrt(?:\[\d\])?\s*(?:{_GROUP}|\d))(?:\s?/\s?\d+)?)"
_POWER_OF_TEN = r"(?:\s*(?:\\times|\\cdot)\s*10\s*\^\s*(?:\{\s*-?\d+\s*\}|-?\d+))"
_TERM = rf"(?:{_SURD}|{_SIMPLE}{_POWER_OF_TEN}?)"
_AMOUNT = re.compile(
    rf"(?P<name>[A-Za-z][\w ]{{0,30}}=\s*)?(?P<minus>[-+]|negative\s|minus\s)?\s*(?P<money>{_CURRENCY})?\s*(?P<sign>-?)\s*"
    rf"(?P<value>{_TERM}(?:\s*[-+]\s*{_TERM}){{0,3}})(?P<tail>.*)",
    re.DOTALL,
)
_TAIL = re.compile(
    r"\s*(?:\^?\s*\{?\\circ\}?|\^\\prime)?(?:[\s\-/·().$€£¥₹₩₽¢]|\\(?:cdot|times|Omega|mu(?=\s?[a-zA-Z]\b))(?![a-z])"
    r"|[^\W\d_]++(?:\s?\^\s*(?:\{\s*-?\d\s*\}|-?\d)|\d)?)*+"
)
_WORD = re.compile(r"[^\W\d_]+")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_FOREIGN = re.compile(r".*[^\W\x00-\x7fͰ-Ͽ]")  # a letter of no formula: 元, zł


@dataclass(frozen=True)
class Quantity:
    """A number, what it is counted in, and how sure that is."""

    value: str  # as TeX
    unit: str | None = None  # one word of _UNITS
    symbols_only: bool = False  # "12m" may be twelve times m


def read_quantity(text: str) -> Quantity | None:
    r"""The number of an answer that is a number with words, or None for any other answer ("x^2 \text{ or } 3")."""
    plain = without_wrappers(text)
    if (match := _AMOUNT.fullmatch(plain)) is None:
        return None
    tail, money = match["tail"], (match["money"] or "").strip("\\ ")
    counted = _WORD.search(tail) or "¢" in tail or money or len(match["minus"] or "") > 1
    if not counted or _TAIL.fullmatch(tail) is None:
        return None
    value = match["value"].strip()
    words = [word.lower() for word in _WORD.findall(_COMMAND.sub(" ", tail))]
    if money and words and words[0] in _SHORT_SCALES:
        words[0] = _SHORT_SCALES[words[0]]
    negative = (match["minus"] or "+")[0] in "-nm" or match["sign"] == "-"
    if re.search(r"\bbelow\s+(?:zero|freezing)\b", tail, re.IGNORECASE):
        negative, words = not negative, [word for word in words if word not in ("below", "zero", "freezing")]
    # "2.5 hundred thousand", "5 million", "3 dozen", "5 tenths": the words that multiply or divide come first.
    factor, of = Fraction(1), False
    while words and not of:
        one = _factor(words[0])
        if one is None:
            break
        factor, of = factor * one, one < 1
        words = words[1:]
    if of and words[:1] == ["of"]:
        words = words[1:]
    if any(word in _NO_UNIT and word not in _SYMBOLS for word in words):
        return None
    symbols = all(word in _SYMBOLS or word.lower() in _SYMBOLS for word in _WORD.findall(_COMMAND.sub(" ", tail)))
    bare = symbols and bool(words) and _TEXT.search(text) is None and not money
    outside = tail if _TEXT.search(text) is None else _COMMAND.sub(" ", _TEXT.sub(" ", text).rpartition("=")[2])
    unknown = [word for word in words if len(word) < 3 and word not in _SYMBOLS | {"of", "us"}]
    if not bare and not all(_FOREIGN.match(word) for word in unknown if word in _WORD.findall(outside.lower())):
        return None  # a product of letters, perhaps
    if factor != 1:
        value = _times(value, factor)
    sign = "-" if negative else ""
    return Quantity(sign + value, _unit(words, tail, money), bare)


def _factor(word: str) -> Fraction | None:
    """What a word multiplies a number by, or None for other words."""
    if word in _SCALES:
        return Fraction(10 ** _SCALES[word])
    if word.removesuffix("s") in _SCALES and word.endswith("s"):
        return Fraction(10 ** _SCALES[word[:-1]])
    if word in ("dozen", "dozens"):
        return Fraction(12)
    part = "half" if word == "halves" else word.removesuffix("s")
    return Fraction(1, _PART_OF[part]) if part in _PART_OF else None


def _unit(words: list[str], tail: str, money: str) -> str | None:
    if money:
        return "$" if money == "$" else None
    if "¢" in tail and not words:
        return "¢"
    if len(words) != 1 or re.search(r"[/^]", tail):
        return None
    word = words[0]
    return next((name for name in (word, word.removesuffix("s"), word.removesuffix("es")) if name in _UNITS), None)


def without_wrappers(text: str) -> str:
    r"""The words that \text{} and its kin hold, as plain words between blanks; TeX's spaces as blanks."""
    while (opened := _TEXT.sub(lambda m: f" {m[1] if m[1] is not None else m[2]} ", text)) != text:
        text = opened
    return _ORDINAL.sub(r"\1", _SPACE.sub(lambda m: "" if m[0] == r"\!" else " ", text)).strip()


def simple_value(text: str) -> Fraction | None:
    r"""The exact value of "-3", "1,234.5", "3/4", "\frac{3}{4}", "1 1/2" or "1\frac{1}{2}"; None for other text."""
    text = text.replace(",", "").replace("{", " ").replace("}", " ").strip()
    negative, text = text.startswith("-"), text.lstrip("+-").strip()
    mixed = re.fullmatch(
        r"(?:(\d+)\s*(?=\\)|(\d+)\s+(?=\d))?(?:\\frac\s*(\d+)\s+(\d+)|\\frac\s*(\d)(\d)|(\d+)\s?/\s?(\d+))\s*", text
    )
    if mixed:
        whole = int(mixed[1] or mixed[2] or 0)
        top, bottom = (int(mixed[a] or mixed[b] or mixed[c]) for a, b, c in ((3, 5, 7), (4, 6, 8)))
        if bottom == 0:
            return None
        value = whole + Fraction(top, bottom)
    elif re.fullmatch(r"\d+(?:\.\d+)?|\.\d+", text):
        value = Fraction(text)
    else:
        return None
    return -value if negative else value


def as_tex(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    value = abs(value)
    return (
        f"{sign}{value.numerator}"
        if value.denominator == 1
        else rf"{sign}\frac{{{value.numerator}}}{{{value.denominator}}}"
    )


def _times(value: str, factor: Fraction) -> str:
    exact = simple_value(value)
    return (
        rf"\frac{{{factor.numerator}}}{{{factor.denominator}}} \cdot {value}"
        if exact is None
        else as_tex(exact * factor)
    )


_PIECE = re.compile(
    rf"\s*(?:,|and\b)?\s*({_SIMPLE})\s*-?\s*([^\W\d_]+|[°¢]|\\circ|\^\s*\{{?\\circ\}}?|''|'|\")\.?\s*(?:,|and\b)?"
)


def read_compound(text: str) -> tuple[str, Fraction | None, list[str], list[Fraction]] | None:
    r"""(first unit of the line, total in it, the numbers, the total in each unit named) of an answer that has several
    numbers with a word each, as "5 \text{ feet and } 3 \text{ inches}" has; the total is None where the words are no units
    of one line. None for other answers."""
    plain, at = without_wrappers(text), 0
    numbers: list[str] = []
    total: Fraction | None = Fraction(0)
    lines: set[str] = set()
    sizes: list[Fraction] = []
    negative = plain.startswith("-")
    plain = plain.removeprefix("-")
    while match := _PIECE.match(plain, at):
        word = {"'": "ft", "''": "in", '"': "in"}.get(match[2], match[2].lower())
        unit = next((u for u in (word, word.removesuffix("s"), word.removesuffix("es")) if u in _UNITS), None)
        value = simple_value(match[1])
        numbers.append(match[1])
        if unit is None or value is None:
            if len(word) < 3 or word in _NO_UNIT or word.startswith("\\"):
                return None
            total = None
        elif total is not None:
            lines.add(_UNITS[unit][0])
            sizes.append(_UNITS[unit][1])
            total += value * _UNITS[unit][1]
        at = match.end()
    if len(numbers) < 2 or plain[at:].strip(" ."):
        return None
    if len(lines) != 1 or total is None:
        return "", None, numbers, []
    total = -total if negative else total
    return lines.pop(), total, numbers, [total / size for size in sizes]


def in_first_unit(quantity: Quantity) -> tuple[str, Fraction] | None:
    """A quantity in the first unit of its line, where both are known."""
    value = simple_value(quantity.value)
    if quantity.unit is None or value is None:
        return None
    line, factor = _UNITS[quantity.unit]
    return line, value * factor


_PART = r"(half|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)"
_A_PART = re.compile(rf"(?:(?:one|an?)[\s-])?{_PART}", re.IGNORECASE)
_AND_A_PART = re.compile(rf"(\d+)\s+and\s+(?:(a|\w+)[\s-])?(half|{_PART[1:-1]})(?:e?s)?(?![A-Za-z])", re.IGNORECASE)
_OUT_OF = re.compile(r"(\d+)\s+(?:in|out\s+of)\s+(\d+)")
_TO = re.compile(r"(\d+)\s+to\s+(\d+)")


def in_digits(text: str) -> str:
    r"""An answer with its first number in digits, where that is said in words: "twenty-one apples" is 21 apples, "two
    thirds" 2 thirds, "one and a half hours" 1 1/2 hours, "a quarter" 1/4, "1 out of 4" 1/4, "3 to 4" 3:4."""
    plain = without_wrappers(text)
    if not re.search(r"[A-Za-z]{2}", plain):
        return text
    for pattern, sign in ((_OUT_OF, "/"), (_TO, ":")):
        if (match := pattern.fullmatch(plain)) is not None:
            return f"{match[1]}{sign}{match[2]}"
    if (match := _A_PART.fullmatch(plain)) is not None:
        return f"1/{_PART_OF[match[1].lower()]}"
    number, end = _number_in_words(plain)
    if number is not None:
        plain = f"{number} {plain[end:].lstrip(' -')}".strip()
    mixed = _AND_A_PART.match(plain)
    if mixed is not None:
        top = mixed[2] or "1"
        top = "1" if top == "a" else top if top.isdigit() else str(_number_in_words(top)[0])
        if top != "None":
            return f"{mixed[1]} {top}/{_PART_OF[mixed[3].lower()]}{plain[mixed.end() :]}"
    return text if number is None else plain


_STARTS_IN_WORDS = re.compile(rf"\s+(?:{'|'.join(_IN_WORDS)})(?![A-Za-z])", re.IGNORECASE)


def _number_in_words(text: str) -> tuple[int | None, int]:
    """The number that a text begins with in words, "two hundred and five", and where it ends. None where there is none."""
    whole, part, last, end = 0, 0, 1000, 0
    found = False
    for match in re.finditer(r"[A-Za-z]+", text):
        word, between = match[0].lower(), text[end : match.start()]
        if between.strip(" -") or (not found and match.start() > 0):
            break
        value = _IN_WORDS.get(word)
        if value is not None and value < last and (last >= 100 or (value < 10 and last >= 20)):
            part, last = part + value, value
        elif word == "hundred" and found and part % 100 and last < 100:
            part, last = part * 100, 100
        elif word in ("thousand", "million", "billion") and found and part:
            whole, part, last = whole + part * 10 ** _SCALES[word], 0, 1000
        elif not (word == "and" and found and last in (100, 1000) and _STARTS_IN_WORDS.match(text, match.end())):
            break
        found, end = True, match.end()
    return (whole + part, end) if found else (None, 0)


_CLOCK = re.compile(
    r"(?:at\s+)?(\d{1,2})(?:\s?[:.]\s?(\d{2}))?(?:\s?:\s?\d{2})?\s*"
    r"(?:(a|p)\.?\s?m\.?|(?:o'?clock\s*)?(?:in\s+the\s+(morning|afternoon|evening))|o'?clock)?"
)


def read_clock(text: str) -> tuple[int, bool] | None:
    """(minutes since midnight, whether morning or afternoon is stated) of a time of day, or None for other text. A time
    has a colon, or says a.m., p.m., "in the morning", noon or midnight."""
    plain = " ".join(without_wrappers(text).lower().replace("{", "").replace("}", "").split()).rstrip(".")
    plain = re.sub(r"(?<=m)\.$|,$", "", plain)
    plain = re.sub(r"^12(?::00)?\s+(?=noon|midnight)", "", plain)
    if plain in ("noon", "midnight"):
        return (720 if plain == "noon" else 0), True
    match = _CLOCK.fullmatch(plain)
    if match is None or not (match[3] or match[4] or (match[2] and ":" in plain)):
        return None
    hour, minute = int(match[1]), int(match[2] or 0)
    if hour > 24 or minute > 59:
        return None
    half = match[3] or ({"morning": "a"}.get(match[4], "p") if match[4] else None)
    if half is None:
        return hour * 60 + minute, hour > 12
    if hour > 12:
        return None
    return (hour % 12 + 12 * (half == "p")) * 60 + minute, True


_OR_MORE = re.compile(r"\b(?:or|and)\s+(?:more|less|fewer|greater|higher|lower|above|below|up|over)\b")


def changing_words(text: str) -> list[str]:
    """The words in an answer that change what its numbers say."""
    plain = _COMMAND.sub(" ", without_wrappers(text).lower())
    return sorted([word for word in re.findall(r"[a-z]+", plain) if word in _CHANGING] + _OR_MORE.findall(plain))
