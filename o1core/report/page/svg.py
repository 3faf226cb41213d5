"""A chart as SVG inside the page, in the page's font and colours, so that light and dark both work."""

import hashlib
import re
from io import BytesIO
from xml.etree import ElementTree

from ...text import one_line
from ..charts import COLOURS, Chart, styled

NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
COLOUR = re.compile("|".join(COLOURS))
STATED = "stroke-linejoin: round; stroke-linecap: butt"  # what matplotlib states in a style sheet


def to_svg(chart: Chart) -> str:
    """The chart as an <svg> element: no ids but those it refers to (and those by a prefix of its own), no metadata, no
    style sheet, which would reach the whole page, and colours that the page decides. Text stays text."""
    from matplotlib.figure import Figure  # late: see charts.py

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
