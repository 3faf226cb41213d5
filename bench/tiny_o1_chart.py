"""The chart of bench.tiny_o1: accuracy against mean tokens, a mark a recipe and a line over its seeds, from the figures of
its table.

    python -m bench.tiny_o1_chart bench/results/tiny_o1.json bench/results/tiny_o1.png
"""

import sys
from pathlib import Path
from statistics import mean
from typing import Any

from o1core.files import read_json
from o1core.report.charts import Line, write_png
from o1core.report.study_charts import trade_off


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """results: for each recipe, the summary of every seed. The base is the same for all recipes of a seed."""
    sides = {"base": [run["base"] for run in next(iter(results.values()))]}
    sides |= {name: [run["pruned"] for run in runs] for name, runs in results.items()}
    points = [line_of(name, found, style) for style, (name, found) in enumerate(sides.items(), -1)]
    write_png([trade_off(points)], f"tiny-o1, mean of {len(sides['base'])} seeds", path)


def line_of(name: str, found: list[dict[str, Any]], style: int) -> Line:
    """A recipe's mark. found: the evaluation of each seed; style: the place of its look, of which the base needs none."""
    right = [e["accuracy"] for e in found]
    tokens = mean(e["mean_tokens"] for e in found)
    return Line(name, [tokens], [mean(right)], [min(right)], [max(right)], max(0, style))


if __name__ == "__main__":
    draw(read_json(Path(sys.argv[1])), Path(sys.argv[2]))
