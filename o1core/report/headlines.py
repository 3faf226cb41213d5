"""What a run or a study says in three or four figures: the tiles of the page, the title of a plot, a terminal's last line."""

from dataclasses import dataclass

from ..evaluation import DisharmonyResult, RunResult, StudyResult
from .numbers import change, percent, points, score


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
    base, pruned = average.base, average.pruned
    tokens, before = f"{pruned.mean_tokens:.0f}", f"{base.mean_tokens:.0f}"
    accuracy = percent(pruned.accuracy)
    return [
        Headline("mean tokens", tokens, before, change(-average.length_cut)),
        Headline("accuracy", accuracy, f"{100 * base.accuracy:.1f}", points(average.accuracy_gain)),
        Headline("AES", score(average.aes), note="accuracy and length in one; higher is better"),
    ]


def study_headlines(result: StudyResult) -> list[Headline]:
    """The row with the best AES."""
    scored = [(row.average.aes.mean, row) for row in result.variants if row.average.aes]
    if not scored:
        return []
    value, best = max(scored, key=lambda pair: pair[0])
    base, mine = result.base.average, best.average
    cut = mine.mean_tokens.mean / base.mean_tokens.mean - 1 if base.mean_tokens.mean else 0.0
    tokens, accuracy = f"{base.mean_tokens.mean:.0f}", f"{100 * base.accuracy.mean:.1f}"
    gain = points(mine.accuracy.mean - base.accuracy.mean)
    return [
        Headline("best AES", score(value), note=best.label),
        Headline("its mean tokens", f"{mine.mean_tokens.mean:.0f}", tokens, change(cut)),
        Headline("its accuracy", percent(mine.accuracy.mean), accuracy, gain),
    ]


def disharmony_headlines(result: DisharmonyResult) -> list[Headline]:
    row = result.rows[0]
    first, last = row.intervals[0], row.intervals[-1]
    gap = f"{100 * row.gap.low:+z.1f} to {100 * row.gap.high:+z.1f}"
    return [
        Headline("accuracy, shortest interval", percent(first.accuracy), note=f"{first.mean_tokens:.0f} tokens"),
        Headline("accuracy, longest interval", percent(last.accuracy), note=f"{last.mean_tokens:.0f} tokens"),
        Headline("longest - shortest", points(row.gap.mean), note=gap),
    ]
