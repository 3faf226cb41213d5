"""The tables and the plot of bench.kernels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A list of dicts with the same keys as a table."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def report(record: dict[str, Any]) -> None:
    print(f"\n## {record['operation']}, {record['tokens']} tokens\n")
    rows = []
    for name, result in record["results"].items():
        row: dict[str, Any] = {"provider": name}
        for mode in ("no-grad", "forward", "backward", "full"):
            low, middle, high = result[mode]
            row[f"{mode} ms (p20, p80)"] = f"{middle:.0f} ({low:.0f}, {high:.0f})"
        base = record["results"].get("naive", result)
        row |= {f"{mode} / naive": result[mode][1] / base[mode][1] for mode in ("no-grad", "full")}
        memory = result["memory"]
        row["MB above inputs"] = round(memory["peak"] / 1e6) if "peak" in memory else str(memory["error"])
        row["less gradients"] = round((memory["peak"] - memory["gradients"]) / 1e6) if "peak" in memory else ""
        rows.append(row | {"samples": result["samples"]})
    print(markdown(rows), flush=True)


def plot(records: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(r["operation"] for r in records))
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False)
    for panel, name in zip(panels[0], names):
        of_name = [r for r in records if r["operation"] == name]
        for provider in dict.fromkeys(p for r in of_name for p in r["results"]):
            points = [(r["tokens"], r["results"][provider]["full"]) for r in of_name if provider in r["results"]]
            x = [n for n, _ in points]
            low, middle, high = zip(*(values for _, values in points))
            panel.plot(x, middle, marker="o", label=provider)
            panel.fill_between(x, low, high, alpha=0.2)
        panel.set(title=name, xlabel="tokens", ylabel="forward + backward, ms (p50; band p20 to p80)")
        panel.set(xscale="log", yscale="log")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
