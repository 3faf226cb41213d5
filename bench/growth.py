"""How cost grows: seconds and peak memory of an update and of rollouts, as one number at a time is doubled.

    python -m bench.growth [--axes tokens samples completion vocabulary rows] [--layers 2] [--out runs/growth]

An axis doubles one number and keeps the others: tokens of a batch (problems of 8 samples), samples of a problem, tokens of
a completion, the vocabulary, and rows that are decoded together. Updates are bench.update's, with the same micro-batch all
along, o1core beside transformers; rollouts are bench.rollout's. Each point is a process of its own; one that is killed, for
memory as a rule, ends its line. A point that was measured is read from --out, so that an interrupted command resumes.

It prints a table, and for each line the power with which its last doubling grew: 1 is linear, 2 quadratic. growth.png has
both axes logarithmic; a step in a line would be a threshold in the code.
"""

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from o1core.charts import DASHES, MARKERS, SERIES, styled

WIDTHS = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
CONFIG = WIDTHS | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 24,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
UPDATES = ("o1core", "transformers")


@dataclass(frozen=True)
class Axis:
    """What is doubled: `values`, and the flags of bench.update that stand for one."""

    label: str
    values: tuple[int, ...]
    flags: Any


AXES = {
    "tokens": Axis("tokens of a batch", tuple(1024 << i for i in range(7)), lambda n: {"problems": max(1, n // 2048)}),
    "samples": Axis("samples of a problem", (4, 8, 16, 32, 64), lambda k: {"problems": 1, "samples": k}),
    "completion": Axis(
        "tokens of a completion",
        tuple(128 << i for i in range(7)),
        lambda t: {"problems": 1, "samples": 2, "completion": t},
    ),
    "vocabulary": Axis("vocabulary", (49152, 98304, 151936), lambda v: {"vocab": v}),
    "rows": Axis("rows decoded together", (8, 16, 32, 64, 128), None),
}
BATCH = {"problems": 1, "samples": 8, "prompt": 105, "completion": 151, "micro-batch": 4, "steps": 1, "runs": 1}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ap.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS")
    ap.add_argument("--layers", type=int, default=2, help="of the model, whose widths are real (default: %(default)s)")
    ap.add_argument("--most", type=int, default=1 << 16, help="skip larger values (default: %(default)s)")
    ap.add_argument("--out", type=Path, default=Path("runs/growth"), help="folder of the points (default: %(default)s)")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines = {name: measured(args, name) for name in args.axes}
    print(f"{args.layers} layers of 896 x 4,864, bf16, {torch.get_num_threads()} threads")
    for name, of_ways in lines.items():
        print(f"\n| {AXES[name].label} | way | seconds | peak GiB |\n|---|---|---|---|")
        for way, points in of_ways.items():
            for value, seconds, peak in points:
                print(f"| {value:,} | {way} | {seconds:.2f} | {peak:.2f} |")
            if len(points) > 1:
                print(f"| last doubling | {way} | power {power(points, 1):.2f} | power {power(points, 2):.2f} |")
    draw(lines, args.out / "growth.png")


Point = tuple[int, float, float]  # the value, seconds, peak GiB


def measured(args: argparse.Namespace, name: str) -> dict[str, list[Point]]:
    """The points of each way, up to the first that was killed."""
    ways = ("o1core",) if name == "rows" else UPDATES
    found: dict[str, list[Point]] = {way: [] for way in ways}
    for way in ways:
        for value in (v for v in AXES[name].values if v <= max(args.most, 0) or name == "vocabulary"):
            path = args.out / f"{name}-{way}-{value}-{args.layers}.json"
            if not path.exists():
                print(f"{AXES[name].label} {value:,}, {way}", file=sys.stderr)
                point = decoded(args, value) if name == "rows" else updated(args, name, way, value)
                path.write_text(json.dumps(point))
            point = json.loads(path.read_text())
            if point is None:
                break
            found[way].append((value, *point))
    return found


def updated(args: argparse.Namespace, name: str, way: str, value: int) -> tuple[float, float] | None:
    """(seconds, peak GiB) of a step; None where it was killed."""
    flags = BATCH | AXES[name].flags(value)
    if name == "tokens" and value < 2048:
        flags["samples"] = 4
    folder = args.out / f"vocabulary-{flags.pop('vocab', CONFIG['vocab_size'])}"
    folder.mkdir(exist_ok=True)
    vocab = int(folder.name.partition("-")[2])
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": vocab}))
    settings = flags | {"config": folder, "layers": args.layers, "dtype": "bfloat16", "ways": way}
    found = run("bench.update", settings, args.out)
    runs = found["runs"][way] if found else []
    return (runs[0]["seconds"], runs[0]["peak_gib"]) if runs else None


def decoded(args: argparse.Namespace, rows: int) -> tuple[float, float] | None:
    """(seconds for 64 tokens of each row, peak GiB) of the rollout engine."""
    settings: dict[str, Any] = {"layers": args.layers, "prompts": rows // 4, "samples": 4, "new-tokens": 64, "runs": 1}
    settings |= {"engines": "lanes", "cases": "fixed"}
    found = run("bench.rollout", settings, args.out)
    runs = found["fixed"]["lanes"] if found else []
    return (rows * 64 / runs[0]["rate"], runs[0]["peak_gib"]) if runs else None


def run(module: str, settings: dict[str, Any], out: Path) -> Any:
    """The JSON that a bench writes; None where it failed."""
    path = out / "point.json"
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, "-m", module, *flags, "--json", str(path)], stdout=subprocess.DEVNULL)
    return json.loads(path.read_text()) if done.returncode == 0 else None


def power(points: list[Point], of: int) -> float:
    """The exponent between the last two points."""
    before, after = points[-2], points[-1]
    return math.log(after[of] / before[of]) / math.log(after[0] / before[0])


def draw(lines: dict[str, dict[str, list[Point]]], path: Path) -> None:
    """A column an axis: seconds above, memory below."""
    with styled():
        figure = Figure(figsize=(3.1 * len(lines), 4.6), layout="constrained")
        sides = figure.subplots(2, len(lines), squeeze=False, sharex="col")
        for column, (name, of_ways) in enumerate(lines.items()):
            for row, label in enumerate(("seconds", "peak GiB")):
                axes = sides[row][column]
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
                for style, (way, points) in enumerate(of_ways.items()):
                    x, y = [p[0] for p in points], [p[row + 1] for p in points]
                    axes.plot(x, y, label=way, color=SERIES[style], linestyle=DASHES[style], marker=MARKERS[style])
                axes.set_ylabel(label if column == 0 else "")
                if row == 1:
                    axes.set_xlabel(AXES[name].label)
                elif column == 0:
                    axes.legend()
        figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
