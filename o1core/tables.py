"""What a table is, and how it is written: for a terminal, as Markdown, LaTeX or CSV; the report page prints the same ones as
HTML (report/page/page.html). And how figures are spelled, in tables and beside charts.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from .metrics import Spread
from .text import one_line

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


def signed(value: float) -> str:
    """A difference of fractions in points, without the word."""
    return f"{100 * value:+z.1f}"


def two_digits(value: float) -> str:
    """A number with two digits; nothing but rounding has no sign."""
    return f"{value:z.2f}"


def span(spread: Spread, form: Form) -> str:
    """The ends of an interval as "1.0 to 2.0 %", the percent sign written once; nothing where there is none."""
    if spread.low is None or spread.high is None or spread.low >= spread.high:
        return ""
    return f"{form(spread.low).removesuffix(' %')} to {form(spread.high)}"


def plain(value: float, digits: int) -> str:
    """A number with some significant digits; what is nothing but rounding reads 0."""
    return "0" if abs(value) < 1e-9 else f"{value:.{digits}g}"


def minus(text: str) -> str:
    """With true minus signs before its numbers; other hyphens stay."""
    return re.sub(r"(?<![\w)])-(?=[\d.])", "−", text)


@dataclass(frozen=True)
class Cell:
    """Text, and what qualifies it: an interval, or the least and the most."""

    text: str = ""
    small: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.small})" if self.small else self.text


@dataclass(frozen=True)
class Column:
    """A header, and the header above it that neighbouring columns have in common.

    label: its cells name the row. joined: Markdown, which has no second header, prints the group as one column.
    """

    head: str
    group: str = ""
    label: bool = False
    joined: bool = False


@dataclass(frozen=True)
class Table:
    """Rows have a cell for each column. note: a sentence below."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Each group's header and the number of its columns, left to right."""
        return [(name, len(list(group))) for name, group in groupby(self.columns, lambda column: column.group)]


def to_text(table: Table) -> str:
    """For a terminal: columns of equal width, numbers to the right. A column of names that are all the same is left out."""
    kept = [
        i for i, column in enumerate(table.columns) if not column.label or len({str(row[i]) for row in table.rows}) > 1
    ]
    columns = [table.columns[i] for i in kept]
    lines = [[f"{c.group} {c.head}".strip() for c in columns]]
    lines += [[one_line(str(row[i])) for i in kept] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(f"{text:{'<' if c.label else '>'}{width}}" for text, c, width in zip(line, columns, widths)).rstrip()
        for line in lines
    )


def to_markdown(table: Table) -> str:
    """As a Markdown table. Joined columns become one, their cells separated by slashes and without what qualifies them."""
    parts: list[list[int]] = []
    for i, column in enumerate(table.columns):
        if column.joined and i and table.columns[i - 1].joined and table.columns[i - 1].group == column.group:
            parts[-1].append(i)
        else:
            parts.append([i])
    heads = []
    for part in parts:
        group = table.columns[part[0]].group
        head = " / ".join(table.columns[i].head for i in part)
        heads.append(f"{group}: {head}" if len(part) > 1 else f"{group} {head}".strip())
    rows = [
        [" / ".join(row[i].text for i in part if row[i].text) if len(part) > 1 else str(row[part[0]]) for part in parts]
        for row in table.rows
    ]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(escaped(text) for text in line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text that a Markdown cell shows as it is: no new cell, line, tag, link or code begins in it."""
    text = one_line(text)
    for character in "\\|`<[*_":
        text = text.replace(character, f"\\{character}")
    return text


def spread_cell(spread: Spread | None, form: Form) -> Cell:
    return Cell("none") if spread is None else Cell(form(spread.mean), span(spread, form))


def to_latex(table: Table) -> str:
    """As a tabular with booktabs' rules; what qualifies a cell stands in brackets behind it."""
    heads = [f"{c.group} {c.head}".strip() for c in table.columns]
    form = "".join("l" if c.label else "r" for c in table.columns)
    lines = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", latex_row(heads), r"\midrule"]
    lines += [latex_row([str(cell) for cell in row]) for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}
LATEX |= {"−": "$-$", "’": "'", "×": r"$\times$"}


def latex_row(texts: list[str]) -> str:
    """A row of a tabular, in which every character is text."""
    return " & ".join("".join(LATEX.get(c, c) for c in minus(one_line(text))) for text in texts) + r" \\"
