"""What a run or a study says at its end, as text: tables for the terminal and for a README."""

from ..text import clean


def table(summary: dict) -> str:
    """The result of a run: for each test a line for the base and one for the pruned model."""
    tests = summary["tests"]
    shown = {**tests, "average": summary} if len(tests) > 1 else tests
    width = max(8, *(len(name) + 8 for name in shown))
    lines = [
        f"{'':{width}}{'accuracy':>10}{'95 % interval':>18}{'mean tokens':>13}{'median':>8}{'truncated':>11}{'tokens/s':>10}"
    ]
    for name, result in shown.items():
        for side in ("base", "pruned"):
            e = result[side]
            interval = f"{e['accuracy_low']:.1%} to {e['accuracy_high']:.1%}" if "accuracy_low" in e else ""
            label = side if len(tests) == 1 else f"{name} {side}"
            lines.append(
                f"{label:{width}}{e['accuracy']:>10.1%}{interval:>18}{e['mean_tokens']:>13.1f}{e['median_tokens']:>8.0f}"
                f"{e['truncated']:>11.1%}{e['tokens_per_second']:>10.0f}"
            )
    score = "none" if summary["aes"] is None else f"{summary['aes']:.2f}"
    lines.append("")
    lines.append(
        f"length cut {summary['length_cut']:.1%}   accuracy {100 * summary['accuracy_gain']:+.1f} points   AES {score}"
        f"   {summary['seconds']:.0f} seconds"
    )
    return "\n".join(lines)


def study_table(result: dict) -> str:
    """A study of several runs as Markdown: accuracy % / mean tokens / AES of every test and of their average, as in the
    paper's Table 2; over seeds the mean, and of the average's AES the least and the most."""
    *tests, last = [*result["tests"], "average"] if len(result["tests"]) > 1 else result["tests"]
    timed = any(row["inference"] for row in result["rows"])
    head = ["", *tests, last, "length cut", "AES, least to most", *(["inference time"] if timed else [])]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in result["rows"]:
        average = row["average"]
        cells = [row["label"], *(cell(row["tests"][name]) for name in tests), cell(average)]
        cells.append(f"{100 * average['length_cut']['mean']:.1f} %" if row["runs"] else "")
        spread = average["aes"]
        cells.append(f"{spread['low']:.2f} to {spread['high']:.2f}" if row["runs"] and spread else "")
        if timed:
            cells.append(f"{row['inference']['seconds']:.2f} s, {row['inference']['ratio']:.2f} x")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(figures: dict) -> str:
    """accuracy % / mean tokens / AES."""
    score = "-" if figures["aes"] is None else f"{figures['aes']['mean']:.2f}"
    return f"{100 * figures['accuracy']['mean']:.1f} / {figures['mean_tokens']['mean']:.1f} / {score}"


def disharmony_table(result: dict) -> str:
    """Accuracy by length interval as Markdown, short to long, with 95 % intervals."""
    count = result["intervals"]
    head = ["", "problems", *(f"interval {i + 1}" for i in range(count)), "longest - shortest, points"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in result["rows"]:
        cells = [clean(row["label"]).replace("|", "\\|"), str(row["problems"])]
        for part in row["intervals"]:
            span = f"{100 * part['accuracy_low']:.1f} to {100 * part['accuracy_high']:.1f}"
            cells.append(f"{100 * part['accuracy']:.1f} % ({span}), {part['mean_tokens']:.0f} tokens")
        gap = row["gap"]
        cells.append(f"{100 * gap['mean']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
