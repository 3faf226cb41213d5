"""What a chart is: how it is drawn, and its numbers. The report page shows it as SVG, a plot as PNG.

Every chart can be read without colour: markers, dashes, hatches, and names at the lines. The colours are those of the
page in its light form; the page exchanges them for its own.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from .files import write_atomic
from .text import one_line

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
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
COLOUR = re.compile("|".join(COLOURS))
STATED = "stroke-linejoin: round; stroke-linecap: butt"  # what matplotlib states in a style sheet


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


def to_svg(chart: Chart) -> str:
    """The chart as an <svg> element: no ids but those it refers to (and those by a prefix of its own), no metadata, no
    style sheet, which would reach the whole page, and colours that the page decides. Text stays text."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=chart.size, layout="constrained")
        chart.draw(figure.add_subplot())
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    keep_used_ids(root, f"c{hashlib.sha256(buffer.getvalue()).hexdigest()[:12]}-")
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, COLOUR.sub(lambda found: f"var(--{COLOURS[found[0]]})", value))
        if "font:" in (style := element.get("style", "")):  # the size stays, the page's font takes over
            element.set("style", re.sub(r"font: ([\w. ]*?)([\d.]+px)[^;]*", r"font-size: \2", style))
        element.tag = element.tag.rpartition("}")[2]
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", one_line(f"{chart.title}. {chart.note}"))
    root.set("style", STATED)
    return ElementTree.tostring(root, encoding="unicode")


def keep_used_ids(root: ElementTree.Element, prefix: str) -> None:
    """Give the ids that are referred to a prefix, which makes them the only ones of their name on a page, and drop the
    others."""
    values = [(key, value) for element in root.iter() for key, value in element.attrib.items()]
    used = {name for _, value in values for name in re.findall(r"url\(#([^)]+)\)", value)}
    used |= {value[1:] for key, value in values if key.endswith("}href")}
    for element in root.iter():
        if (name := element.attrib.pop("id", None)) in used:
            element.set("id", f"{prefix}{name}")
        for key, value in list(element.attrib.items()):
            if key.endswith("}href"):
                del element.attrib[key]
                element.set("href", f"#{prefix}{value[1:]}")
            else:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))


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
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], looks: Sequence[dict[str, Any]] = ()
) -> None:
    """Write names right of the axes, each at the height of its point and moved apart: with a thin leader from the point or,
    where looks are given, with the point's mark. They stand outside, or a mark would pass for one more point.

    The limits of the axes must not change after this.
    """
    low, high = axes.get_ylim()
    at_height = axes.get_yaxis_transform()  # x in widths of the axes, y in the data's unit
    heights = spread_out([y for _, y in points], (high - low) / 14, low + (high - low) / 40, high - (high - low) / 40)
    for i, (point, height, name) in enumerate(zip(points, heights, names)):
        if looks:
            axes.spines["right"].set_visible(True)  # the axes end here, and no mark beyond it is a point
            axes.plot([1.05], [height], transform=at_height, clip_on=False, markersize=5.5, linestyle="", **looks[i])
        arrow = None if looks else {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkB": 0}
        place = (1.09 if looks else 1.03, height)
        axes.annotate(short(name), point, place, textcoords=at_height, va="center", fontsize=9, arrowprops=arrow)
    axes.set_ylim(low, high)


def whole_numbers(axes: Axes) -> None:
    """Ticks at whole numbers alone: there is no half step, and no half a sample."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def key_below(axes: Axes, columns: int) -> None:
    """The key of what carries a label, under the axes and their label."""
    depth = -0.2 if axes.get_xlabel() else -0.1
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, depth), ncols=columns, borderaxespad=0, handlelength=1.4, fontsize=8.5
    )
