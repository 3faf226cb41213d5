"""Tables and headline figures of the report page, as text cells: page.html only puts them in place.

A table is {"title", "groups": [[name, columns]], "head", "rows", "labels", "note"}: a cell is [text, what stands beneath it
in small], the first `labels` cells of a row are its name. A tile is one figure: {"label", "value", "note"}.
"""

from .drawing import minus, percent, span


def run_tiles(result: dict, repeated: list[tuple[float, float]]) -> list[dict]:
    """The run in four figures. repeated: of each test, the fraction of a completion that repeats itself on both sides."""
    base, pruned = result["base"], result["pruned"]
    tiles = [
        tile(
            "Mean tokens",
            f"{base['mean_tokens']:.0f} → {pruned['mean_tokens']:.0f}",
            f"{-100 * result['length_cut']:+.1f} %",
        ),
        tile(
            "Accuracy",
            f"{100 * base['accuracy']:.1f} → {percent(pruned['accuracy'])}",
            f"{100 * result['accuracy_gain']:+.1f} points",
        ),
        tile("AES", score(result.get("aes")), "accuracy and length in one; higher is better"),
    ]
    if repeated:
        before, after = (sum(side) / len(repeated) for side in zip(*repeated))
        figures = f"{100 * before:.1f} → {percent(after)}"
        tiles.append(tile("Text that repeats itself", figures, "of the mean completion"))
    return tiles


def tile(label: str, value: str, note: str) -> dict:
    return {"label": label, "value": minus(value), "note": minus(note)}


def score(value: float | None) -> str:
    return "none" if value is None else minus(f"{value:.2f}")


def run_table(result: dict) -> dict:
    """Base against pruned, a pair of lines a test and one for the average over several."""
    tests = result["tests"]
    shown = {**tests, "average": result} if len(tests) > 1 else tests
    rows = []
    for name, outcome in shown.items():
        for side in ("base", "pruned"):
            e = outcome[side]
            interval = span(e["accuracy_low"], e["accuracy_high"], percent) if "accuracy_low" in e else ""
            change = (
                [
                    f"{-100 * outcome['length_cut']:+.1f} %",
                    f"{100 * outcome['accuracy_gain']:+.1f} points",
                    score(outcome.get("aes")),
                ]
                if side == "pruned"
                else [""] * 3
            )
            rows.append(
                [
                    [name, ""],
                    [side, ""],
                    [percent(e["accuracy"]), interval],
                    [f"{e['mean_tokens']:.1f}", ""],
                    [f"{e['median_tokens']:.0f}" if "median_tokens" in e else "", ""],
                    [percent(e["truncated"]) if "truncated" in e else "", ""],
                    *([minus(text), ""] for text in change),
                ]
            )
    counts = "; ".join(
        f"{name}: {outcome['base'].get('problems', '?')} problems, {outcome['base'].get('samples', '?')} completions of each"
        for name, outcome in tests.items()
    )
    head = [
        "test",
        "model",
        "accuracy (95 % interval)",
        "mean tokens",
        "median",
        "ran out",
        "tokens",
        "accuracy",
        "AES",
    ]
    return {
        "title": "Result",
        "groups": [["", 6], ["change", 3]],
        "head": head,
        "rows": rows,
        "labels": 2,
        "note": f"{counts}. “Ran out”: the completion reached the limit of tokens.",
    }


def study_tiles(rows: list[dict]) -> list[dict]:
    """The row with the best AES, in figures."""
    scored = [row for row in rows if row["runs"] and row["average"].get("aes")]
    if not scored:
        return []
    best = max(scored, key=lambda row: row["average"]["aes"]["mean"])
    base, mine = rows[0]["average"], best["average"]
    cut = 100 * (mine["mean_tokens"]["mean"] / base["mean_tokens"]["mean"] - 1)
    gain = 100 * (mine["accuracy"]["mean"] - base["accuracy"]["mean"])
    return [
        tile("Best AES", score(mine["aes"]["mean"]), best["label"]),
        tile(
            "Its mean tokens", f"{base['mean_tokens']['mean']:.0f} → {mine['mean_tokens']['mean']:.0f}", f"{cut:+.1f} %"
        ),
        tile(
            "Its accuracy",
            f"{100 * base['accuracy']['mean']:.1f} → {percent(mine['accuracy']['mean'])}",
            f"{gain:+.1f} points",
        ),
    ]


def study_table(result: dict) -> dict:
    """All rows of a study; under a mean, in small, the least and the most over the seeds."""
    tests, rows = result["tests"], []
    parts = ["average", *tests] if len(tests) > 1 else tests
    timed = any(row.get("inference") for row in result["rows"])
    for row in result["rows"]:
        cells = [[row["label"], ""]]
        for part in parts:
            m = row["average"] if part not in tests else row["tests"][part]
            cells += [spread(m["accuracy"], percent), spread(m["mean_tokens"], "{:.1f}".format)]
            scores = [spread(m.get("length_cut"), percent)] if part == parts[0] else []
            scores.append(spread(m.get("aes"), "{:.2f}".format))
            cells += scores if row["runs"] else [["", ""]] * len(scores)
        if timed:
            time = row.get("inference")
            cells.append([f"{time['ratio']:.2f} ×", f"{time['seconds']:.2f} s"] if time else ["", ""])
        rows.append(cells)
    groups = [
        ["", 1],
        *([part, 4 if part == parts[0] else 3] for part in parts),
        *([["inference", 1]] if timed else []),
    ]
    head = [
        "",
        "accuracy",
        "tokens",
        "cut",
        "AES",
        *["accuracy", "tokens", "AES"] * (len(parts) - 1),
        *(["of the base's time"] if timed else []),
    ]
    seeds = result.get("seeds", 1)
    note = "One seed." if seeds == 1 else f"Means over {seeds} seeds; in small, the least and the most."
    return {"title": "Result", "groups": groups, "head": head, "rows": rows, "labels": 1, "note": note}


def spread(value: dict | None, form) -> list[str]:
    if value is None:
        return ["none", ""]
    return [minus(form(value["mean"])), span(value["low"], value["high"], form) if value["low"] < value["high"] else ""]


def disharmony_tiles(result: dict) -> list[dict]:
    """The study of accuracy by length in three figures."""
    rows = result["rows"]
    gap, parts = rows[0]["gap"], rows[0]["intervals"]
    return [
        tile("Accuracy, shortest interval", percent(parts[0]["accuracy"]), f"{parts[0]['mean_tokens']:.0f} tokens"),
        tile("Accuracy, longest interval", percent(parts[-1]["accuracy"]), f"{parts[-1]['mean_tokens']:.0f} tokens"),
        tile(
            "Longest − shortest",
            f"{100 * gap['mean']:+.1f} points",
            f"{100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}",
        ),
    ]


def disharmony_table(result: dict, note: str) -> dict:
    """Accuracy by length interval, a line for all problems and one for each difficulty."""
    rows, table_rows = result["rows"], []
    for row in rows:
        gap = row["gap"]
        cells = [[row["label"], ""], [str(row["problems"]), ""]]
        for part in row["intervals"]:
            beneath = f"{span(part['accuracy_low'], part['accuracy_high'], percent)}; {part['mean_tokens']:.0f} tokens"
            cells.append([percent(part["accuracy"]), beneath])
        cells.append([minus(f"{100 * gap['mean']:+.1f}"), span(100 * gap["low"], 100 * gap["high"], "{:+.1f}".format)])
        table_rows.append(cells)
    count = len(rows[0]["intervals"])
    head = ["", "problems", *(f"{i + 1}" for i in range(count)), "longest − shortest, points"]
    return {
        "title": "Accuracy by length interval",
        "groups": [["", 2], ["interval, short to long", count], ["", 1]],
        "head": head,
        "rows": table_rows,
        "labels": 1,
        "note": note,
    }
