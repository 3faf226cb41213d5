"""One self-contained page for runs and studies: tables, charts and a sample browser, without network and build step.

What a model wrote is a stranger's text. It reaches the page in three ways only: through Jinja with autoescape, through
matplotlib's SVG, and as JSON without < > & that the page's script turns into text nodes. A Content-Security-Policy lets
no other script run and nothing be loaded.

Left out on purpose: a clock. The same runs give the same bytes.
"""

import hashlib
import json
from base64 import b64encode
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ...charts import Chart, to_svg
from ...errors import UserError
from ...evaluation import (
    DisharmonyResult,
    Evaluation,
    Result,
    RunResult,
    StudyResult,
    answers_of,
    read_dial,
    read_evaluation,
    read_problems,
    read_result,
)
from ...files import write_atomic
from ...model import Tokenizer
from ...records import to_json
from ...rollout import read_groups
from ...run_folder import SIDES, EvaluationFolder, RunFolder
from ...tables import Table, minus, percent
from ...text import clean
from ..dial import dial_chart, dial_tables
from ..run_charts import accuracy_by_length, by_difficulty, each_problem, lengths, lengths_alone, training_charts
from ..samples import check_inside, logged_steps, open_tokenizer, settings_of
from ..study_charts import disharmony_chart, study_charts
from ..tables import (
    Headline,
    disharmony_headlines,
    disharmony_tables,
    evaluation_headlines,
    evaluation_table,
    rounds_table,
    run_headlines,
    run_table,
    sampled_note,
    study_headlines,
    study_tables,
)
from .browse import MOST_COMPLETIONS, PAGE_CHARACTERS, BrowserSet, Pair, browser_set, pair_up, repeated_share


@dataclass(frozen=True)
class Block:
    """Charts under a heading; closed: they are folded away."""

    title: str
    charts: list[Chart]
    closed: bool = False


@dataclass(frozen=True)
class Source:
    """What the sample browser shows of one test of one run."""

    label: str
    pairs: list[Pair]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Section:
    """The part of the page on one run or study. notes: what is not there, and why."""

    name: str
    kind: str
    headlines: list[Headline]
    tables: list[Table]
    blocks: list[Block]
    settings: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)


@dataclass(frozen=True)
class Test:
    """One test of a run, before and after; without a source where the rollouts are not there (any more)."""

    name: str
    charts: list[Chart]
    source: Source | None


def write_page(runs: list[Path], out: Path) -> Path:
    """Write the page of runs, studies and evaluations to the file `out`; returns it. A run may be at work: the page has what
    is there already.

    Raises UserError where a folder is none of them, or lacks what it says it has.
    """
    sections = [section_of(folder, name) for folder, name in zip(runs, names_of(runs))]
    sources = [source for section in sections for source in section.sources]
    budget = PAGE_CHARACTERS // max(1, len(sources))
    page = render(sections, [browser_set(s.label, s.pairs, s.tokenizer, budget) for s in sources])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, lambda path: path.write_text(page, encoding="utf-8"))
    return out


def names_of(runs: list[Path]) -> list[str]:
    """A short name for each folder, with its parent's where two would have the same."""
    full = [run.resolve() for run in runs]
    alike = [sum(f.name == other.name for other in full) > 1 for f in full]
    return [f"{f.parent.name}/{f.name}" if twice else f.name for f, twice in zip(full, alike)]


def section_of(folder: Path, name: str) -> Section:
    """The section of a folder: of a run, finished or at work, of a study or of an evaluation."""
    run = RunFolder(folder)
    if not run.result.exists() and run.settings.exists():
        return section_at_work(run, name)
    result: Result = read_result(folder)
    if isinstance(result, Evaluation):
        return evaluation_section(run, name, result)
    if isinstance(result, DisharmonyResult):
        return disharmony_section(folder, name, result)
    if isinstance(result, StudyResult):
        return study_section(folder, name, result)
    return run_section(run, name, result)


def evaluation_section(run: RunFolder, name: str, result: Evaluation) -> Section:
    """The part of the page on one evaluation: a folder of `o1core eval`, or one of those within a run."""
    above = (run, *map(RunFolder, run.path.resolve().parents[:2]))  # RUN/base/TEST is such a folder too
    test = read_side(EvaluationFolder(run.path), name, name, next((r for r in above if r.settings.exists()), run))
    notes = [] if test.source else ["No rollouts are there, so no charts and no samples."]
    sources = [test.source] if test.source else []
    blocks = [Block("Completions", test.charts)] if test.charts else []
    tables = [evaluation_table({name: result})]
    return Section(name, "evaluation", evaluation_headlines(result), tables, blocks, settings_of(run), notes, sources)


def section_at_work(run: RunFolder, name: str) -> Section:
    """The part of the page on a run that has not come to its result: what is there so far."""
    found: dict[str, Evaluation] = {}
    tests: list[Test] = []
    for side, said in zip(SIDES, ("base", "pruned")):
        for test, folder in run.evaluations(side).items():
            if folder.result.exists():
                found[f"{test}, {said}"] = read_evaluation(folder.result)
                tests.append(read_side(folder, f"{test}, {said}", f"{name}, {test}, {said}", run))
    found |= validations(run)
    steps, settings = logged_steps(run), run.read_settings()
    blocks = [Block(test.name, test.charts) for test in tests if test.charts]
    if training := training_charts({name: steps}):
        blocks.append(Block("Training so far", training))
    rounds = len(list(run.path.glob("round-??")))
    headlines = [Headline("rounds begun", f"{rounds} of {settings.get('rounds')}")]
    headlines.append(Headline("optimiser steps", f"{len(steps):,}"))
    for first, evaluation in list(found.items())[:1]:
        headlines += [replace(line, label=f"{line.label}, {first}") for line in evaluation_headlines(evaluation)]
    notes = ["This run has not come to its result. Write the page again to see more of it."]
    sources = [test.source for test in tests if test.source]
    tables = [*([evaluation_table(found)] if found else []), *filter(None, [rounds_table(steps)])]
    return Section(name, "run at work", headlines, tables, blocks, settings_of(run), notes, sources)


def validations(run: RunFolder) -> dict[str, Evaluation]:
    """The evaluations between rounds (--eval-every), by what they are called."""
    found = {}
    for folder in sorted(run.path.glob("validation/round-??")):
        rounds = folder.name.removeprefix("round-")
        if rounds.isdecimal() and (folder / "result.json").exists():
            said = f"after round {int(rounds)}" if int(rounds) else "base"
            found[f"held-out problems, {said}"] = read_evaluation(folder / "result.json")
    return found


def read_side(folder: EvaluationFolder, name: str, label: str, run: RunFolder) -> Test:
    """Charts and samples of one evaluation."""
    groups = {group.problem: group for group in read_groups(folder.rollouts)}
    pairs = [Pair(p, groups[p.id], None) for p in read_problems(folder) if p.id in groups] if groups else []
    if not pairs:
        return Test(name, [], None)
    if len({len(pair.before.samples) for pair in pairs}) > 1:
        raise UserError(f"{folder.rollouts}: its problems have different numbers of samples; sample them again")
    answers = answers_of([pair.before for pair in pairs])
    source = Source(label, pairs, open_tokenizer(run))
    return Test(name, [lengths_alone(answers), accuracy_by_length(answers)], source)


def run_section(run: RunFolder, name: str, result: RunResult) -> Section:
    """The part of the page on one run."""
    tests = [read_test(run, test, name) for test in result.comparison.tests]
    blocks = [Block(f"Test: {test.name}", test.charts) for test in tests if test.charts]
    notes = [f"{test.name}: no rollouts are there, so no charts and no samples." for test in tests if not test.source]
    log = logged_steps(run)
    if training := training_charts({name: log}):
        blocks.append(Block("Training", training))
    else:
        notes.append("No optimiser step was logged, so there are no training curves.")
    tables = [run_table(result), *filter(None, [rounds_table(log)])]
    if held_out := validations(run):
        tables.append(replace(evaluation_table(held_out), title="Between rounds"))
    if (run.dials / "result.json").exists():
        dial = read_dial(run.dials / "result.json")
        tables += dial_tables(dial)
        blocks.append(Block("The dial: the adapter at other scales", [dial_chart(dial)]))
    sources = [test.source for test in tests if test.source]
    headlines = [*run_headlines(result), *repeated_headline(sources)]
    return Section(name, "run", headlines, tables, blocks, settings_of(run), notes, sources)


def repeated_headline(sources: list[Source]) -> list[Headline]:
    """How much of a completion repeats itself, the mean over the tests."""
    if not sources:
        return []
    shares = [repeated_share(source.pairs, source.tokenizer) for source in sources]
    before, after = (sum(side) / len(shares) for side in zip(*shares))
    note = "of the mean completion"
    return [Headline("text that repeats itself", percent(after), f"{100 * before:.1f}", note=note)]


def read_test(run: RunFolder, name: str, label: str) -> Test:
    """Charts of one test of a run, and its pairs as a source of the sample browser."""
    before, after = (run.evaluation(side, name) for side in SIDES)
    for folder in (before, after):
        check_inside(run.path, folder.path)
    if before.path.parent != run.path / SIDES[0] or before.path.name != name:
        raise UserError(f"{run.result}: {name!r} is not the name of a test")
    groups = [read_groups(folder.rollouts) for folder in (before, after)]
    if not all(groups):
        return Test(name, [], None)
    pairs = pair_up(read_problems(before), *groups)
    if not pairs:
        raise UserError(f"{before.problems}: does not match {before.rollouts}; they belong to different runs")
    sides = [p.before for p in pairs], [p.after for p in pairs if p.after]
    for folder, side in zip((before, after), sides):
        if len({len(group.samples) for group in side}) > 1:
            raise UserError(f"{folder.rollouts}: its problems have different numbers of samples; sample them again")
    first, second = map(answers_of, sides)
    charts = [
        lengths(first, second),
        accuracy_by_length(first, second),
        each_problem(first, second),
        by_difficulty(first, second, [p.problem for p in pairs]),
    ]
    return Test(name, charts, Source(f"{label}, {name}", pairs, open_tokenizer(run)))


def study_section(folder: Path, name: str, result: StudyResult) -> Section:
    """The part of the page on a study whose rows are runs: its table, its charts, and its runs of the first seed."""
    for row in result.variants:
        for place in row.runs:
            check_inside(folder, folder / place)
    runs = {row.label: RunFolder(folder / row.runs[0]) for row in result.variants}
    for run in runs.values():
        if not run.path.is_dir():
            raise UserError(f"{run.path}: is not there; `o1core study {result.study} --out {folder}` makes it again")
    blocks = [Block("The study in charts", study_charts(result))]
    if training := training_charts({label: logged_steps(run) for label, run in runs.items()}):
        blocks.append(Block("Training, first seed", training))
    notes: list[str] = []
    sources: list[Source] = []
    for label, run in runs.items():
        tests = [read_test(run, test, f"{name}, {label}") for test in result.tests]
        drawn = [replace(chart, title=f"{chart.title}, {test.name}") for test in tests for chart in test.charts]
        if drawn:
            blocks.append(Block(f"{label}: before and after, first seed", drawn, closed=True))
        notes += [f"{label}: the rollouts of {test.name} are not there." for test in tests if not test.source]
        sources += [test.source for test in tests if test.source]
    kind, settings = f"study {result.study}", settings_of(RunFolder(folder))
    return Section(name, kind, study_headlines(result), study_tables(result), blocks, settings, notes, sources)


def disharmony_section(folder: Path, name: str, result: DisharmonyResult) -> Section:
    """The part of the page on the study of accuracy by length."""
    blocks = [Block("Are the long answers the right ones?", [disharmony_chart(result, sampled_note(result))])]
    tables = disharmony_tables(result)
    return Section(
        name, "study disharmony", disharmony_headlines(result), tables, blocks, settings_of(RunFolder(folder))
    )


def render(sections: list[Section], sets: list[BrowserSet]) -> str:
    """The page. What is Markup here is ours: the style, the script, the charts' SVG, and the escaped JSON."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
    )
    environment.filters["svg"] = lambda chart: Markup(to_svg(chart))
    environment.filters["minus"] = minus
    here = Path(__file__).parent
    style, script = (Markup((here / f"page.{kind}").read_text(encoding="utf-8").strip()) for kind in ("css", "js"))
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        sections=sections,
        sets=sets,
        data=embed(to_json(sets)),
        style=style,
        script=script,
        digest=digest,
        most=MOST_COMPLETIONS,
    )


def shown(value: Any) -> Any:
    """What the template prints: text without control characters, which are not characters of HTML."""
    return clean(value.replace("\t", " ")) if isinstance(value, str) and not isinstance(value, Markup) else value


def embed(value: Any) -> Markup:
    """JSON that is safe inside a <script>, whatever the text in it says."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
