"""What a chart is: how it is drawn, and its numbers. The report page shows it as SVG (page/svg.py), a plot as PNG.

Every chart can be read without colour: markers, dashes, hatches, and names at the lines. The colours are those of the
page in its light form; the page exchanges them for its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomic
from ..text import one_line

if TYPE_CHECKING:  # matplotlib is loaded when something is drawn: it costs a second, and every command imports this
    from matplotlib.axes import Axes

SIZE = (4.2, 2.8)  # inches, so that text of 9 points is legible where the page is as wide as a phone
INK, FAINT, BASE, PRUNED = "#1d2329", "#d9d6cf", "#6b7280", "#0b6e99"
SERIES = (PRUNED, "#b5500b", "#5b6b00", "#8a3d8f", "#00796b", "#a3303f", "#4a5bb5", "#7a5c2e")
COLOURS = {INK: "ink", FAINT: "faint", BASE: "base"} | {c: f"series-{i}" for i, c in enumerate(SERIES)}  # in page.css
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.6)),
    (0, (1.2, 1.4)),
    (0, (5, 1.4, 1.2, 1.4)),
    (0, (8, 2)),
    (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2)),
)
MARKERS = "sD^vPX*h"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "o1core",
    "text.parse_math": False,  # a level or a file's name is text, whatever dollars are in it
    "font.size": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "axes.unicode_minus": True,
    "legend.frameon": False,
}
LONGEST_NAME = 22  # characters of a name inside a chart


@dataclass(frozen=True)
class Chart:
    """draw fills a matplotlib axes of `size` inches. note: a sentence. head and rows: the numbers, as text."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    draw: Callable[[Axes], None]
    size: tuple[float, float] = SIZE


@dataclass(frozen=True)
class Line:
    """A named line, or of one point a named mark; low and high, where given, are the ends of its intervals."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = field(default_factory=tuple)
    high: Sequence[float] = field(default_factory=tuple)
    style: int = 0  # of SERIES, DASHES and MARKERS: a method looks the same in every chart


@contextmanager
def styled() -> Iterator[None]:
    """The look of every chart, while figures are made and drawn."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the measuring font lacks
        yield


def write_png(charts: Sequence[Chart], title: str, path: Path) -> None:
    """The charts side by side, each under its title, as one PNG file."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures alive

    width = sum(chart.size[0] for chart in charts)
    height = max(chart.size[1] for chart in charts) + (0.55 if title else 0.25)
    with styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        sides = figure.subplots(1, len(charts), squeeze=False, width_ratios=[chart.size[0] for chart in charts])[0]
        for axes, chart in zip(sides, charts):
            chart.draw(axes)
            axes.set_title(one_line(chart.title))
        if title:
            figure.suptitle(one_line(title), x=0.01, ha="left")
        write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def look_of(style: int) -> dict[str, Any]:
    """The colour and marker of a line: no two of 64 have both in common."""
    return {"color": SERIES[style % len(SERIES)], "marker": MARKERS[(style + style // len(SERIES)) % len(MARKERS)]}


def short(name: str) -> str:
    """A name as a chart shows it: one line, without control characters, and cut where it is too long."""
    name = one_line(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart to at least `gap`, in the same order, inside low..high where there is room."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    moved = [0.0] * len(places)
    floor = low
    for i in order:
        moved[i] = floor = max(places[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        moved[i] = ceiling = min(moved[i], ceiling)
        ceiling -= gap
    return moved


def name_at_right(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    width: float,
    looks: Sequence[dict[str, Any]] = (),
) -> None:
    """Write names right of the axes' data, each at the height of its point, moved apart: with a thin leader to the point,
    or, where looks are given, with the point's mark.

    width: of the names, as a fraction of the axes' width. The limits of the axes must not change after this.
    """
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    room = (right - left) * width / (1 - width)
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= right])
    axes.set_xlim(left, right + room)
    heights = spread_out([y for _, y in points], (high - low) / 14, low + (high - low) / 40, high - (high - low) / 40)
    for i, ((x, y), height, name) in enumerate(zip(points, heights, names)):
        if looks:
            axes.plot([right + 0.06 * room], [height], markersize=5.5, **looks[i])
        else:
            axes.plot([x, right + 0.06 * room], [y, height], color=FAINT, linewidth=0.6, marker="")
        axes.text(right + (0.14 if looks else 0.09) * room, height, short(name), va="center", fontsize=9)
    axes.set_ylim(low, high)
