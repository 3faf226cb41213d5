"""The charts of a run: completions before and after, and the course of training. Some of them are its plot.png.

Left out on purpose: pan, zoom and hover. The numbers are beside the chart, and they work on a phone and on paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..charts import (
    BASE,
    DASHES,
    FAINT,
    INK,
    PRUNED,
    SERIES,
    Chart,
    Line,
    key_below,
    look_of,
    name_at_right,
    short,
    whole_numbers,
    write_png,
)
from ..errors import UserError
from ..evaluation import THIRDS, RunResult, answers_of, difficulties
from ..metrics import Answers
from ..records import is_number
from ..rollout import read_groups
from ..run_folder import SIDES, RunFolder
from ..tables import change, minus, percent, plain
from ..types import Problem
from .samples import logged_steps
from .tables import in_one_line, run_headlines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS, FEW_POINTS, MOST_ROWS = 300, 24, 40  # of a training curve, of one among several, and of its numbers
BARS, QUARTERS = 24, 4
FEW_ROUNDS = 4  # so many are named in a chart
LOST = SERIES[1]  # the colour of what got worse
MOST_MARKS = 2000  # problems drawn one by one: more would hide each other, and make the page heavy
LEARNING = "Length of what is trained on"
TRAINING = (  # field of log.jsonl, title, unit, factor, digits
    ("reward", "Reward", "mean reward", 1, 3),
    ("mean_length", LEARNING, "tokens", 1, 4),
    ("ratio_mean", "Ratio to the reference", "mean ratio", 1, 5),
    ("clip_fraction", "Clip fraction", "% clipped", 100, 3),
    ("approx_kl", "KL from the reference (estimate)", "nats", 1, 3),
    ("loss", "Loss", "loss", 1, 3),
)


def plot_run(run: RunFolder, result: RunResult) -> None:
    """Lengths before and after, accuracy by length, every problem, and the lengths that were trained on."""
    before, after = (pooled(run, side, list(result.comparison.tests)) for side in SIDES)
    charts = [lengths(before, after), accuracy_by_length(before, after), each_problem(before, after)]
    charts += [chart for chart in training_charts({"": logged_steps(run)}) if chart.title == LEARNING]
    write_png(charts, in_one_line(run_headlines(result)), run.plot)


def pooled(run: RunFolder, side: str, tests: Sequence[str]) -> Answers:
    """All answers of one side, whatever the test. Raises UserError where those of a test were removed meanwhile."""
    sampled = {run.evaluation(side, test).rollouts: read_groups(run.evaluation(side, test).rollouts) for test in tests}
    for folder, groups in sampled.items():
        if not groups:
            raise UserError(f"{folder}: was removed; rerun the same command, which samples it again")
    found = [answers_of(groups) for groups in sampled.values()]
    problems = [f"{test}/{name}" for test, answers in zip(tests, found) for name in answers.problems]
    return Answers(problems, np.concatenate([a.lengths for a in found]), np.concatenate([a.correct for a in found]))


def lengths(before: Answers, after: Answers) -> Chart:
    """A histogram of the completions' lengths, before and after."""
    longest = int(max(before.lengths.max(), after.lengths.max()))
    width = -(-longest // BARS) or 1  # whole tokens: bars of the same width in tokens can be compared
    edges = np.arange(0, longest + width + 1, width)
    counts = [np.histogram(side.lengths, edges)[0] for side in (before, after)]
    shares = [100 * c / c.sum() for c in counts]
    means = [float(side.lengths.mean()) for side in (before, after)]

    def draw(axes: Axes) -> None:
        axes.stairs(shares[0], edges, fill=True, color=BASE, alpha=0.3, linewidth=0)
        axes.stairs(shares[0], edges, color=BASE, linestyle=DASHES[1])
        axes.stairs(shares[1], edges, fill=True, facecolor="none", edgecolor=PRUNED, hatch="////", linewidth=0)
        axes.stairs(shares[1], edges, color=PRUNED)
        top = max(s.max() for s in shares)
        axes.set(xlabel="tokens", ylabel="% of completions", ylim=(0, 1.34 * top), xlim=(0, edges[-1]))
        upper, lower = 1.24 * top, 1.1 * top
        first_is_longer = means[0] >= means[1]
        mark_mean(axes, "before", means[0], lower if first_is_longer else upper, edges[-1], BASE, DASHES[1])
        mark_mean(axes, "after", means[1], upper if first_is_longer else lower, edges[-1], PRUNED, "-")

    rows = [
        [f"{low:.0f} to {high:.0f}", str(b), percent(bs / 100), str(a), percent(as_ / 100)]
        for low, high, b, bs, a, as_ in zip(edges, edges[1:], counts[0], shares[0], counts[1], shares[1])
        if a or b
    ]
    note = f"Mean {means[0]:.1f} tokens before (dashed), {means[1]:.1f} after (hatched)."
    return Chart("Length of completions", note, ["tokens", "before", "share", "after", "share"], rows, draw)


def mark_mean(axes: Axes, name: str, mean: float, height: float, end: float, colour: str, dash: Any) -> None:
    """A line at a histogram's mean with its name at the top, on the side where there is room."""
    axes.plot([mean, mean], [0, height], color=colour, linestyle=dash, linewidth=1)
    late = mean > 0.55 * end
    axes.annotate(
        f"{name}, mean {mean:.0f}",
        (mean, height),
        (-4 if late else 4, 0),
        va="center",
        textcoords="offset points",
        ha="right" if late else "left",
    )


def lengths_alone(answers: Answers) -> Chart:
    """A histogram of the completions' lengths, right and wrong ones, of one evaluation."""
    tokens, correct = answers.lengths.ravel(), answers.correct.ravel()
    width = -(-int(tokens.max()) // BARS) or 1
    edges = np.arange(0, int(tokens.max()) + width + 1, width)
    right, wrong = (np.histogram(tokens[mask], edges)[0] for mask in (correct, ~correct))

    def draw(axes: Axes) -> None:
        bar = partial(axes.bar, edges[:-1], width=width, align="edge")
        bar(right, color=PRUNED, alpha=0.45, linewidth=0, label="right")
        bar(wrong, bottom=right, facecolor="none", edgecolor=LOST, hatch="////", label="wrong")
        axes.set(xlabel="tokens", ylabel="completions", xlim=(0, edges[-1]))
        axes.axvline(float(tokens.mean()), color=INK, linewidth=0.9, linestyle=DASHES[1])
        key_below(axes, columns=2)

    rows = [
        [f"{low:.0f} to {high:.0f}", str(r), str(w)]
        for low, high, r, w in zip(edges, edges[1:], right, wrong)
        if r or w
    ]
    note = f"Mean {tokens.mean():.1f} tokens (dashed)."
    return Chart("Length of completions", note, ["tokens", "right", "wrong"], rows, draw)


def accuracy_by_length(before: Answers, after: Answers | None = None) -> Chart:
    """Accuracy of the shortest quarter of all completions, of the next, and so on; of one side, or before and after."""
    lines: list[Line] = []
    rows: list[list[str]] = []
    sides = [("before", before), ("after", after)] if after else [("", before)]
    for name, side in sides:
        tokens, correct = side.lengths.ravel(), side.correct.ravel()
        parts = [p for p in np.array_split(np.argsort(tokens, kind="stable"), QUARTERS) if len(p)]
        x, y = [float(tokens[p].mean()) for p in parts], [float(correct[p].mean()) for p in parts]
        lines.append(Line(name, x, [100 * v for v in y]))
        rows += [
            [name, str(i + 1), f"{a:.1f}", percent(b), str(len(p))] for i, (a, b, p) in enumerate(zip(x, y, parts))
        ]

    def draw(axes: Axes) -> None:
        plot_sides(axes, lines)
        axes.set(xlabel="mean tokens of a quarter of the completions", ylabel="accuracy (%)")

    note = "Quarters of all completions, short to long. Long ones come from hard problems too."
    return Chart("Accuracy against length", note, ["", "quarter", "tokens", "accuracy", "completions"], rows, draw)


def plot_sides(axes: Axes, lines: Sequence[Line]) -> None:
    """Before and after, or one side alone. Their names stand outside the axes: inside they would cover a point."""
    looks: list[dict[str, Any]] = [{"color": BASE, "marker": "o"}, {"color": PRUNED, "marker": "s"}]
    for line, look, dash in zip(lines, looks, (DASHES[1] if len(lines) > 1 else "-", "-")):
        axes.plot(line.x, line.y, linestyle=dash, **look)
    axes.margins(0.08, 0.12)
    if len(lines) > 1:
        name_at_right(axes, [(line.x[-1], line.y[-1]) for line in lines], [line.name for line in lines], looks)


def each_problem(before: Answers, after: Answers) -> Chart:
    """Every problem's mean length before and after, marked by what became of its accuracy."""
    x, y = (side.lengths.mean(axis=1) for side in (before, after))
    gain = after.correct.mean(axis=1) - before.correct.mean(axis=1)
    kinds: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("as often right", gain == 0, {"color": BASE, "marker": "o", "alpha": 0.5, "markersize": 2.5}),
        ("more often right", gain > 0, {"color": PRUNED, "marker": "^", "markersize": 3.5}),
        ("less often right", gain < 0, {"color": LOST, "marker": "v", "markersize": 3.5, "fillstyle": "none"}),
    ]
    drawn = np.zeros(len(x), bool)
    drawn[:: -(-len(x) // MOST_MARKS)] = True

    def draw(axes: Axes) -> None:
        top = 1.03 * max(x.max(), y.max(), 1)
        axes.plot([0, top], [0, top], color=INK, linewidth=0.8, linestyle=DASHES[2])
        for name, mask, look in kinds:
            if (mask & drawn).any():
                axes.plot(x[mask & drawn], y[mask & drawn], linestyle="", label=name, **look)
        axes.set(xlabel="tokens before", ylabel="tokens after", xlim=(0, top), ylim=(0, top))
        key_below(axes, columns=2)

    rows = [
        [name, str(mask.sum()), f"{x[mask].mean():.1f}", f"{y[mask].mean():.1f}", str((y < x)[mask].sum())]
        for name, mask, _ in kinds
        if mask.any()
    ]
    note = f"Below the dotted line: shorter after, {(y < x).sum():,} of {len(x):,} problems."
    if drawn.sum() < len(x):
        note += f" Drawn: {drawn.sum():,} of them, evenly spaced."
    return Chart("Each problem", note, ["", "problems", "tokens before", "after", "shorter"], rows, draw)


def by_difficulty(before: Answers, after: Answers, problems: Sequence[Problem]) -> Chart:
    """Mean length of the problems of each level, or of each third by the base's accuracy, before and after."""
    groups = difficulties(problems, torch.from_numpy(before.correct))
    if all(p.level for p in problems):
        names, note = sorted(set(groups), key=natural), "Mean tokens of the problems of each level."
    else:
        names = [third for third in THIRDS if third in groups]
        note = "Thirds by the base's accuracy in this very evaluation: the hardest third can only rise."
    masks = [np.array([g == name for g in groups]) for name in names]
    means = [[float(side.lengths[m].mean()) for m in masks] for side in (before, after)]
    right = [[float(side.correct[m].mean()) for m in masks] for side in (before, after)]

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        for values, shift, colour, hatch, name in (
            (means[0], -0.2, BASE, None, "before"),
            (means[1], 0.2, PRUNED, "////", "after"),
        ):
            axes.bar(places + shift, values, 0.36, color=colour, alpha=0.3, linewidth=0)
            axes.bar(places + shift, values, 0.36, facecolor="none", edgecolor=colour, hatch=hatch, label=name)
            for x, y in zip(places + shift, values):
                axes.text(x, y, f"{y:.0f}", ha="center", va="bottom", fontsize=9)
        axes.set_xticks(places, [short(n) for n in names], fontsize=8.5 if len(names) < 6 else 7)
        axes.set(ylabel="mean tokens", ylim=(0, 1.1 * max(map(max, means))))
        key_below(axes, columns=2)

    rows = [
        [name, str(m.sum()), f"{b:.1f}", f"{a:.1f}", change(a / b - 1), percent(rb), percent(ra)]
        for name, m, b, a, rb, ra in zip(names, masks, *means, *right)
    ]
    head = ["", "problems", "tokens before", "after", "change", "accuracy before", "after"]
    return Chart("Length by difficulty", note, head, rows, draw)


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts "level 10" after "level 9"."""
    return tuple((len(word), word) if word.isdigit() else (99, word) for word in text.split())


def training_charts(logs: dict[str, list[dict[str, Any]]]) -> list[Chart]:
    """The curves of the lines of log.jsonl: of one run, or of several in one chart each; none where no run has a log."""
    found = []
    rounds = [first_steps(log) for log in logs.values() if log]
    later = rounds[0] if rounds and all(steps == rounds[0] for steps in rounds) else []
    for name_of_field, title, unit, factor, digits in TRAINING:
        lines = []
        for style, (name, log) in enumerate(logs.items()):
            points = [
                (float(line["step"]), factor * float(line[name_of_field]))
                for line in log
                if is_number(line.get("step")) and is_number(line.get(name_of_field))
            ]
            if points:
                steps, values = zip(*points)
                lines.append(Line(name, steps, values, style=style))
        if lines:
            found.append(curves(title, unit, lines, digits, later))
    return found


def first_steps(log: Sequence[dict[str, Any]]) -> list[float]:
    """The first step of every round after the first."""
    numbers: list[tuple[Any, Any]] = [(line.get("round"), line.get("step")) for line in log]
    rounds = [(number, float(step)) for number, step in numbers if is_number(number) and is_number(step)]
    return [step for (before, _), (now, step) in pairwise(rounds) if now != before]


def curves(title: str, unit: str, lines: Sequence[Line], digits: int, rounds: Sequence[float] = ()) -> Chart:
    """Training curves over optimiser steps. Long ones are averaged down to MOST_POINTS points, several in one chart to
    FEW_POINTS, or nobody could tell them apart. digits: significant ones of a number; rounds: the first step of every
    round after the first, where a line is drawn."""
    several = len(lines) > 1
    thin = [thinned(line, FEW_POINTS if several else MOST_POINTS) for line in lines]

    def draw(axes: Axes) -> None:
        for number, step in enumerate(rounds, 2):
            axes.axvline(step - 0.5, color=FAINT, linewidth=0.9, zorder=0.5)
            if len(rounds) <= FEW_ROUNDS:
                place = (step - 0.5, 1.0)
                at_top = axes.get_xaxis_transform()
                axes.annotate(
                    f"round {number}", place, (3, -2), at_top, textcoords="offset points", fontsize=8, va="top"
                )
        for line in thin:
            plot_curve(axes, line)
        axes.set(xlabel="optimiser step, a line where a round begins" if rounds else "optimiser step", ylabel=unit)
        whole_numbers(axes)
        axes.margins(x=0.02, y=0.08)
        ends = [(line.x[-1], line.y[-1]) for line in thin]
        name_at_right(axes, ends, [line.name for line in thin] if several else [minus(plain(ends[0][1], digits))])

    rows = [
        [*([line.name] if several else []), f"{x:.0f}", plain(y, digits + 1)]
        for line in (thinned(line, MOST_ROWS // len(lines) + 1) for line in lines)
        for x, y in zip(line.x, line.y)
    ]
    note = f"First to last step: {plain(lines[0].y[0], digits)} to {plain(lines[0].y[-1], digits)}."
    if several:
        note = "Names at the lines’ ends; a point is the mean of a stretch of steps."
    return Chart(title, note, [*([""] if several else []), "step", unit], rows, draw)


def plot_curve(axes: Axes, line: Line) -> None:
    """A line with markers on a few of its points."""
    every = max(1, len(line.x) // 6)
    axes.plot(
        line.x,
        line.y,
        linestyle=DASHES[line.style % len(DASHES)],
        linewidth=1.4,
        markersize=4,
        markevery=(every // 2, every),
        **look_of(line.style),
    )


def thinned(line: Line, most: int) -> Line:
    """The line with at most `most` points, each the mean of its stretch."""

    def means(values: Sequence[float]) -> list[float]:
        return [float(np.mean(part)) for part in np.array_split(np.asarray(values, float), min(most, len(values)))]

    return replace(line, x=means(line.x), y=means(line.y))
