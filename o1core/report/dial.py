"""The dial of a run (studies/dial.py) as a table and a chart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..charts import BASE, INK, PRUNED, Chart, write_png
from ..evaluation import DialResult
from ..metrics import Spread
from ..tables import Cell, Column, Table, change, percent, points, signed, span, spread_cell, two_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def dial_tables(result: DialResult) -> list[Table]:
    """A row a scale: accuracy and tokens, and what changed against scale 0; the average over several tests."""
    columns = [Column("scale", label=True), Column("accuracy"), Column("mean tokens"), Column("cut off")]
    columns += [Column("accuracy, points"), Column("tokens"), Column("AES")]
    rows = []
    for row in result.rows:
        o = row.comparison.average
        accuracy = Spread(o.pruned.accuracy, o.pruned.accuracy_low, o.pruned.accuracy_high)
        cells = [Cell(f"{row.scale:g}"), spread_cell(accuracy, percent), Cell(f"{o.pruned.mean_tokens:.1f}")]
        cells.append(Cell(percent(o.pruned.truncated)))
        if row.scale == 0:
            cells += [Cell()] * 3
        else:
            tokens = o.cut.scaled(-1)
            cells += [Cell(points(o.gain.mean), span(o.gain, signed)), Cell(change(tokens.mean), span(tokens, change))]
            cells.append(spread_cell(o.score, two_digits))
        rows.append(cells)
    tests = list(result.rows[0].comparison.tests)
    note = f"Tests: {', '.join(tests)}. Changes are paired over the problems against scale 0, with 95 % intervals. "
    note += "The best of several scales on a test is optimistic: choose on one test, report another."
    return [Table("The dial", columns, rows, note)]


def dial_chart(result: DialResult) -> Chart:
    """Accuracy against mean tokens, a point a scale, joined in the order of the scales."""
    sides = [(row.scale, row.comparison.average.pruned) for row in result.rows]
    x, y = [e.mean_tokens for _, e in sides], [100 * e.accuracy for _, e in sides]

    def draw(axes: Axes) -> None:
        axes.plot(x, y, color=PRUNED, linewidth=1.2)
        for (scale, e), tokens, accuracy in zip(sides, x, y):
            if e.accuracy_low is not None and e.accuracy_high is not None:
                axes.plot([tokens] * 2, [100 * e.accuracy_low, 100 * e.accuracy_high], color=BASE, linewidth=0.8)
            mark: dict[str, Any] = {"color": BASE, "marker": "o"} if scale == 0 else {"color": PRUNED, "marker": "s"}
            axes.plot([tokens], [accuracy], linestyle="", markersize=5.5, **mark)
            axes.annotate(f"{scale:g}", (tokens, accuracy), (5, 5), textcoords="offset points", fontsize=9, color=INK)
        axes.set(xlabel="mean tokens", ylabel="accuracy (%)")
        axes.margins(0.12)

    rows = [[f"{scale:g}", f"{e.mean_tokens:.1f}", percent(e.accuracy)] for scale, e in sides]
    note = "The adapter scaled: 0 is the base, 1 as trained. Up and to the left is better."
    return Chart("The dial: accuracy against length", note, ["scale", "tokens", "accuracy"], rows, draw)


def plot_dial(result: DialResult, path: Path) -> None:
    write_png([dial_chart(result)], "", path)
