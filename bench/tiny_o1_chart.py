"""The chart of bench.tiny_o1: accuracy against mean tokens, a marker for each seed, from the figures of its table.

python -m bench.tiny_o1_chart bench/results/tiny_o1.json bench/results/tiny_o1.png
"""

import sys
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from o1core.files import read_json

STYLES = (("#777777", "o"), ("#0b6e99", "s"), ("#c8553d", "^"), ("#4a7c3a", "D"), ("#8a5a9e", "v"), ("#b8860b", "P"))


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """results: for each recipe, the summary of every seed. The base is the same for all recipes of a seed."""
    sides = {"base": [run["base"] for run in next(iter(results.values()))]}
    sides |= {name: [run["pruned"] for run in runs] for name, runs in results.items()}
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, found), (colour, marker) in zip(sides.items(), STYLES):
        tokens, right = [e["mean_tokens"] for e in found], [100 * e["accuracy"] for e in found]
        label = f"{name}: {mean(tokens):.0f} tokens, {mean(right):.1f} %"
        axes.scatter(tokens, right, s=60, color=colour, marker=marker, alpha=0.8, label=label)
    axes.set(xlabel="mean tokens of a completion", ylabel="right (%)", title="Up and to the left is better")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", title=f"mean of {len(sides['base'])} seeds")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw(read_json(Path(sys.argv[1])), Path(sys.argv[2]))
