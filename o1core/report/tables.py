"""One model of tables: what a run and a study say in figures, and how a terminal and Markdown print it.

The report page prints the same tables as HTML (page/page.html).
"""

from dataclasses import dataclass
from itertools import groupby

from ..evaluation import DisharmonyResult, Evaluation, Figures, Outcome, RunResult, Spread, StudyResult, StudyRow
from ..text import one_line
from .numbers import Form, change, percent, points, score, span, two_digits


@dataclass(frozen=True)
class Cell:
    """Text, and what qualifies it: an interval, or the least and the most."""

    text: str = ""
    small: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.small})" if self.small else self.text


@dataclass(frozen=True)
class Column:
    """A header, and the header above it that neighbouring columns have in common.

    label: its cells name the row. joined: Markdown, which has no second header, prints the group as one column.
    """

    head: str
    group: str = ""
    label: bool = False
    joined: bool = False


@dataclass(frozen=True)
class Table:
    """Rows have a cell for each column. note: a sentence below."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Each group's header and the number of its columns, left to right."""
        return [(name, len(list(group))) for name, group in groupby(self.columns, lambda column: column.group)]


def to_text(table: Table) -> str:
    """For a terminal: columns of equal width, numbers to the right. A column of names that are all the same is left out."""
    kept = [
        i for i, column in enumerate(table.columns) if not column.label or len({str(row[i]) for row in table.rows}) > 1
    ]
    columns = [table.columns[i] for i in kept]
    lines = [[f"{c.group} {c.head}".strip() for c in columns]]
    lines += [[one_line(str(row[i])) for i in kept] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(f"{text:{'<' if c.label else '>'}{width}}" for text, c, width in zip(line, columns, widths)).rstrip()
        for line in lines
    )


def to_markdown(table: Table) -> str:
    """As a Markdown table. Joined columns become one, their cells separated by slashes and without what qualifies them."""
    parts: list[list[int]] = []
    for i, column in enumerate(table.columns):
        if column.joined and i and table.columns[i - 1].joined and table.columns[i - 1].group == column.group:
            parts[-1].append(i)
        else:
            parts.append([i])
    heads = []
    for part in parts:
        group = table.columns[part[0]].group
        head = " / ".join(table.columns[i].head for i in part)
        heads.append(f"{group}: {head}" if len(part) > 1 else f"{group} {head}".strip())
    rows = [
        [" / ".join(row[i].text for i in part if row[i].text) if len(part) > 1 else str(row[part[0]]) for part in parts]
        for row in table.rows
    ]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(escaped(text) for text in line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text that a Markdown cell shows as it is: no new cell, line, tag, link or code begins in it."""
    text = one_line(text)
    for character in "\\|`<[*_":
        text = text.replace(character, f"\\{character}")
    return text


def run_table(result: RunResult, changes: bool = True) -> Table:
    """Base against pruned, a pair of rows for each test and one for the average over several.

    changes: with the columns of what changed, for which a terminal is not wide enough.
    """
    tests = result.comparison.tests
    shown = tests | {"average": result.comparison.average} if len(tests) > 1 else tests
    heads = ("mean tokens", "median", "ran out", "tokens/s")
    columns = [Column("test", label=True), Column("model", label=True), Column("accuracy (95 % interval)")]
    columns += [Column(head) for head in heads]
    columns += [Column(head, "change") for head in ("tokens", "accuracy", "AES")] if changes else []
    rows = []
    for name, outcome in shown.items():
        changed = [Cell(text) for text in changes_of(outcome)] if changes else []
        rows.append([Cell(name), Cell("base"), *evaluation_cells(outcome.base), *(Cell() for _ in changed)])
        rows.append([Cell(name), Cell("pruned"), *evaluation_cells(outcome.pruned), *changed])
    counts = "; ".join(
        f"{name}: {o.base.problems} problems, {o.base.samples} completions of each" for name, o in tests.items()
    )
    return Table("Result", columns, rows, f"{counts}. “Ran out”: the completion reached the limit of tokens.")


def evaluation_cells(e: Evaluation) -> list[Cell]:
    interval = ""
    if e.accuracy_low is not None and e.accuracy_high is not None:
        interval = span(e.accuracy_low, e.accuracy_high, percent)
    return [
        Cell(percent(e.accuracy), interval),
        Cell(f"{e.mean_tokens:.1f}"),
        Cell(f"{e.median_tokens:.0f}"),
        Cell(percent(e.truncated)),
        Cell(f"{e.tokens_per_second:.0f}"),
    ]


def changes_of(outcome: Outcome) -> list[str]:
    """What changed in tokens and in accuracy, and the score."""
    return [change(-outcome.length_cut), points(outcome.accuracy_gain), score(outcome.aes)]


def study_table(result: StudyResult) -> Table:
    """All rows of a study; a mean is qualified by the least and the most over the seeds."""
    several = len(result.tests) > 1
    first = "average" if several else result.tests[0]
    columns = [Column("", label=True), *(Column(head, first) for head in ("accuracy", "tokens", "cut", "AES"))]
    for test in result.tests if several else []:
        columns += [Column(head, test, joined=True) for head in ("accuracy", "tokens", "AES")]
    timed = any(row.inference for row in result.rows)
    columns += [Column("inference time, × the base's")] if timed else []
    rows = [study_cells(row, result, several, timed) for row in result.rows]
    seeds = result.seeds
    note = "One seed." if seeds == 1 else f"Means over {seeds} seeds, with the least and the most."
    return Table("Result", columns, rows, note)


def study_tables(result: StudyResult) -> list[Table]:
    """The study's table, and two more where it has measures beside AES."""
    measured = any(row.measures for row in result.rows)
    return [study_table(result), *([measures_table(result), budgets_table(result)] if measured else [])]


def measures_table(result: StudyResult) -> Table:
    """Measures beside AES, and what each method cost; a mean is qualified by the least and the most over the seeds."""
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
    note = "A completion that is longer than the budget counts as wrong; a mean over all seeds and tests."
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
    cells += [spread_cell(average.length_cut, percent), score_cell(average)] if row.runs else [Cell(), Cell()]
    for test in result.tests if several else []:
        figures = row.tests[test]
        cells += [*level_cells(figures), score_cell(figures) if row.runs else Cell()]
    if timed:
        time = row.inference
        cells.append(Cell(f"{time.ratio:.2f} ×", f"{time.seconds:.2f} s") if time else Cell())
    return cells


def level_cells(figures: Figures) -> list[Cell]:
    return [spread_cell(figures.accuracy, percent), spread_cell(figures.mean_tokens, "{:.1f}".format)]


def score_cell(figures: Figures) -> Cell:
    return spread_cell(figures.aes, two_digits)


def spread_cell(spread: Spread | None, form: Form) -> Cell:
    if spread is None:
        return Cell("none")
    return Cell(form(spread.mean), span(spread.low, spread.high, form) if spread.low < spread.high else "")


def disharmony_table(result: DisharmonyResult) -> Table:
    """Accuracy by length interval, a row for all problems and one for each difficulty."""
    columns = [Column("", label=True), Column("problems")]
    columns += [Column(str(i + 1), "interval") for i in range(result.intervals)]
    columns += [Column("longest - shortest, points")]
    rows = []
    for row in result.rows:
        cells = [Cell(row.label), Cell(str(row.problems))]
        for part in row.intervals:
            interval = span(part.accuracy_low, part.accuracy_high, percent)
            cells.append(Cell(percent(part.accuracy), f"{interval}; {part.mean_tokens:.0f} tokens"))
        gap = [f"{100 * value:+z.1f}" for value in (row.gap.mean, row.gap.low, row.gap.high)]
        rows.append([*cells, Cell(gap[0], f"{gap[1]} to {gap[2]}")])
    return Table("Accuracy by length interval", columns, rows, sampled_note(result))


def disharmony_tables(result: DisharmonyResult) -> list[Table]:
    """The one table of this study."""
    return [disharmony_table(result)]


def sampled_note(result: DisharmonyResult) -> str:
    """What the study of accuracy by length sampled."""
    return (
        f"{result.problems} problems, {result.samples} completions of each; each problem's completions are cut into "
        f"{result.intervals} intervals of equal count, short to long. 95 % intervals over problems."
    )
