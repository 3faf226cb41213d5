"""The pictures of runs and studies, as PNG files. Read without colour: markers, hatches and labels say what is what."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure  # not pyplot: it costs every command's start, and keeps figures alive

from ..files import write_atomic
from ..rollout import read_groups
from ..text import clean
from ..training import read_log

matplotlib.rcParams["text.parse_math"] = False  # a level or a file's name is text, whatever dollars are in it

BASE, PRUNED = "#777777", "#0b6e99"
MARKERS, COLOURS = "osD^vPX*<>ph", ("#0b6e99", "#c8553d", "#4a7c3a", "#8a5a9e", "#b8860b", "#333333")


def save(figure, path: Path) -> None:
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def plot_run(run: Path, summary: dict, path: Path) -> None:
    """Lengths before and after, accuracy by length, and the rounds' course, as one PNG."""
    before, after = (samples(run / part) for part in ("base", "after"))
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    edges = np.histogram_bin_edges(np.concatenate((before[0], after[0])), bins=40)
    for (lengths, _), name, colour, hatch in ((before, "base", BASE, None), (after, "pruned", PRUNED, "//")):
        left.hist(lengths, edges, label=f"{name}: mean {lengths.mean():.0f}", color=colour, alpha=0.6, hatch=hatch)
    left.set(xlabel="completion length (tokens)", ylabel="completions", title="Length before and after")
    left.legend()
    for (lengths, correct), name, colour, marker in ((before, "base", BASE, "o"), (after, "pruned", PRUNED, "s")):
        parts = np.array_split(np.argsort(lengths, kind="stable"), 4)
        x = [lengths[p].mean() for p in parts if len(p)]
        middle.plot(x, [100 * correct[p].mean() for p in parts if len(p)], color=colour, marker=marker, label=name)
    middle.set(xlabel="mean length of a quarter of the completions (tokens)", ylabel="right (%)")
    middle.set_title("Accuracy, short to long")
    middle.legend()
    log = read_log(run / "log.jsonl") if (run / "log.jsonl").exists() else []
    steps = [line["step"] for line in log]
    right.plot(steps, [line["mean_length"] for line in log], color=PRUNED, label="mean length (tokens)")
    right.set(xlabel="optimiser step", ylabel="tokens", title="Training")
    other = right.twinx()
    other.plot(
        steps, [100 * line["clip_fraction"] for line in log], color="#c8553d", linestyle="--", label="clipped (%)"
    )
    other.set(ylabel="%", ylim=(0, max([5, *(120 * line["clip_fraction"] for line in log)])))
    right.legend(handles=[*right.lines, *other.lines], loc="lower left")
    score = "" if summary["aes"] is None else f", AES {summary['aes']:.2f}"
    figure.suptitle(
        f"{summary['base']['mean_tokens']:.0f} to {summary['pruned']['mean_tokens']:.0f} tokens "
        f"(-{summary['length_cut']:.0%}), accuracy {summary['base']['accuracy']:.1%} to "
        f"{summary['pruned']['accuracy']:.1%}{score}"
    )
    save(figure, path)


def samples(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """lengths and correctness of all completions of an evaluation, whatever the test."""
    folders = sorted(folder.glob("*/rollouts"))
    found = [(s.length, s.correct) for rollouts in folders for g in read_groups(rollouts) for s in g.samples]
    return np.array([n for n, _ in found]), np.array([c for _, c in found])


def plot_disharmony(result: dict, path: Path) -> None:
    """Accuracy by length interval, a line a difficulty, with 95 % intervals."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(result["rows"]):
        x = [part["mean_tokens"] for part in row["intervals"]]
        y = np.array([100 * part["accuracy"] for part in row["intervals"]])
        low, high = (np.array([100 * part[f"accuracy_{end}"] for part in row["intervals"]]) for end in ("low", "high"))
        axes.errorbar(
            x,
            y,
            np.abs([y - low, high - y]),
            label=f"{clean(row['label'])} ({row['problems']} problems)",
            capsize=3,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            linewidth=1 + (i == 0),
        )
    axes.set(xlabel="mean length of the interval (tokens)", ylabel="right (%)")
    axes.set_title(
        f"{result['problems']} problems x {result['samples']} samples, each problem's cut into "
        f"{result['intervals']} by length"
    )
    axes.legend(fontsize="small")
    save(figure, path)


def plot_ablation(result: dict, name: str, path: Path) -> None:
    """Mean length and accuracy of each run of a study, the base as a line; bars from the least to the most seed."""
    base, rows = result["rows"][0], result["rows"][1:]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    sides = figure.subplots(1, 2)
    for axes, key, label, scale in zip(sides, ("mean_tokens", "accuracy"), ("mean tokens", "right (%)"), (1, 100)):
        axes.axhline(scale * base["average"][key]["mean"], color=BASE, linestyle="--", label="base")
        cells = [row["average"][key] for row in rows]
        mean = np.array([scale * cell["mean"] for cell in cells])
        spread = [mean - [scale * cell["low"] for cell in cells], [scale * cell["high"] for cell in cells] - mean]
        axes.errorbar(
            range(len(rows)), mean, np.maximum(spread, 0), color=PRUNED, marker="s", capsize=4, label="pruned"
        )
        axes.set_xticks(range(len(rows)), [str(row["value"]) for row in rows])
        axes.set(xlabel=name, ylabel=label)
        axes.legend()
    save(figure, path)


def plot_comparison(result: dict, path: Path) -> None:
    """Accuracy against length, a point a method, named in a legend with its AES: up and to the left is better."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(result["rows"]):
        x, y = row["average"]["mean_tokens"], row["average"]["accuracy"]
        bars = [[[abs(s["mean"] - s["low"])], [abs(s["high"] - s["mean"])]] for s in (x, y)]
        score = "" if not row["runs"] or row["average"]["aes"] is None else f", AES {row['average']['aes']['mean']:.2f}"
        axes.errorbar(
            x["mean"],
            100 * y["mean"],
            xerr=bars[0],
            yerr=100 * np.array(bars[1]),
            capsize=2,
            linestyle="none",
            color=BASE if i == 0 else COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=8,
            label=row["label"] + score,
        )
    axes.set(xlabel="mean tokens, average over the tests", ylabel="right (%), average over the tests")
    figure.legend(loc="outside right upper", fontsize="small")
    save(figure, path)
