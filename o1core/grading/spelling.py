r"""One spelling for answers that mean the same: Unicode signs, plain-text functions and numbers, written as TeX.

math-verify reads TeX. Models also write "2√3", "pi/3", "5e-3", "（1，2）" and "x²", which it drops, misreads or splits.
Everything here rewrites signs; nothing knows what an answer means (that is compare.py), and nothing evaluates.
"""

import re
import unicodedata
from decimal import Decimal

_GREEK = {
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta"},
    **{"κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau"},
    **{"φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "ϕ": "phi", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta"},
    **{"Λ": "Lambda", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega"},
}
_SIGNS: dict[str, str] = {
    **{sign: rf"\{name} " for sign, name in _GREEK.items()},
    **dict.fromkeys("−‐‑‒–—―﹣", "-"),
    **dict.fromkeys("×✕✖⨯", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u200e\u200f", ""),
    **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys("⁄∕", "/"),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("【〔", "["),
    **dict.fromkeys("】〕", "]"),
    **dict.fromkeys("，、", ", "),
    **dict.fromkeys("∅⌀", r"\emptyset "),
    **{"℃": r"^\circ C", "℉": r"^\circ F", "△": r"\triangle "},
    **{"÷": r"\div ", "≠": r"\neq ", "≈": r"\approx ", "∞": r"\infty ", "±": r"\pm ", "∓": r"\mp ", "→": r"\to "},
    **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "∠": r"\angle ", "…": r"\ldots ", "″": "''"},
    **{"ℝ": r"\mathbb{R}", "ℕ": r"\mathbb{N}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}"},
    **{"。": ".", "∣": "|", "∶": ":", "⟨": "(", "⟩": ")", "¬": r"\neg ", "∗": "*"},
    **{chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F) if chr(code) != ","},  # full width
}
_TABLE = str.maketrans(_SIGNS)
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_SUB = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ", "0123456789+-()nx")
_VULGAR = {"½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅖": "25", "⅗": "35", "⅘": "45"}
_VULGAR |= {"⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58", "⅞": "78"}
_CALLS = {
    **{"√": r"\sqrt{%s}", "∛": r"\sqrt[3]{%s}", "∜": r"\sqrt[4]{%s}", "sqrt": r"\sqrt{%s}", "cbrt": r"\sqrt[3]{%s}"},
    **{"exp": "e^{%s}", "abs": "|%s|"},
}

_RUN_SUPER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
_RUN_SUB = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ]+")
_GROUPED = re.compile("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))")
_WIDE_GROUPS = re.compile(r"(?<=\d)，(?=\d{3}(?!\d))")
_ALPHANUMERIC = re.compile("[\U0001d400-\U0001d7ff]")  # mathematical letters and digits: 𝑥, 𝟏
_BARRED = re.compile("(?:\\d[\u0304\u0305\u0307])+")
_NAMES = re.compile(
    r"(?<![A-Za-z\\])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|log|ln|lg)"
    r"(?=\s*[\d\\({^_|]|\s*[a-zA-Z](?![a-zA-Z]))"
)
_INVERSE = re.compile(r"(?<![A-Za-z\\])a(sin|cos|tan)(?=\s*\()")
_LETTERS = re.compile(
    r"(?<![A-Za-z\\])(alpha|beta|gamma|theta|lambda|sigma|omega|phi|pi)(?![A-Za-z])|(?<![A-Za-z\\])(infinity|inf|oo)(?![A-Za-z])"
)
_ROMAN = re.compile(
    r"\\(?:mathrm|text|textrm|operatorname|mathit)\s*\{\s*([ei])\s*\}|\{\\rm\s+([ei])\}|\\imath(?![A-Za-z])"
)
_SCIENTIFIC = re.compile(r"(?<![\w.\\}])(\d+\.?\d*|\.\d+)[eE]([-+]?\d{1,6})(?![\w.]\w?)")
_IMAGINARY = re.compile(r"(?<=\d)i(?![A-Za-z])")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_REPEATING = re.compile(
    r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar|dot|overset\{\\cdot\})\s*\{?(\d+)\}?|\((\d+)\))(?!\d)"
)
_DOTTED = re.compile(r"(?<![\d.])(\d*)\.(\d*?)(\d)\3\3+\s?(?:\\(?:ldots|dots|cdots)|\.\.\.)")
_POWER = re.compile(r"\^\s*(-\s*\d+|\d{2,})(?![\d.])")
_SPACED = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")  # 1 000
_STAR_POWER = re.compile(r"(?<=[\w)}])\s?\*\*\s?(?=[\w({\\-])")
_DOUBLE_SIGN = re.compile(r"\+\s*-\s*")
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(  # in this order
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(?<!\\)\\[()\[\]]", ""),  # \( and \[
        (r"(?<!\\)(?:\\ |~)", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:checkmark|blacksquare|hfill)(?![A-Za-z])|\\h?phantom\{[^{}]*\}", ""),
        (r"\\underline\s*\{([^{}]*)\}", r"\1"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\\\\s*(?=\\end)", ""),  # after a matrix's last row
        (r"\\\\\s*\[[\d.]+\s*(?:ex|em|pt|mm)\]", r"\\\\ "),
        (r"(?<![<=>])<=(?![=>])", r"\\le "),
        (r"(?<![<=>])>=(?![=>])", r"\\ge "),
        (r"(?<![A-Za-z\\])(\d+|[A-Za-z])\s*(?:\s|\\text\{\s*)squared\b\s*\}?", r"\1^2"),
        (r"(?<![A-Za-z\\])(\d+|[A-Za-z])\s*(?:\s|\\text\{\s*)cubed\b\s*\}?", r"\1^3"),
        (  # math-verify takes the degrees of a sine for a power
            r"(\\(?:sin|cos|tan|sec|csc|cot))\s*[({]?\s*(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))\s*[)}]?",
            r"\1(\\frac{\2\\pi}{180})",
        ),
        (r"(?<![A-Za-z\\])log(10|2)(?=\s*\()", r"\\log_{\1}"),
        (r"(?<![A-Za-z\\])C\((\d+),\s*(\d+)\)", r"\\binom{\1}{\2}"),
    )
)
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_ARGUMENT = rf"({_GROUP}|\\(?:{'|'.join(_GREEK.values())})(?![A-Za-z])|[A-Za-z\d])"
_BARE_FRACTION = re.compile(rf"\\frac\s*(?!{_GROUP}\s*\{{){_ARGUMENT}\s*{_ARGUMENT}")
_COMPLEX = re.compile(  # Python's
    r"\(?-?[\d.]+\s*[-+]\s*[\d.]+j\)?"
)
_SLASHED = re.compile(r"(?<![\d.}/])(\d+)\s?/\s?(\d+)\s+(?=\\(?:pi|sqrt)(?![A-Za-z]))")
_GROUPS_OF_OTHERS = re.compile(
    r"(-?\d{1,3}(?:\.\d{3}){2,}|-?\d{1,3}(?:\.\d{3})+(?=,\d{1,2}$)|-?\d{1,2}(?:,\d{2})+,\d{3}|-?\d{1,3}(?:_\d{3}){2,})(,\d{1,2})?"
)
_OUTWARD = re.compile(
    r"(?:^|(?<=\\cup)|(?<=\\in)|(?<==))\s*([\[\]])([^\[\](){}]+,[^\[\](){}]+)([\[\]])(?=\s*(?:$|\\cup))"
)
_ALL_REALS = re.compile(
    r"(?:\\text\{)?\s*(?:(?:the\s+set\s+of\s+)?all\s+real(?:s|\s+numbers?)|any\s+real\s+number|(?:all\s+)?real\s+numbers)\s*\}?",
    re.IGNORECASE,
)


def plain_spelling(text: str) -> str:
    r"""The same answer in the spelling that the comparisons read: TeX for signs and functions ("2√3" and "2 sqrt(3)" are
    2\sqrt{3}), decimals for e-notation, fractions for repeating decimals. TeX that is fine already stays as it is."""
    if not text.isascii():
        text = _from_unicode(text)
    text = text.strip()
    if _COMPLEX.fullmatch(text):
        text = text.replace("j", "i")
    if _ALL_REALS.fullmatch(text):
        text = r"\mathbb{R}"
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = _BARE_FRACTION.sub(_braced, text).strip()
    if text[:1] == "]" or text[-1:] == "[":
        text = _OUTWARD.sub(_inward, text)
    text = _ROMAN.sub(lambda m: m[1] or m[2] or "i", text)
    text = _IMAGINARY.sub(" i", _STAR_POWER.sub("^", text))  # math-verify takes the i of "3i" for a name
    text = _SLASHED.sub(r"\\frac{\1}{\2}", _functions(text))
    text = _SCIENTIFIC.sub(lambda m: _scientific(m[1], int(m[2])), _TIMES_TEN.sub(r" \\times ", text))
    if _SPACED.fullmatch(text):
        text = text.replace(" ", "")
    if "." in text:
        text = _REPEATING.sub(lambda m: _repeating(m[1], m[2], m[3] or m[4]), text)
        text = _DOTTED.sub(lambda m: _repeating(m[1], m[2], m[3]), text)
    if _ALTERNATIVE.search(text):
        text = _union(text)
    return _DOUBLE_SIGN.sub("- ", _POWER.sub(lambda m: f"^{{{m[1].replace(' ', '')}}}", text)).strip()


_ALTERNATIVE = re.compile(r"\s*(?:\\text\{\s*or\s*\}|\bor\b|\\l?or(?![A-Za-z])|\\vee(?![A-Za-z])|\\cup(?![A-Za-z]))\s*")
_LESS = r"(?:<|\\lt(?![A-Za-z])|\\le(?:q|qslant)?(?![A-Za-z]))"
_MORE = r"(?:>|\\gt(?![A-Za-z])|\\ge(?:q|qslant)?(?![A-Za-z]))"
_END = r"\s*([^<>=,\s][^<>=,]*?)\s*"
_BELOW = re.compile(rf"([a-zA-Z])\s*({_LESS}){_END}")
_ABOVE = re.compile(rf"([a-zA-Z])\s*({_MORE}){_END}")
_BETWEEN = re.compile(rf"{_END}({_LESS})\s*([a-zA-Z])\s*({_LESS}){_END}")


def _union(text: str) -> str:
    r"""The alternatives "x < -1 or 1 \le x < 2" as (-\infty, -1) \cup [1, 2); any other text as it is."""
    found, names = [], set()
    for part in _ALTERNATIVE.split(text):
        if match := _BETWEEN.fullmatch(part):
            low, first, name, second, high = match.groups()
            found.append(f"{'[' if 'e' in first else '('}{low}, {high}{']' if 'e' in second else ')'}")
        elif match := _BELOW.fullmatch(part):
            name, sign, high = match.groups()
            found.append(rf"(-\infty, {high}{']' if 'e' in sign else ')'}")
        elif match := _ABOVE.fullmatch(part):
            name, sign, low = match.groups()
            found.append(rf"{'[' if 'e' in sign else '('}{low}, \infty)")
        else:
            return text
        names.add(name)
    return r" \cup ".join(found) if len(names) == 1 else text


def without_groups(number: str) -> str:
    """A number with the thousands of other languages and of programs ("1.234.567,8", "12,34,567", "1_234_567"), plain."""
    match = _GROUPS_OF_OTHERS.fullmatch(number)
    return number if match is None else re.sub(r"[.,_]", "", match[1]) + (match[2] or "").replace(",", ".")


def _braced(match: re.Match[str]) -> str:
    r"""\frac\pi2 as \frac{\pi}{2}: math-verify reads it as 2."""
    top, bottom = (text[1:-1] if text[0] == "{" else text for text in match.groups())
    return rf"\frac{{{top}}}{{{bottom}}}"


def _inward(match: re.Match[str]) -> str:
    """]2, 3] as (2, 3]: an interval whose brackets look away from an end that it leaves out."""
    return ("[" if match[1] == "[" else "(") + match[2] + ("]" if match[3] == "]" else ")")


def _from_unicode(text: str) -> str:
    text = _ALPHANUMERIC.sub(lambda m: unicodedata.normalize("NFKC", m[0]), _WIDE_GROUPS.sub(",", text))
    text = _RUN_SUPER.sub(lambda m: f"^{{{m[0].translate(_SUPER)}}}", _GROUPED.sub("", text))
    text = _RUN_SUB.sub(lambda m: f"_{{{m[0].translate(_SUB)}}}", text)
    text = _BARRED.sub(lambda m: rf"\overline{{{re.sub('[^0-9]', '', m[0])}}}", text)
    for sign, parts in _VULGAR.items():
        if sign in text:
            text = re.sub(
                rf"(?:(?<=\d)\s*)?{sign}", rf"\\frac{{{parts[0]}}}{{{parts[1]}}}", text
            )  # 1 ½ is 1\frac{1}{2}
    return text.translate(_TABLE)


def _functions(text: str) -> str:
    """Functions and letters that were written as words."""
    for name, form in _CALLS.items():
        if name in text:
            text = _with_argument(text, rf"(?<![A-Za-z\\]){name}", form)
    if "^" in text:
        text = _with_argument(text, r"\^", "^{%s}", bracket_only=True)
    text = _NAMES.sub(r"\\\1 ", _INVERSE.sub(r"arc\1", text))
    return _LETTERS.sub(lambda m: rf"\{m[1]} " if m[1] else r"\infty ", text)


_ATOM = re.compile(r"\s*(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])|\\[A-Za-z]+)")
_OPENING = re.compile(r"\s*([({])")


def _with_argument(text: str, name: str, form: str, bracket_only: bool = False) -> str:
    """Rewrite each `name` with its argument: a bracket with all that it holds, or else one number or letter."""
    parts, at = [], 0
    for match in re.finditer(name, text):
        if match.start() < at:
            continue
        if opening := _OPENING.match(text, match.end()):
            if bracket_only and opening[1] == "{":
                continue
            end = _closing(text, opening.end() - 1)
            if end is None:
                continue
            body, after = text[opening.end() : end], end + 1
        elif not bracket_only and (atom := _ATOM.match(text, match.end())):
            body, after = atom[1], atom.end()
        else:
            continue
        if name != r"\^":  # the argument may hold the same name again
            body = _with_argument(body, name, form, bracket_only)
        parts.append(text[at : match.start()] + form.replace("%s", body))
        at = after
    return "".join(parts) + text[at:]


def _closing(text: str, start: int) -> int | None:
    """Where the bracket that opens at `start` closes."""
    opens = text[start]
    closes = ")" if opens == "(" else "}"
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == opens) - (text[at] == closes)
        if depth == 0:
            return at
    return None


def _scientific(digits: str, exponent: int) -> str:
    """5e3 as 5000, and as a product with a power of ten where the digits would be many."""
    if abs(exponent) <= 20:
        text = format(Decimal(digits).scaleb(exponent), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    return rf"{digits} \times 10^{{{exponent}}}"


def _repeating(whole: str, fixed: str, period: str) -> str:
    """0.1\\overline{6} as the fraction (16 - 1) / 90."""
    top = int((whole or "0") + fixed + period) - int((whole or "0") + fixed)
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"
