"""How the report page's charts are drawn: one look, and SVG that stands inside the page and takes the page's colours.

A chart is drawn by matplotlib in placeholder colours; `to_svg` turns them into CSS variables, so that light and dark both
work. Text stays text, in the page's own font.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SIZE = (4.2, 2.8)  # inches, so that text of 9 points is legible where the page is as wide as a phone
INK, FAINT, BASE, PRUNED = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
COLOURS = {INK: "ink", FAINT: "faint", BASE: "base"} | {c: f"series-{i}" for i, c in enumerate(SERIES)}
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4)), (0, (8, 2)), (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2)))
MARKERS = "sD^vPX*h"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "o1core",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
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
SPACES = {"http://www.w3.org/2000/svg": "", "http://www.w3.org/1999/xlink": "xlink"}
LONGEST_NAME = 22  # characters of a name inside a chart


@dataclass(frozen=True)
class Chart:
    """svg: an <svg> element to stand in HTML as it is. note: a sentence. head and rows: the numbers, as text."""

    title: str
    svg: str
    note: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Line:
    """A named line, or of one point a named mark; low and high, where given, are the ends of its intervals."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = field(default_factory=tuple)
    high: Sequence[float] = field(default_factory=tuple)
    style: int = 0  # of SERIES, DASHES and MARKERS: a method looks the same in every chart


def chart(title: str, note: str, head: list[str], rows: list[list[str]], draw, size=SIZE) -> Chart:
    """Let draw(axes) fill a figure, and make a Chart of it."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the measuring font lacks: the browser has fonts of its own
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        return Chart(title, to_svg(figure, f"{title}. {note}"), note, head, rows)


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> element: no ids but those it refers to (and those by a prefix of its own), no metadata, no
    style sheet, which would reach the whole page, and colours that the page decides."""
    buffer = BytesIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue().decode()
    for colour, name in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    root = ElementTree.fromstring(text)
    used = {*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'xlink:href="#([^"]+)"', text)}
    prefix = f"c{np.frombuffer(buffer.getvalue(), np.uint8).astype(np.uint64).cumsum().sum():x}-"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata") or child.tag.endswith("}style"):
                parent.remove(child)
    for element in root.iter():
        if (name := element.attrib.pop("id", None)) in used:
            element.set("id", prefix + name)
        for key, value in list(element.attrib.items()):
            if key.endswith("}href"):
                del element.attrib[key]
                element.set("href", f"#{prefix}{value[1:]}")
            else:
                element.set(key, re.sub(r"url\(#", f"url(#{prefix}", value))
        if "font:" in (style := element.get("style", "")):  # the size stays, the page's font takes over
            element.set("style", re.sub(r"font: ([\w. ]*?)([\d.]+px)[^;]*", r"font-size: \2", style))
        element.tag = element.tag.rpartition("}")[2]
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return ElementTree.tostring(root, encoding="unicode")


def short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def span(low: float, high: float, form) -> str:
    """Two numbers, with what stands behind both said once."""
    return minus(f"{form(low).removesuffix(' %')} to {form(high)}")


def minus(text: str) -> str:
    """With true minus signs before its numbers; other hyphens stay."""
    return re.sub(r"(?<![\w)])-(?=[\d.])", "−", text)


def plain(value: float, digits: int) -> str:
    """A number with some digits that count; what is nothing but rounding reads 0."""
    return "0" if abs(value) < 1e-9 else minus(f"{value:.{digits}g}")


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
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], share: float, looks: Sequence[dict] = ()
) -> None:
    """Write names right of the axes' data, each at the height of its point, moved apart: with a thin leader to the point,
    or, where looks are given, with the point's mark.

    share: of the axes' width that the names get. The limits of the axes must not change after this.
    """
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    width = (right - left) * share / (1 - share)
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= right])
    axes.set_xlim(left, right + width)
    heights = spread_out([y for _, y in points], (high - low) / 14, low + (high - low) / 40, high - (high - low) / 40)
    for i, ((x, y), height, name) in enumerate(zip(points, heights, names)):
        if looks:
            axes.plot([right + 0.06 * width], [height], markersize=5.5, **looks[i])
        else:
            axes.plot([x, right + 0.06 * width], [y, height], color=FAINT, linewidth=0.6, marker="")
        axes.text(right + (0.14 if looks else 0.09) * width, height, short(name), va="center", fontsize=9)
    axes.set_ylim(low, high)
