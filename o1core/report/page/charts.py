"""The charts of the report page, a function each. Every chart can be read without colour (markers, dashes, hatches, names at
the lines) and brings its numbers along.

Left out on purpose: pan, zoom and hover. Numbers stand beside the chart, and they work on a phone and on paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from .drawing import (
    BASE,
    DASHES,
    INK,
    LONGEST_NAME,
    MARKERS,
    PRUNED,
    SERIES,
    SIZE,
    Chart,
    Line,
    chart,
    minus,
    name_at_right,
    percent,
    plain,
    short,
    span,
)

MOST_POINTS, FEW_POINTS, MOST_ROWS = 300, 24, 40  # of a training curve, of one among several, and of its numbers


@dataclass(frozen=True)
class Side:
    """One model on one test: lengths in tokens and correct, each [P, K], the problems in the same order for both sides."""

    lengths: np.ndarray
    correct: np.ndarray


def lengths(before: Side, after: Side) -> Chart:
    """A histogram of the completions' lengths, before and after."""
    both = np.concatenate((before.lengths.ravel(), after.lengths.ravel()))
    width = -(-int(both.max()) // 24) or 1  # whole tokens: bars of the same width in tokens can be compared
    edges = np.arange(0, both.max() + width + 1, width)
    counts = [np.histogram(side.lengths, edges)[0] for side in (before, after)]
    shares = [c / c.sum() for c in counts]
    means = [side.lengths.mean() for side in (before, after)]

    def draw(axes: Axes) -> None:
        axes.stairs(100 * shares[0], edges, fill=True, color=BASE, alpha=0.3, linewidth=0)
        axes.stairs(100 * shares[0], edges, color=BASE, linestyle=DASHES[1])
        axes.stairs(100 * shares[1], edges, fill=True, facecolor="none", edgecolor=PRUNED, hatch="////", linewidth=0)
        axes.stairs(100 * shares[1], edges, color=PRUNED)
        top = 100 * max(s.max() for s in shares)
        axes.set(xlabel="tokens", ylabel="% of completions", ylim=(0, 1.34 * top), xlim=(0, edges[-1]))
        for mean, name, colour, dash, height in (
            (means[0], "before", BASE, DASHES[1], 1.1 if means[0] >= means[1] else 1.24),
            (means[1], "after", PRUNED, "-", 1.24 if means[0] >= means[1] else 1.1),
        ):
            axes.plot([mean, mean], [0, height * top], color=colour, linestyle=dash, linewidth=1)
            late = mean > 0.55 * edges[-1]
            axes.annotate(
                f"{name}, mean {mean:.0f}",
                (mean, height * top),
                (-4 if late else 4, 0),
                va="center",
                textcoords="offset points",
                ha="right" if late else "left",
            )

    rows = [
        [f"{low:.0f} to {high:.0f}", str(b), percent(bs), str(a), percent(as_)]
        for low, high, b, bs, a, as_ in zip(edges, edges[1:], counts[0], shares[0], counts[1], shares[1])
        if a or b
    ]
    note = f"Mean {means[0]:.1f} tokens before (dashed), {means[1]:.1f} after (hatched)."
    return chart("Length of completions", note, ["tokens", "before", "share", "after", "share"], rows, draw)


def accuracy_by_length(before: Side, after: Side) -> Chart:
    """Accuracy of the shortest quarter of all completions, of the next, and so on."""
    lines, rows = [], []
    for name, side in (("before", before), ("after", after)):
        tokens, correct = side.lengths.ravel(), side.correct.ravel()
        parts = [p for p in np.array_split(np.argsort(tokens, kind="stable"), 4) if len(p)]
        x, y = [tokens[p].mean() for p in parts], [correct[p].mean() for p in parts]
        lines.append(Line(name, x, [100 * v for v in y]))
        rows += [[name, f"{i}", f"{a:.1f}", percent(b), f"{len(p)}"] for i, a, b, p in zip(range(1, 5), x, y, parts)]

    def draw(axes: Axes) -> None:
        plot_sides(axes, lines)
        axes.set(xlabel="mean tokens of a quarter of the completions", ylabel="accuracy (%)")

    note = "Quarters of all completions, short to long. Long ones come from hard problems too."
    return chart("Accuracy against length", note, ["", "quarter", "tokens", "accuracy", "completions"], rows, draw)


def plot_sides(axes: Axes, lines: Sequence[Line]) -> None:
    """Two lines, before and after, each with its name at its end, the higher end's name above."""
    higher = max(lines, key=lambda line: line.y[-1])
    for line, colour, marker, dash in zip(lines, (BASE, PRUNED), "os", (DASHES[1], "-")):
        axes.plot(line.x, line.y, color=colour, marker=marker, linestyle=dash)
        axes.annotate(
            line.name,
            (line.x[-1], line.y[-1]),
            (7, 5 if line is higher else -5),
            va="center",
            textcoords="offset points",
        )
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.16 * (high - low))
    axes.margins(y=0.12)


def by_difficulty(before: Side, after: Side, groups: Sequence[str], names: Sequence[str], note: str) -> Chart:
    """Mean length of the problems of each group, before and after. groups [P]: each problem's; names: their order."""
    masks = [np.array([g == name for g in groups]) for name in names]
    means = [[side.lengths[m].mean() for m in masks] for side in (before, after)]
    right = [[side.correct[m].mean() for m in masks] for side in (before, after)]

    def draw(axes: Axes) -> None:
        place = np.arange(len(names))
        for values, shift, colour, hatch, name in (
            (means[0], -0.2, BASE, None, "before"),
            (means[1], 0.2, PRUNED, "////", "after"),
        ):
            axes.bar(place + shift, values, 0.36, color=colour, alpha=0.3, linewidth=0)
            axes.bar(place + shift, values, 0.36, facecolor="none", edgecolor=colour, hatch=hatch, label=name)
            for x, y in zip(place + shift, values):
                axes.text(x, y, f"{y:.0f}", ha="center", va="bottom", fontsize=9)
        axes.set_xticks(place, [short(n) for n in names], fontsize=8.5 if len(names) < 6 else 7)
        axes.set(ylabel="mean tokens", ylim=(0, 1.25 * max(map(max, means))))
        axes.legend(loc="upper left", ncols=2, borderaxespad=0, handlelength=1.6, fontsize=8.5)

    rows = [
        [name, str(m.sum()), f"{b:.1f}", f"{a:.1f}", minus(f"{100 * (a / b - 1):+.1f} %"), percent(rb), percent(ra)]
        for name, m, b, a, rb, ra in zip(names, masks, *means, *right)
    ]
    head = ["", "problems", "tokens before", "after", "change", "accuracy before", "after"]
    return chart("Length by difficulty", note, head, rows, draw)


def curves(title: str, unit: str, lines: Sequence[Line], digits: int) -> Chart:
    """Training curves over optimiser steps. Long ones are averaged down to MOST_POINTS points, several in one chart to
    FEW_POINTS, or nobody could tell them apart. digits: of a number that count."""
    most = MOST_POINTS if len(lines) == 1 else FEW_POINTS
    thin = [replace(line, x=thinned(line.x, most), y=thinned(line.y, most)) for line in lines]

    def draw(axes: Axes) -> None:
        for line in thin:
            colour, dash, marker = (looks[line.style % len(looks)] for looks in (SERIES, DASHES, MARKERS))
            every = max(1, len(line.x) // 6)
            axes.plot(
                line.x,
                line.y,
                color=colour,
                linestyle=dash,
                linewidth=1.4,
                marker=marker,
                markersize=4,
                markevery=(every // 2, every),
            )
        axes.set(xlabel="optimiser step", ylabel=unit)
        axes.margins(x=0.02, y=0.08)
        if len(thin) == 1:
            axes.annotate(
                plain(thin[0].y[-1], digits),
                (thin[0].x[-1], thin[0].y[-1]),
                (4, 0),
                va="center",
                textcoords="offset points",
                fontsize=9,
            )
            axes.margins(x=0.1)
        else:
            name_at_right(
                axes,
                [(line.x[-1], line.y[-1]) for line in thin],
                [line.name for line in thin],
                0.12 + 0.2 * min(1.0, max(len(short(line.name)) for line in thin) / 16),
            )

    rows = [
        [*([line.name] if len(lines) > 1 else []), f"{x:.0f}", plain(y, digits + 1)]
        for line in lines
        for x, y in zip(thinned(line.x, MOST_ROWS // len(lines) + 1), thinned(line.y, MOST_ROWS // len(lines) + 1))
    ]
    first, last = lines[0].y[0], lines[0].y[-1]
    note = f"First to last step: {plain(first, digits)} to {plain(last, digits)}."
    if len(lines) > 1:
        note = "Names at the lines’ ends; a point is the mean of a stretch of steps."
    return chart(title, note, [*([""] if len(lines) > 1 else []), "step", unit], rows, draw)


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most `most` values, each the mean of its stretch."""
    return [float(np.mean(part)) for part in np.array_split(np.asarray(values, float), min(most, len(values)))]


def trade_off(points: Sequence[Line], title: str) -> Chart:
    """Accuracy against mean tokens, a mark a row of a study, the base first. x, y: one value each; low and high of y over
    seeds. The marks stand again beside their names: with names at the marks, ten methods cover each other."""

    def draw(axes: Axes) -> None:
        looks = [{"color": BASE, "marker": "o"}]
        looks += [
            {"color": SERIES[p.style % len(SERIES)], "marker": MARKERS[p.style % len(MARKERS)]} for p in points[1:]
        ]
        for p, look in zip(points, looks):
            if p.low[0] < p.high[0]:
                axes.plot([p.x[0]] * 2, [100 * p.low[0], 100 * p.high[0]], color=look["color"], linewidth=1)
            axes.plot(p.x, [100 * p.y[0]], linestyle="", markersize=6.5, **look)
        axes.margins(0.1)
        axes.set(xlabel="mean tokens", ylabel="accuracy (%)")
        longest = max(len(short(p.name)) for p in points)
        marks = [(p.x[0], 100 * p.y[0]) for p in points]
        name_at_right(axes, marks, [p.name for p in points], 0.16 + 0.3 * longest / LONGEST_NAME, looks)

    rows = [[p.name, f"{p.x[0]:.1f}", percent(p.y[0]), between(p, percent)] for p in points]
    note = "Up and to the left is better: more right with fewer tokens. Names from the most to the least accurate."
    size = (SIZE[0], max(SIZE[1], 0.21 * len(points) + 1))
    return chart(title, note, ["", "tokens", "accuracy", "over seeds"], rows, draw, size)


def between(line: Line, form) -> str:
    low, high = line.low[0], line.high[0]
    return span(low, high, form) if low < high else "one value"


def bars(title: str, points: Sequence[Line], note: str, unit: str, form) -> Chart:
    """A horizontal bar a row, with its number; low and high, where they differ, as a whisker. y: one value each."""

    def draw(axes: Axes) -> None:
        ends = [v for p in points for v in (p.y[0], p.low[0], p.high[0], 0.0)]
        span = max(ends) - min(ends) or 1.0
        for i, p in enumerate(points):
            colour = BASE if p.name == "base" else PRUNED
            axes.barh(i, p.y[0], 0.62, color=colour, alpha=0.3, linewidth=0)
            axes.barh(i, p.y[0], 0.62, facecolor="none", edgecolor=colour, hatch=None if p.name == "base" else "////")
            if p.low[0] < p.high[0]:
                axes.plot([p.low[0], p.high[0]], [i, i], color=INK, linewidth=1, marker="|", markersize=7)
            axes.text(max(p.y[0], p.high[0], 0) + 0.02 * span, i, minus(form(p.y[0])), va="center", fontsize=8.5)
        axes.set_yticks(range(len(points)), [short(p.name) for p in points])
        axes.set_xlim(min(ends) - (0.06 * span if min(ends) < 0 else 0), max(ends) + 0.22 * span)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(unit)

    rows = [[p.name, minus(form(p.y[0])), between(p, form)] for p in points]
    return chart(title, note, ["", unit, "over seeds"], rows, draw, (SIZE[0], max(1.6, 0.27 * len(points) + 0.75)))


def steps_of(title: str, unit: str, line: Line, base: float, names: Sequence[str], axis: str, form) -> Chart:
    """One measure over the settings of an ablation, with the base as a level line. line.x is not used: the settings stand
    at equal distances."""

    def draw(axes: Axes) -> None:
        place = np.arange(len(names))
        for x, low, high in zip(place, line.low, line.high):
            if low < high:
                axes.plot([x, x], [low, high], color=PRUNED, linewidth=1, marker="_", markersize=7)
        axes.plot(place, line.y, color=PRUNED, marker="s")
        for x, y, after in zip(place, line.y, [*line.y[1:], line.y[-1]]):
            axes.annotate(
                form(y), (x, y), (6, -7 if after > y else 7), textcoords="offset points", va="center", fontsize=9
            )
        axes.plot([-0.3, len(names) - 0.45], [base, base], color=BASE, linestyle=DASHES[1])
        axes.text(len(names) - 0.4, base, f"base\n{form(base)}", va="center", fontsize=9)
        axes.set_xticks(place, [short(n) for n in names])
        axes.set(xlabel=axis, ylabel=unit, xlim=(-0.3, len(names) + 0.06 * len(names)))
        axes.margins(y=0.16)

    rows = [["base", form(base), ""]]
    rows += [
        [n, form(y), span(a, b, form) if a < b else "one value"]
        for n, y, a, b in zip(names, line.y, line.low, line.high)
    ]
    note = f"{unit[0].upper() + unit[1:]}; the base (dashed) has {form(base)}."
    return chart(title, note, ["", unit, "over seeds"], rows, draw)


def disharmony(lines: Sequence[Line], tokens: Sequence[Sequence[float]], note: str) -> Chart:
    """Accuracy over length intervals, a line for all problems and one for each difficulty. tokens: each line's mean
    lengths, of the numbers beside the chart."""

    def draw(axes: Axes) -> None:
        for i, line in enumerate(lines):
            colour = INK if i == 0 else SERIES[(i - 1) % len(SERIES)]
            x = np.asarray(line.x) + 0.05 * (i - (len(lines) - 1) / 2)
            axes.plot(
                x,
                [100 * v for v in line.y],
                color=colour,
                marker="o" if i == 0 else MARKERS[(i - 1) % 8],
                linestyle=DASHES[i % len(DASHES)],
                linewidth=2 if i == 0 else 1.3,
            )
            for at, low, high in zip(x, line.low, line.high):
                axes.plot([at, at], [100 * low, 100 * high], color=colour, linewidth=0.8)
            if len(lines) == 1:
                for at, y in zip(x, line.y):
                    axes.annotate(
                        f"{100 * y:.1f}", (at, 100 * y), (0, 8), textcoords="offset points", ha="center", fontsize=9
                    )
        axes.set_xticks(lines[0].x, [f"{x:.0f}" for x in lines[0].x])
        axes.set(xlabel="length interval, short to long", ylabel="accuracy (%)")
        axes.margins(x=0.06)
        name_at_right(axes, [(line.x[-1], 100 * line.y[-1]) for line in lines], [line.name for line in lines], 0.26)

    rows = [
        [line.name, f"{x:.0f}", f"{n:.1f}", percent(y), span(low, high, percent)]
        for line, mean in zip(lines, tokens)
        for x, n, y, low, high in zip(line.x, mean, line.y, line.low, line.high)
    ]
    head = ["", "interval", "tokens", "accuracy", "95 % interval"]
    return chart("Accuracy by length interval", note, head, rows, draw, (SIZE[0], 1.2 * SIZE[1]))
