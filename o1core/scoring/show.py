"""Scores as tables, CSV and charts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..charts import Chart, Line, look_of, name_at_right, whole_numbers
from ..records import to_json
from ..tables import Cell, Column, Table, change, percent, points, signed, span, spread_cell, two_digits
from .score import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def score_tables(scores: Sequence[Score]) -> list[Table]:
    """Accuracy and tokens; differences to the base, where there is one; pass@k and maj@k, of several completions a problem;
    accuracy under token budgets, where tokens are known."""
    tables = [main_table(scores)]
    if any(s.against for s in scores):
        tables.append(paired_table(scores))
    if any(s.samples > 1 for s in scores):
        tables.append(at_k_table(scores))
    if any(s.budgets for s in scores):
        tables.append(budgets_table(scores))
    return tables


def main_table(scores: Sequence[Score]) -> Table:
    columns = [Column("", label=True), Column("problems"), Column("K"), Column("accuracy, avg@K (95 % interval)")]
    columns += [
        Column("mean tokens"),
        Column("median"),
        Column("right", "tokens given"),
        Column("wrong", "tokens given"),
    ]
    columns += [Column("cut off"), Column("OckScore")]
    rows = [
        [
            *(Cell(s.name), Cell(f"{s.problems:,}"), Cell(str(s.samples)), spread_cell(s.accuracy, percent)),
            *(number(v, "{:.1f}") for v in (s.mean_tokens, s.median_tokens, s.tokens_right, s.tokens_wrong)),
            *(number(s.truncated, "{:.1%}", " %"), number(s.ockscore, "{:.1f}")),
        ]
        for s in scores
    ]
    note = "Intervals over problems (Wilson). OckScore: accuracy in percent less 10 log10(tokens / 10,000)."
    if any(s.mean_tokens is None for s in scores):
        note += " Tokens are not in every file; --tokenizer FOLDER counts them."
    if any(s.truncated is None for s in scores):
        note += " Cut off is unknown where a file states no finish reason."
    for s in scores:
        if s.disagree:
            total = s.problems * s.samples
            note += f" {s.name}: {s.disagree:,} of {total:,} verdicts differ from the file's own."
    return Table("Score", columns, rows, note)


def number(value: float | None, form: str, unit: str = "") -> Cell:
    """A figure, or a dash where it is not known."""
    return Cell("-") if value is None else Cell(form.format(value).replace("%", unit))


def paired_table(scores: Sequence[Score]) -> Table:
    found = [(s.name, s.against) for s in scores if s.against]
    names = list(dict.fromkeys(name for _, a in found for name in a.aes))  # a file without tokens has none
    base = found[0][1].base
    columns = [Column("", label=True), Column("problems"), Column("accuracy, points"), Column("tokens")]
    columns += [Column(f"AES {name}") for name in names]
    rows = []
    for name, a in found:
        tokens = a.tokens.scaled(1 / a.base_tokens) if a.tokens and a.base_tokens else None
        rows.append(
            [
                *(Cell(name), Cell(f"{a.problems:,}"), Cell(points(a.accuracy.mean), span(a.accuracy, signed))),
                Cell("-") if tokens is None else Cell(change(tokens.mean), span(tokens, change)),
                *(spread_cell(a.aes.get(k), two_digits) for k in names),
            ]
        )
    note = f"Against {base}, paired over the problems of both, with 95 % intervals (Student’s t; AES: bootstrap)."
    for name, a in found:
        if a.left_out:
            note += f" {name}: {a.left_out:,} problems that only one of the two files has are left out."
    if names:
        note += (
            " AES a/b/c: a times the length cut, plus b times the relative gain of accuracy or less c times its loss."
        )
    return Table("Against the base", columns, rows, note)


def at_k_table(scores: Sequence[Score]) -> Table:
    ks = sorted({int(k) for s in scores for k in s.pass_at})
    columns = [Column("", label=True)]
    columns += [Column(f"{kind}@{k}") for kind in ("pass", "maj") for k in ks]
    rows = []
    for s in scores:
        cells = [values.get(str(k)) for values in (s.pass_at, s.majority_at) for k in ks]
        rows.append([Cell(s.name), *(Cell("-" if v is None else percent(v)) for v in cells)])
    note = (
        "pass@k: unbiased, from all K completions. maj@k: the most frequent answer is right, over subsets of k; ties are "
        "broken at random, and no answer is no vote."
    )
    return Table("Several completions", columns, rows, note)


def budgets_table(scores: Sequence[Score]) -> Table:
    budgets = next(s.budgets for s in scores if s.budgets)
    columns = [Column("", label=True), *(Column(f"{b:,}") for b in budgets), Column("area")]
    rows = []
    for s in scores:
        cells = [percent(v) for v in s.accuracy_within] or ["-"] * len(budgets)
        rows.append([Cell(s.name), *map(Cell, cells), number(s.budget_area, "{:.1%}", " %")])
    note = f"A completion longer than the budget is wrong. Area: the mean over all budgets from 0 to {budgets[-1]:,} tokens."
    return Table("Accuracy within a budget of tokens", columns, rows, note)


def to_csv(scores: Sequence[Score]) -> str:
    """A line a score, every number in a column of its own: accuracy.mean, pass_at.4, against.aes.1/3/5.low."""
    rows = [flat(to_json(s)) for s in scores]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(value: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "budgets" in value:
        value = dict(value)
        value["accuracy_within"] = dict(zip(map(str, value.pop("budgets")), value["accuracy_within"]))
    for name, item in value.items():
        if isinstance(item, dict):
            found |= flat(item, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = item
    return found


def score_charts(scores: Sequence[Score]) -> list[Chart]:
    """Accuracy under token budgets, and pass@k and maj@k."""
    found = []
    curves = [(i, s) for i, s in enumerate(scores) if s.budgets]
    if curves:
        lines = [
            Line(s.name, [0, *s.budgets], [0.0, *(100 * v for v in s.accuracy_within)], style=i) for i, s in curves
        ]
        found.append(line_chart("Accuracy under token budgets", "token budget", lines))
    several = [(i, s) for i, s in enumerate(scores) if s.samples > 1]
    for kind in ("pass", "maj") if several else ():
        lines = []
        for i, s in several:
            values = s.pass_at if kind == "pass" else s.majority_at
            lines.append(Line(s.name, [int(k) for k in values], [100 * v for v in values.values()], style=i))
        found.append(line_chart(f"{kind}@k", "k", lines))
    return found


def line_chart(title: str, unit: str, lines: Sequence[Line]) -> Chart:
    def draw(axes: Axes) -> None:
        for line in lines:
            axes.plot(line.x, line.y, markersize=4, **look_of(line.style))
        axes.set(xlabel=unit, ylabel="accuracy (%)")
        whole_numbers(axes)
        axes.margins(x=0.02, y=0.08)
        name_at_right(axes, [(line.x[-1], line.y[-1]) for line in lines], [line.name for line in lines])

    rows = [[line.name, f"{x:,.0f}", f"{y:.1f}"] for line in lines for x, y in zip(line.x, line.y)]
    return Chart(title, "", ["", unit, "accuracy (%)"], rows, draw)
