"""The charts of the studies. Some of them are their plot.png."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..charts import BASE, DASHES, INK, PRUNED, SIZE, Chart, Line, look_of, name_at_right, short, write_png
from ..evaluation import DisharmonyResult, Figures, StudyResult, StudyRow
from ..metrics import Spread
from ..tables import Form, minus, percent, span, two_digits
from .tables import interval_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {  # of the studies that vary one setting
    "lambda": "lambda",
    "difficulty": "percentiles of reference accuracy (0 hardest)",
}


def plot_study(result: StudyResult, path: Path) -> None:
    """Accuracy and length along the values of a setting, or accuracy against length, the score and, where measured, the
    accuracy under token budgets of each method."""
    measured = any(row.measures for row in result.rows)
    write_png(study_charts(result)[: 3 if measured else 2], "", path)


def plot_disharmony(result: DisharmonyResult, path: Path) -> None:
    """Accuracy by length interval, a line a difficulty, with 95 % intervals."""
    title = f"{result.problems} problems, {result.samples} completions of each"
    write_png([disharmony_chart(result, title)], title, path)


def study_charts(result: StudyResult) -> list[Chart]:
    """Along the values where one setting is varied; accuracy against tokens and AES always; inference time where timed."""
    drawn = []
    if result.study in AXES and result.variants:
        drawn += [along_values(result, "accuracy"), along_values(result, "mean_tokens")]
    drawn.append(trade_off([level_line(row, i) for i, row in enumerate(result.rows)]))
    scored = [(row.label, row.average.aes) for row in result.variants if row.average.aes]
    if scored:
        note = "Higher is better: shorter counts once, more right threefold, less right fivefold against."
        points = [spread_line(label, [0], spread) for label, spread in scored]
        drawn.append(bars("Accuracy-efficiency score", points, note, "AES", two_digits))
    if any(row.measures for row in result.rows):
        drawn.append(budget_chart(result))
    costs = [(row.label, row.cost.seconds) for row in result.variants if row.cost and row.cost.seconds]
    if costs:
        note = "Seconds to sample and to train, at the speeds that the run measured."
        points = [spread_line(label, [0], spread) for label, spread in costs]
        drawn.append(bars("Cost", points, note, "seconds", "{:.0f}".format))
    timed = [(row.label, row.inference.ratio) for row in result.rows if row.inference]
    if timed:
        note = "Time to answer the same batch with the same engine, as a multiple of the base's."
        points = [Line(label, [0], [ratio], [ratio], [ratio]) for label, ratio in timed]
        drawn.append(bars("Inference time", points, note, "of the base's time", two_digits))
    return drawn


def budget_chart(result: StudyResult) -> Chart:
    """Accuracy of what is cut at a token budget, over budgets, a line a row."""
    lines = [
        Line(row.label, row.measures.budgets, [100 * a for a in row.measures.accuracy_within], style=i)
        for i, row in enumerate(result.rows)
        if row.measures
    ]
    rows = [[line.name, str(x), f"{y:.1f} %"] for line in lines for x, y in zip(line.x, line.y)]
    note = (
        "What is longer than the budget is cut there, and wrong unless its box is complete. Means over tests and seeds."
    )
    size = (SIZE[0], max(SIZE[1], 0.21 * len(lines) + 1))
    draw = partial(draw_budgets, lines)
    return Chart("Accuracy under a token budget", note, ["", "budget", "accuracy"], rows, draw, size)


def draw_budgets(lines: Sequence[Line], axes: Axes) -> None:
    """The lines over budgets that double every two points; the base, which comes first, in its own look."""
    looks: list[dict[str, Any]] = [{"color": BASE, "marker": "o"}, *(look_of(line.style - 1) for line in lines[1:])]
    for line, look in zip(lines, looks):
        dash = DASHES[line.style % len(DASHES)]
        axes.plot(range(len(line.x)), line.y, linewidth=1.2, markersize=4, linestyle=dash, **look)
    axes.set(xlabel="token budget", ylabel="accuracy (%)")
    axes.margins(x=0.02)
    name_at_right(axes, [(0, line.y[-1]) for line in lines], [line.name for line in lines], looks)
    budgets = lines[0].x
    shown = range((len(budgets) - 1) % 3, len(budgets), 3)
    axes.set_xticks(shown, [f"{budgets[i]:.0f}" for i in shown])


def spread_line(name: str, x: Sequence[float], spread: Spread, factor: float = 1.0, style: int = 0) -> Line:
    """A spread as a line of one point; without an interval both ends are the point itself."""
    low, high = (spread.mean if end is None else end for end in (spread.low, spread.high))
    return Line(name, x, [factor * spread.mean], [factor * low], [factor * high], style)


def level_line(row: StudyRow, index: int) -> Line:
    """A row's accuracy over its mean tokens; the base, which comes first, has a look of its own."""
    return spread_line(row.label, [row.average.mean_tokens.mean], row.average.accuracy, style=max(0, index - 1))


def along_values(result: StudyResult, measure: str) -> Chart:
    """Accuracy or mean tokens over the values of the setting that the study varies."""

    def spread(figures: Figures) -> Spread:
        return figures.accuracy if measure == "accuracy" else figures.mean_tokens

    title, unit, form, factor = {
        "accuracy": (f"Accuracy by {result.study}", "accuracy (%)", "{:.1f}".format, 100.0),
        "mean_tokens": (f"Length by {result.study}", "mean tokens", "{:.0f}".format, 1.0),
    }[measure]
    values = [spread_line("", [0], spread(row.average), factor) for row in result.variants]
    low, mean, high = ([value[0] for value in ends] for ends in zip(*((v.low, v.y, v.high) for v in values)))
    names = [f"{row.value:g}" if isinstance(row.value, float) else str(row.value) for row in result.variants]
    base = factor * spread(result.base.average).mean
    return steps_of(title, unit, Line(title, [], mean, low, high), base, names, AXES[result.study], form)


def trade_off(points: Sequence[Line], title: str = "Accuracy against length, all rows") -> Chart:
    """Accuracy against mean tokens, a mark a row of a study, the base first. x, y: one value each; low and high of y over
    seeds. The marks are repeated beside their names: with names at the marks, ten methods cover each other."""

    def draw(axes: Axes) -> None:
        looks: list[dict[str, Any]] = [{"color": BASE, "marker": "o"}]
        looks += [look_of(p.style) for p in points[1:]]
        for p, look in zip(points, looks):
            if p.low[0] < p.high[0]:
                axes.plot([p.x[0]] * 2, [100 * p.low[0], 100 * p.high[0]], color=look["color"], linewidth=1)
            axes.plot(p.x, [100 * p.y[0]], linestyle="", markersize=6.5, **look)
        axes.margins(0.1)
        axes.set(xlabel="mean tokens", ylabel="accuracy (%)")
        name_at_right(axes, [(p.x[0], 100 * p.y[0]) for p in points], [p.name for p in points], looks)

    rows = [[p.name, f"{p.x[0]:.1f}", percent(p.y[0]), ends_of(p, 0, percent)] for p in points]
    note = "Up and to the left is better: more right with fewer tokens. Names from the most to the least accurate."
    size = (SIZE[0], max(SIZE[1], 0.21 * len(points) + 1))
    return Chart(title, note, ["", "tokens", "accuracy", "interval"], rows, draw, size)


def ends_of(line: Line, i: int, form: Form) -> str:
    """The interval of the i-th point, in the factor of its figures."""
    return span(Spread(line.y[i], line.low[i], line.high[i]), form) or "none"


def bars(title: str, points: Sequence[Line], note: str, unit: str, form: Form) -> Chart:
    """A horizontal bar a row, with its number; low and high, where they differ, as a whisker. y: one value each."""

    def draw(axes: Axes) -> None:
        ends = [v for p in points for v in (p.y[0], p.low[0], p.high[0], 0.0)]
        width = max(ends) - min(ends) or 1.0
        for i, p in enumerate(points):
            colour, hatch = (BASE, None) if p.name == "base" else (PRUNED, "////")
            axes.barh(i, p.y[0], 0.62, color=colour, alpha=0.3, linewidth=0)
            axes.barh(i, p.y[0], 0.62, facecolor="none", edgecolor=colour, hatch=hatch)
            if p.low[0] < p.high[0]:
                axes.plot([p.low[0], p.high[0]], [i, i], color=INK, linewidth=1, marker="|", markersize=7)
            axes.text(max(p.y[0], p.high[0], 0) + 0.02 * width, i, minus(form(p.y[0])), va="center", fontsize=8.5)
        axes.set_yticks(range(len(points)), [short(p.name) for p in points])
        axes.set_xlim(min(ends) - (0.06 * width if min(ends) < 0 else 0), max(ends) + 0.22 * width)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(unit)

    rows = [[p.name, form(p.y[0]), ends_of(p, 0, form)] for p in points]
    return Chart(title, note, ["", unit, "interval"], rows, draw, (SIZE[0], max(1.6, 0.27 * len(points) + 0.75)))


def steps_of(title: str, unit: str, line: Line, base: float, names: Sequence[str], axis: str, form: Form) -> Chart:
    """One measure over the values of a setting, with the base as a level line. line.x is not used: the values stand at
    equal distances."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        for x, low, high in zip(places, line.low, line.high):
            if low < high:
                axes.plot([x, x], [low, high], color=PRUNED, linewidth=1, marker="_", markersize=7)
        axes.plot(places, line.y, color=PRUNED, marker="s")
        for x, y, after in zip(places, line.y, [*line.y[1:], line.y[-1]]):
            offset = (6, -7 if after > y else 7)
            axes.annotate(form(y), (x, y), offset, textcoords="offset points", va="center", fontsize=9)
        axes.plot([-0.3, len(names) - 0.45], [base, base], color=BASE, linestyle=DASHES[1])
        axes.text(len(names) - 0.4, base, f"base\n{form(base)}", va="center", fontsize=9)
        axes.set_xticks(places, [short(n) for n in names])
        axes.set(xlabel=axis, ylabel=unit, xlim=(-0.3, len(names) + 0.06 * len(names)))
        axes.margins(y=0.16)

    rows = [["base", form(base), ""]]
    rows += [[n, form(y), ends_of(line, i, form)] for i, (n, y) in enumerate(zip(names, line.y))]
    note = f"{unit[0].upper() + unit[1:]}; the base (dashed) has {form(base)}."
    return Chart(title, note, ["", unit, "interval"], rows, draw)


def disharmony_chart(result: DisharmonyResult, note: str) -> Chart:
    """Accuracy over length intervals, a line for all problems and one for each difficulty."""
    lines = [
        Line(
            row.label,
            [part.interval for part in row.intervals],
            [100 * part.accuracy for part in row.intervals],
            [100 * part.accuracy_low for part in row.intervals],
            [100 * part.accuracy_high for part in row.intervals],
            style=i,
        )
        for i, row in enumerate(result.rows)
    ]
    tokens = [part.mean_tokens for part in result.rows[0].intervals]
    rows = [
        [row.label, str(part.interval), f"{part.mean_tokens:.1f}", percent(part.accuracy), interval_of(part)]
        for row in result.rows
        for part in row.intervals
    ]
    head = ["", "interval", "tokens", "accuracy", "95 % interval"]
    draw = partial(draw_disharmony, lines, tokens)
    return Chart("Accuracy by length interval", note, head, rows, draw, (SIZE[0], 1.2 * SIZE[1]))


def draw_disharmony(lines: Sequence[Line], tokens: Sequence[float], axes: Axes) -> None:
    """lines: the first in bold; tokens: its mean lengths, which are written below the axis."""
    for line in lines:
        first = line.style == 0
        look = {"color": INK, "marker": "o"} if first else look_of(line.style - 1)
        x = np.asarray(line.x) + 0.05 * (line.style - (len(lines) - 1) / 2)
        axes.plot(x, line.y, linestyle=DASHES[line.style % len(DASHES)], linewidth=2 if first else 1.3, **look)
        for at, low, high in zip(x, line.low, line.high):
            axes.plot([at, at], [low, high], color=look["color"], linewidth=0.8)
    if len(lines) == 1:
        for at, y in zip(lines[0].x, lines[0].y):
            axes.annotate(f"{y:.1f}", (at, y), (0, 8), textcoords="offset points", ha="center", fontsize=9)
    axes.set(xlabel="length interval, and its mean tokens", ylabel="accuracy (%)")
    axes.margins(x=0.06)
    axes.set_xticks(lines[0].x)
    name_at_right(axes, [(line.x[-1], line.y[-1]) for line in lines], [line.name for line in lines])
    axes.set_xticks(lines[0].x, [f"{x:.0f}\n{n:.0f}" for x, n in zip(lines[0].x, tokens)])
