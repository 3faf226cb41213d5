"""How a report writes numbers."""

import re
from collections.abc import Callable

Form = Callable[[float], str]


def percent(value: float, digits: int = 1) -> str:
    """A fraction as "12.3 %"."""
    return f"{100 * value:.{digits}f} %"


def change(value: float) -> str:
    """A relative change as "+12.3 %"."""
    return f"{100 * value:+z.1f} %"


def points(value: float) -> str:
    """A difference of fractions as "+1.2 points"."""
    return f"{100 * value:+z.1f} points"


def score(value: float | None) -> str:
    """An accuracy-efficiency score, or "none" where the base got nothing right."""
    return "none" if value is None else two_digits(value)


def two_digits(value: float) -> str:
    """A number with two digits; nothing but rounding has no sign."""
    return f"{value:z.2f}"


def span(low: float, high: float, form: Form) -> str:
    """Two numbers as "1.0 to 2.0 %": the percent sign is written once."""
    return f"{form(low).removesuffix(' %')} to {form(high)}"


def plain(value: float, digits: int) -> str:
    """A number with some significant digits; what is nothing but rounding reads 0."""
    return "0" if abs(value) < 1e-9 else f"{value:.{digits}g}"


def minus(text: str) -> str:
    """With true minus signs before its numbers; other hyphens stay."""
    return re.sub(r"(?<![\w)])-(?=[\d.])", "−", text)
