"""What a run shows at its end: a table for the terminal and a plot."""

from pathlib import Path

import numpy as np

from .store import read_groups, write_atomic

BASE, PRUNED = "#777777", "#0b6e99"


def table(summary: dict) -> str:
    """The result of a run as text, a line for the base and one for the pruned model."""
    header = (
        f"{'':8}{'accuracy':>10}{'95 % interval':>18}{'mean tokens':>13}{'median':>8}{'truncated':>11}{'tokens/s':>10}"
    )
    lines = [header]
    for name in ("base", "pruned"):
        e = summary[name]
        interval = f"{e['accuracy_low']:.1%} to {e['accuracy_high']:.1%}"
        lines.append(
            f"{name:8}{e['accuracy']:>10.1%}{interval:>18}{e['mean_tokens']:>13.1f}{e['median_tokens']:>8.0f}"
            f"{e['truncated']:>11.1%}{e['tokens_per_second']:>10.0f}"
        )
    score = "none" if summary["aes"] is None else f"{summary['aes']:.2f}"
    lines.append("")
    lines.append(
        f"length cut {summary['length_cut']:.1%}   accuracy {100 * summary['accuracy_gain']:+.1f} points   AES {score}"
        f"   {summary['seconds']:.0f} seconds"
    )
    return "\n".join(lines)


def plot(run: Path, summary: dict, path: Path) -> None:
    """Lengths before and after, accuracy by length, and the rounds' course, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from .train import read_log

    before, after = (samples(run / part / "rollouts") for part in ("base", "after"))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
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
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
    plt.close(figure)


def samples(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """lengths and correctness of all completions in a rollout folder."""
    found = [(s.length, s.correct) for g in read_groups(folder) for s in g.samples]
    return np.array([n for n, _ in found]), np.array([c for _, c in found])
