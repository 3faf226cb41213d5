"""One self-contained page for runs and studies: tables, charts and a sample browser, without network and build step.

What a model wrote is a stranger's text. It reaches the page in three ways only: through Jinja with autoescape, through
matplotlib's SVG, and as JSON without < > & that the page's script turns into text nodes. A Content-Security-Policy lets
no other script run and nothing be loaded.

Left out on purpose: a clock. The same runs give the same bytes.
"""

import hashlib
import json
from base64 import b64encode
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from ...errors import UserError
from ...files import read_json, read_object, write_atomic
from ...model import Tokenizer
from ...problems import Problem
from ...rollout import Group, lengths_and_verdicts, read_groups
from ...studies.studies import THIRDS, difficulties
from ...training import read_log
from ..show import open_tokenizer
from . import charts
from .browse import MOST_COMPLETIONS, PAGE_CHARACTERS, Pair, browser_set, pair_up, repeated_share
from .charts import Side
from .drawing import Chart, Line
from .results import MEND, PROBLEMS, fits, inside, is_number, read_result
from .tables import disharmony_table, disharmony_tiles, run_table, run_tiles, study_table, study_tiles

TRAINING = (  # field of log.jsonl, title, unit, factor, digits
    ("reward", "Reward", "mean reward", 1, 3),
    ("mean_length", "Length of what is trained on", "tokens", 1, 4),
    ("ratio_mean", "Ratio to the reference", "mean ratio", 1, 5),
    ("clip_fraction", "Clip fraction", "% clipped", 100, 3),
    ("approx_kl", "KL from the reference (estimate)", "nats", 1, 3),
    ("loss", "Loss", "loss", 1, 3),
)


@dataclass(frozen=True)
class Test:
    """One test of a run, before and after; pairs is empty where the rollouts are not there (any more)."""

    name: str
    pairs: list[Pair]
    repeated: tuple[float, float] | None
    charts: list[Chart]


def write_page(runs: list[Path], out: Path) -> Path:
    """Write the page of run folders and study folders to the file `out`; returns it.

    Raises UserError where a folder is neither, or lacks what it says it has.
    """
    sources: list[tuple[str, list[Pair], Tokenizer]] = []
    sections = []
    for folder, name in zip(runs, names_of(runs)):
        result = read_result(folder)
        kind = result.get("study")
        section = run_section if kind is None else disharmony_section if kind == "disharmony" else study_section
        sections.append({"name": name, **section(folder, name, result, sources)})
    budget = PAGE_CHARACTERS // max(1, len(sources))
    sets = [browser_set(label, pairs, tokenizer, budget) for label, pairs, tokenizer in sources]
    page = render(sections, sets)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, lambda path: path.write_text(page, encoding="utf-8"))
    return out


def names_of(runs: list[Path]) -> list[str]:
    """A short name for each folder, with its parent's where two would have the same."""
    full = [run.resolve() for run in runs]
    alike = [sum(f.name == other.name for other in full) > 1 for f in full]
    return [f"{f.parent.name}/{f.name}" if twice else f.name for f, twice in zip(full, alike)]


def run_section(folder: Path, name: str, result: dict, sources: list) -> dict:
    """The part of the page on one run."""
    tests = [read_test(folder, test, name, sources) for test in result["tests"]]
    blocks = [{"title": f"Test: {test.name}", "charts": test.charts, "closed": False} for test in tests if test.charts]
    training = training_charts({name: folder})
    if training:
        blocks.append({"title": "Training", "charts": training, "closed": False})
    notes = [f"{test.name}: no rollouts are there, so no charts and no samples." for test in tests if not test.pairs]
    if not training:
        notes.append("No optimiser step was logged, so there are no training curves.")
    return {
        "kind": "run",
        "tiles": run_tiles(result, [test.repeated for test in tests if test.repeated]),
        "tables": [run_table(result)],
        "blocks": blocks,
        "notes": notes,
        "settings": settings_of(folder),
    }


def read_test(folder: Path, name: str, label: str, sources: list) -> Test:
    """Charts of one test of a run, and its pairs as a source of the sample browser."""
    before, after = (inside(folder, f"{side}/{name}") for side in ("base", "after"))
    if before.parent != folder / "base" or before.name != name:
        raise UserError(f"{folder / 'result.json'}: {name!r} is no name of a test")
    groups = [read_groups(side / "rollouts") for side in (before, after)]
    if not all(groups):
        return Test(name, [], None, [])
    problems = read_problems(before / "problems.json")
    pairs = pair_up(problems, *groups)
    if not pairs:
        raise UserError(
            f"{before / 'problems.json'}: names no problem of {before / 'rollouts'}; they are not of one run"
        )
    tokenizer = open_tokenizer(folder)
    sources.append((f"{label}, {name}", pairs, tokenizer))
    first, second = side_of([p.before for p in pairs]), side_of([p.after for p in pairs])
    known = [p.problem for p in pairs]
    kinds = difficulties(known, torch.tensor(first.correct))
    if all(p.level for p in known):
        order, note = sorted(set(kinds), key=natural), "Mean tokens of the problems of each level."
    else:
        order = [t for t in THIRDS if t in kinds]
        note = "Thirds by the base's accuracy in this very evaluation: the hardest third can only rise."
    drawn = [
        charts.lengths(first, second),
        charts.accuracy_by_length(first, second),
        charts.by_difficulty(first, second, kinds, order, note),
    ]
    return Test(name, pairs, repeated_share(pairs, tokenizer), drawn)


def side_of(groups: list[Group]) -> Side:
    lengths, correct = lengths_and_verdicts(groups)
    return Side(lengths.numpy(), correct.numpy())


def natural(text: str) -> tuple:
    """Sorts "level 10" after "level 9"."""
    return tuple((len(word), word) if word.isdigit() else (99, word) for word in text.split())


def read_problems(path: Path) -> list[Problem]:
    rows = read_json(path)
    fits(rows, PROBLEMS, str(path))
    return [Problem(r["id"], r["question"], r["answer"], r.get("level"), r.get("subject")) for r in rows]


def training_charts(runs: dict[str, Path]) -> list[Chart]:
    """The curves of one run, or of several in one chart each; none where no run has a log."""
    logs = {name: read_log(run / "log.jsonl") for name, run in runs.items() if (run / "log.jsonl").exists()}
    found = []
    for field, title, unit, factor, digits in TRAINING:
        lines = []
        for style, name in enumerate(runs):
            points = [(line["step"], factor * line[field]) for line in logs.get(name, []) if is_number(line.get(field))]
            if points:
                lines.append(Line(name, *zip(*points), style=style))
        if lines:
            found.append(charts.curves(title, unit, lines, digits))
    return found


def settings_of(folder: Path) -> list[tuple[str, str]]:
    """What the folder's settings.json says, as text; of the model's path its last name, the rest is this machine's."""
    path = folder / "settings.json"
    settings = read_object(path) if path.exists() else {}
    if isinstance(settings.get("model"), str):
        settings["model"] = Path(settings["model"]).name
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in settings.items()]


def study_section(folder: Path, name: str, result: dict, sources: list) -> dict:
    """The part of the page on a study whose rows are runs: its table, its charts, and its runs of the first seed."""
    rows, tests = result["rows"], result["tests"]
    if not tests:
        raise UserError(f"{folder / 'result.json'}: tests: is empty; {MEND}")
    runs = {row["label"]: inside(folder, row["runs"][0]) for row in rows if row["runs"]}
    for row in rows:
        for run in row["runs"]:
            inside(folder, run)
        if missing := [test for test in tests if test not in row["tests"]]:
            raise UserError(f"{folder / 'result.json'}: rows: {row['label']} lacks the test {missing[0]}")
    blocks = [{"title": "The study in charts", "charts": study_charts(result), "closed": False}]
    if training := training_charts(runs):
        blocks.append({"title": "Training, first seed", "charts": training, "closed": False})
    notes = []
    for label, run in runs.items():
        if not run.is_dir():
            raise UserError(f"{run}: is not there; `o1core study {result['study']} --out {folder}` makes it again")
        parts = [read_test(run, test, f"{name}, {label}", sources) for test in tests]
        drawn = [replace(chart, title=f"{chart.title}, {test.name}") for test in parts for chart in test.charts]
        if drawn:
            blocks.append({"title": f"{label}: before and after, first seed", "charts": drawn, "closed": True})
        notes += [f"{label}: the rollouts of {test.name} are not there." for test in parts if not test.pairs]
    return {
        "kind": f"study {result['study']}",
        "tiles": study_tiles(rows),
        "tables": [study_table(result)],
        "blocks": blocks,
        "notes": notes,
        "settings": settings_of(folder),
    }


def study_charts(result: dict) -> list[Chart]:
    """Accuracy against tokens and AES for every study; along the values for an ablation; inference time where timed."""
    rows = result["rows"]
    base, varied = rows[0]["average"], [row for row in rows if row["runs"]]

    def line(row: dict, measure: str) -> Line:
        tokens, value = row["average"]["mean_tokens"]["mean"], row["average"][measure]
        return Line(row["label"], [tokens], *([value[k]] for k in ("mean", "low", "high")))

    drawn = []
    if result["study"] in ("lambda", "difficulty") and varied:
        axis = {"lambda": "lambda", "difficulty": "percentiles of reference accuracy (0 hardest)"}[result["study"]]
        names = [f"{v:g}" if is_number(v := row.get("value")) else str(v) for row in varied]
        for measure, title, unit, form, factor in (
            ("accuracy", f"Accuracy by {result['study']}", "accuracy (%)", "{:.1f}".format, 100),
            ("mean_tokens", f"Length by {result['study']}", "mean tokens", "{:.0f}".format, 1),
        ):
            values = [row["average"][measure] for row in varied]
            along = Line(title, [], *([factor * v[k] for v in values] for k in ("mean", "low", "high")))
            drawn.append(charts.steps_of(title, unit, along, factor * base[measure]["mean"], names, axis, form))
    marks = [replace(line(row, "accuracy"), style=max(0, i - 1)) for i, row in enumerate(rows)]
    drawn.append(charts.trade_off(marks, "Accuracy against length, all rows"))
    if scored := [line(row, "aes") for row in varied if row["average"].get("aes")]:
        note = "Higher is better: shorter counts once, more right threefold, less right fivefold against."
        drawn.append(charts.bars("Accuracy-efficiency score", scored, note, "AES", "{:.2f}".format))
    if timed := [row for row in rows if row.get("inference")]:
        times = [Line(r["label"], [0], *([r["inference"]["ratio"]] for _ in range(3))) for r in timed]
        note = "Time to answer the same batch with the same engine, as a multiple of the base's."
        drawn.append(charts.bars("Inference time", times, note, "of the base's time", "{:.2f}".format))
    return drawn


def disharmony_section(folder: Path, name: str, result: dict, sources: list) -> dict:
    """The part of the page on the study of accuracy by length."""
    rows = result["rows"]
    lines = [
        Line(
            row["label"],
            *(
                [part[k] for part in row["intervals"]]
                for k in ("interval", "accuracy", "accuracy_low", "accuracy_high")
            ),
        )
        for row in rows
    ]
    tokens = [[part["mean_tokens"] for part in row["intervals"]] for row in rows]
    counts = f"{result.get('problems', '?')} problems, {result.get('samples', '?')} completions of each"
    note = f"{counts}, each problem's cut into intervals of equal count by length; 95 % intervals."
    drawn = charts.disharmony(lines, tokens, note)
    return {
        "kind": "study disharmony",
        "tiles": disharmony_tiles(result),
        "tables": [disharmony_table(result, note)],
        "notes": [],
        "settings": settings_of(folder),
        "blocks": [{"title": "Are the long answers the right ones?", "charts": [drawn], "closed": False}],
    }


def render(sections: list[dict], sets: list[dict]) -> str:
    """The page. What is Markup here is ours: the style, the script, the charts' SVG, and the escaped JSON."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = Markup
    here = Path(__file__).parent
    style, script = (Markup((here / f"page.{kind}").read_text(encoding="utf-8").strip()) for kind in ("css", "js"))
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        sections=sections, sets=sets, data=embed(sets), style=style, script=script, digest=digest, most=MOST_COMPLETIONS
    )


def embed(value: Any) -> Markup:
    """JSON that can stand in a <script> whatever the text in it says."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
