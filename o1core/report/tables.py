"""What a run and a study say in figures: as tables (tables.py), and in a few headlines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation import (
    MOSTLY,
    DisharmonyResult,
    Evaluation,
    Figures,
    Interval,
    Outcome,
    RunResult,
    StudyResult,
    StudyRow,
)
from ..metrics import Spread
from ..records import is_number
from ..tables import Cell, Column, Table, change, percent, points, signed, span, spread_cell, two_digits


def run_table(result: RunResult) -> Table:
    """Base, pruned and what changed, three rows for each test and three for the average over several."""
    tests = result.comparison.tests
    shown = tests | {"average": result.comparison.average} if len(tests) > 1 else tests
    columns = [Column("test", label=True), Column("model", label=True), Column("accuracy (95 % interval)")]
    columns += [Column(head) for head in ("cut off", "mean tokens", "median", "AES")]
    rows = []
    for name, outcome in shown.items():
        for model, cells in (
            ("base", evaluation_cells(outcome.base)),
            ("pruned", evaluation_cells(outcome.pruned)),
            ("change", change_cells(outcome)),
        ):
            rows.append([Cell(name), Cell(model), *cells])
    return Table("Result", columns, rows, note_of(result))


def evaluation_table(found: dict[str, Evaluation]) -> Table:
    """One row an evaluation."""
    columns = [Column("", label=True), Column("accuracy (95 % interval)")]
    columns += [Column(head) for head in ("cut off", "mean tokens", "median", "problems", "completions of each")]
    rows = [
        [Cell(name), *evaluation_cells(e)[:-1], Cell(f"{e.problems:,}"), Cell(f"{e.samples:,}")]
        for name, e in found.items()
    ]
    return Table(
        "Evaluations", columns, rows, "Intervals are over problems (Wilson). Cut off: met the limit of tokens."
    )


def evaluation_headlines(e: Evaluation) -> "list[Headline]":
    ends = span(Spread(e.accuracy, e.accuracy_low, e.accuracy_high), percent)
    return [Headline("accuracy", percent(e.accuracy), note=ends), Headline("mean tokens", f"{e.mean_tokens:.0f}")]


def rounds_table(log: Sequence[Mapping[str, Any]]) -> Table | None:
    """What each round sampled, by the lines of a run's log, and its gap: how far the trainer's log-probs of the sampled
    tokens were from the sampler's, in nats a token. None where nothing was trained."""
    first = {line["round"]: line for line in reversed(log) if is_number(line.get("round"))}
    rounds = [line for _, line in sorted(first.items()) if all(is_number(line.get(name)) for name, _ in OF_A_ROUND)]
    if not rounds:
        return None
    routed = all(is_number(line.get("routed_alike")) for line in rounds)
    columns = [Column("round", label=True), *(Column(head) for _, head in OF_A_ROUND)]
    columns += [Column("routed alike")] if routed else []
    rows = [
        [
            Cell(f"{line['round'] + 1:g}"),
            Cell(percent(line["round_accuracy"])),
            Cell(f"{line['round_mean_tokens']:.1f}"),
            Cell(f"{line['reference_mean']:.2g}"),
            Cell(f"{line['reference_max']:.2g}"),
            *([Cell(percent(line["routed_alike"]))] if routed else []),
        ]
        for line in rounds
    ]
    note = "Gap: the difference between the trainer’s and the sampler’s log-prob of a sampled token, in nats. "
    if routed:
        note += (
            "Routed alike: tokens and layers whose experts the trainer chooses as the sampler did, in the first step. "
        )
    return Table(
        "Rounds", columns, rows, note + "Where it is large, the policy that sampled is not the one that was trained."
    )


OF_A_ROUND = (
    ("round_accuracy", "accuracy of its samples"),
    ("round_mean_tokens", "mean tokens"),
    ("reference_mean", "mean gap"),
    ("reference_max", "largest gap"),
)


def note_of(result: RunResult) -> str:
    """What was measured, by which rules, and what should make a reader careful."""
    tests = result.comparison.tests
    parts = [f"{name}: {o.base.problems} problems, {o.base.samples} completions of each" for name, o in tests.items()]
    text = "; ".join(parts) + ". "
    if any(outcome.paired for outcome in tests.values()):
        text += "Changes are paired over the problems, with 95 % intervals (Student’s t; AES: bootstrap). "
    text += "Cut off: the completion met the limit of tokens. "
    if result.settings.get("truncated") != "keep":
        text += "It is wrong then, unless a complete box stands after its thought. "
    text += "AES: the length cut, plus 3 times the relative gain of accuracy or less 5 times its loss."
    for name, o in tests.items():
        cut = [f"{side} {percent(e.truncated, 0)}" for side, e in (("base", o.base), ("pruned", o.pruned))]
        if max(o.base.truncated, o.pruned.truncated) > MOSTLY:
            text += f" Most completions of {name} were cut off ({', '.join(cut)}): raise --max-new-tokens."
    return text


def evaluation_cells(e: Evaluation) -> list[Cell]:
    accuracy = Spread(e.accuracy, e.accuracy_low, e.accuracy_high)
    return [
        spread_cell(accuracy, percent),
        Cell(percent(e.truncated)),
        Cell(f"{e.mean_tokens:.1f}"),
        Cell(f"{e.median_tokens:.0f}"),
        Cell(),
    ]


def change_cells(outcome: Outcome) -> list[Cell]:
    """What changed in accuracy and tokens, and the score."""
    gain, tokens = outcome.gain, outcome.cut.scaled(-1)
    return [
        Cell(points(gain.mean), span(gain, signed)),
        Cell(),
        Cell(change(tokens.mean), span(tokens, change)),
        Cell(),
        spread_cell(outcome.score, two_digits),
    ]


def study_table(result: StudyResult) -> Table:
    """All rows of a study, each figure with its interval."""
    several = len(result.tests) > 1
    first = "average" if several else result.tests[0]
    columns = [Column("", label=True)]
    columns += [Column(head, first) for head in ("accuracy", "tokens", "gain, points", "cut", "AES")]
    for test in result.tests if several else []:
        columns += [Column(head, test, joined=True) for head in ("accuracy", "tokens", "AES")]
    timed = any(row.inference for row in result.rows)
    columns += [Column("inference time, × the base's")] if timed else []
    rows = [study_cells(row, result, several, timed) for row in result.rows]
    return Table("Result", columns, rows, over_what(result))


def over_what(result: StudyResult) -> str:
    """What the study's means and intervals are over."""
    if result.seeds == 1:
        return "One seed" + ("; 95 % intervals over the problems." if result.intervals else ".")
    ends = "their 95 % intervals over the seeds (Student’s t)" if result.intervals else "the least and the most"
    return f"Means over {result.seeds} seeds, with {ends}."


def study_tables(result: StudyResult) -> list[Table]:
    """The study's table, and two more where it has measures beside AES."""
    measured = any(row.measures for row in result.rows)
    return [study_table(result), *([measures_table(result), budgets_table(result)] if measured else [])]


def measures_table(result: StudyResult) -> Table:
    """Measures beside AES, and what each method cost."""
    budgets = next(row.measures.budgets for row in result.rows if row.measures)
    columns = [
        Column("", label=True),
        Column("OckScore"),
        Column("right", "tokens given"),
        Column("wrong", "tokens given"),
    ]
    columns += [Column("accuracy under budgets")]
    columns += [Column(head, "cost") for head in ("samples", "trained tokens", "seconds")]
    note = (
        "OckScore: accuracy in percent less 10 log10(tokens / 10,000). Tokens given right and wrong: mean length of such "
        f"completions. Accuracy under budgets: the mean over all token budgets from 0 to {budgets[-1]}. Cost: completions "
        "sampled to train on, tokens trained on, and the seconds of both at the speeds that the run measured."
    )
    return Table("Beside AES", columns, [measures_cells(row) for row in result.rows], note)


def budgets_table(result: StudyResult) -> Table:
    """The curve of accuracy over token budgets: every second of its points, to the longest."""
    budgets = next(row.measures.budgets for row in result.rows if row.measures)
    shown = range(len(budgets))[::-2][::-1]
    columns = [Column("", label=True), *(Column(f"{budgets[i]:,}", "accuracy within tokens") for i in shown)]
    rows = []
    for row in result.rows:
        curve = [percent(row.measures.accuracy_within[i]) if row.measures else "" for i in shown]
        rows.append([Cell(row.label), *map(Cell, curve)])
    note = (
        "What is longer than the budget is cut there and is wrong then, unless a complete box stands after its thought; "
        "means over all seeds and tests."
    )
    return Table("Accuracy under token budgets", columns, rows, note)


def measures_cells(row: StudyRow) -> list[Cell]:
    m, cost = row.measures, row.cost
    cells = [Cell(row.label)]
    if m is None:
        cells += [Cell()] * 4
    else:
        cells += [spread_cell(m.ockscore, "{:.1f}".format), spread_cell(m.tokens_right, "{:.1f}".format)]
        cells += [spread_cell(m.tokens_wrong, "{:.1f}".format), spread_cell(m.budget_area, percent)]
    if cost is None:
        return cells + [Cell()] * 3
    return cells + [
        spread_cell(spread, "{:,.0f}".format) for spread in (cost.samples, cost.trained_tokens, cost.seconds)
    ]


def study_cells(row: StudyRow, result: StudyResult, several: bool, timed: bool) -> list[Cell]:
    average = row.average
    cells = [Cell(row.label), *level_cells(average)]
    if row.runs:
        cells += [spread_cell(average.accuracy_gain, signed), spread_cell(average.length_cut, percent)]
        cells += [spread_cell(average.aes, two_digits)]
    else:
        cells += [Cell()] * 3
    for test in result.tests if several else []:
        figures = row.tests[test]
        cells += [*level_cells(figures), spread_cell(figures.aes, two_digits) if row.runs else Cell()]
    if timed:
        time = row.inference
        cells.append(Cell(f"{time.ratio:.2f} ×", f"{time.seconds:.2f} s") if time else Cell())
    return cells


def level_cells(figures: Figures) -> list[Cell]:
    return [spread_cell(figures.accuracy, percent), spread_cell(figures.mean_tokens, "{:.1f}".format)]


def disharmony_table(result: DisharmonyResult) -> Table:
    """Accuracy by length interval, a row for all problems and one for each difficulty."""
    columns = [Column("", label=True), Column("problems")]
    columns += [Column(str(i + 1), "interval") for i in range(result.intervals)]
    columns += [Column("longest - shortest, points")]
    rows = []
    for row in result.rows:
        cells = [Cell(row.label), Cell(str(row.problems))]
        for part in row.intervals:
            cells.append(Cell(percent(part.accuracy), f"{interval_of(part)}; {part.mean_tokens:.0f} tokens"))
        rows.append([*cells, spread_cell(row.gap, signed)])
    return Table("Accuracy by length interval", columns, rows, sampled_note(result))


def interval_of(part: Interval) -> str:
    """The interval of the accuracy of one part of the lengths."""
    return span(Spread(part.accuracy, part.accuracy_low, part.accuracy_high), percent)


def disharmony_tables(result: DisharmonyResult) -> list[Table]:
    """The one table of this study."""
    return [disharmony_table(result)]


def sampled_note(result: DisharmonyResult) -> str:
    """What the study of accuracy by length sampled."""
    return (
        f"{result.problems} problems, {result.samples} completions of each; each problem's completions are cut into "
        f"{result.intervals} intervals of equal count, short to long. 95 % intervals over problems."
    )


@dataclass(frozen=True)
class Headline:
    """One figure, its value before where it has changed, by how much, and what it means."""

    label: str
    value: str
    before: str = ""
    change: str = ""
    note: str = ""

    def __str__(self) -> str:
        value = f"{self.before} to {self.value}" if self.before else self.value
        return f"{self.label} {value} ({self.change})" if self.change else f"{self.label} {value}"


def in_one_line(headlines: list[Headline]) -> str:
    text = ", ".join(map(str, headlines))
    return text[:1].upper() + text[1:]


def run_headlines(result: RunResult) -> list[Headline]:
    average = result.comparison.average
    base, pruned, gain, tokens, score = (
        average.base,
        average.pruned,
        average.gain,
        average.cut.scaled(-1),
        average.score,
    )
    before, right = f"{base.mean_tokens:.0f}", f"{100 * base.accuracy:.1f}"
    value = "none" if score is None else two_digits(score.mean)
    return [
        Headline(
            "mean tokens", f"{pruned.mean_tokens:.0f}", before, with_span(change(tokens.mean), span(tokens, change))
        ),
        Headline("accuracy", percent(pruned.accuracy), right, with_span(points(gain.mean), span(gain, signed))),
        Headline("AES", value, change=span(score, two_digits) if score else "", note="higher is better"),
    ]


def with_span(text: str, ends: str) -> str:
    return f"{text}; {ends}" if ends else text


def study_headlines(result: StudyResult) -> list[Headline]:
    """The row with the best AES."""
    scored = [(row.average.aes, row) for row in result.variants if row.average.aes]
    if not scored:
        return []
    value, best = max(scored, key=lambda pair: pair[0].mean)
    base, mine = result.base.average, best.average
    cut = mine.mean_tokens.mean / base.mean_tokens.mean - 1 if base.mean_tokens.mean else 0.0
    tokens, accuracy = f"{base.mean_tokens.mean:.0f}", f"{100 * base.accuracy.mean:.1f}"
    gain = points(mine.accuracy.mean - base.accuracy.mean)
    shorter = with_span(change(cut), span(mine.length_cut.scaled(-1), change))
    better = with_span(gain, span(mine.accuracy_gain, signed))
    return [
        Headline("best AES", two_digits(value.mean), note=with_span(best.label, span(value, two_digits))),
        Headline("its mean tokens", f"{mine.mean_tokens.mean:.0f}", tokens, shorter),
        Headline("its accuracy", percent(mine.accuracy.mean), accuracy, better),
    ]


def disharmony_headlines(result: DisharmonyResult) -> list[Headline]:
    row = result.rows[0]
    first, last = row.intervals[0], row.intervals[-1]
    return [
        Headline("accuracy, shortest interval", percent(first.accuracy), note=f"{first.mean_tokens:.0f} tokens"),
        Headline("accuracy, longest interval", percent(last.accuracy), note=f"{last.mean_tokens:.0f} tokens"),
        Headline("longest - shortest", points(row.gap.mean), note=span(row.gap, signed)),
    ]
