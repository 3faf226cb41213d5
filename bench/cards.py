"""Which card prunes which model with which flags: the table of docs/your-model.md. Nothing is loaded and nothing ran on a GPU.

    python -m bench.cards

Every row is one plan, as `o1core plan` makes it from a model's config.json (tests/data has those of the table) and its
recipe. Of the changes that make a plan fit the cheapest is shown.
"""

from pathlib import Path
from typing import NamedTuple

from o1core.model import read_config
from o1core.recipe import Recipe, read_recipe
from o1core.runs.footprint import Machine, Workload
from o1core.runs.plan import as_flags, hours, plan_run, proposals
from o1core.tables import Cell, Column, Table, to_markdown

DATA = Path(__file__).parents[1] / "tests" / "data"
MODELS = ("r1-distill-1.5b", "qwen3-1.7b", "qwen3-4b", "marco-o1", "qwen3-8b", "qwq-32b")
CARDS = ((1, 24, 22), (1, 80, 76), (8, 80, 76))  # GPUs, GB of each as sold, GiB of it that a run may take
ADAPTERS = {"lora_rank": 32, "train_last_layers": None, "optimiser": "adamw"}


class Row(NamedTuple):
    """flags: to add to the recipe's; "as it is" where none are needed, and None where no proposal fits."""

    model: str
    trained: str
    gpus: int
    card: int
    flags: str | None
    peak_gib: float
    hours: tuple[float, float]


def planned(model: str, gpus: int, card: int, room: int, adapters: bool) -> Row:
    settings = read_recipe(model) | (ADAPTERS if adapters else {})
    machine = Machine(ranks=gpus, cuda=True, memory=room << 30)
    plan = plan_run(read_config(DATA / model), Workload.of(Recipe.of(**settings)), machine)
    flags: str | None = "as it is"
    if not plan.fits:
        changed, plan = next(proposals(plan), ({}, plan))
        flags = as_flags(changed) or None
    trained = "adapters" if adapters else "last 48 layers" if settings.get("train_last_layers") == 48 else "all"
    return Row(model, trained, gpus, card, flags, plan.peak.total / 2**30, hours(plan))


def rows() -> list[Row]:
    return [planned(model, *cards, adapters) for model in MODELS for adapters in (True, False) for cards in CARDS]


def main() -> None:
    columns = [Column("model and recipe", label=True), Column("trained"), Column("GPUs"), Column("flags")]
    columns += [Column("GiB a GPU"), Column("hours to sample, to train")]
    table = []
    for row in rows():
        cells = [row.model, row.trained, f"{row.gpus} x {row.card} GB", row.flags or "does not fit"]
        cells += [f"{row.peak_gib:.1f}", f"{row.hours[0]:.1f}, {row.hours[1]:.1f}"] if row.flags else ["", ""]
        table.append([Cell(text) for text in cells])
    print(to_markdown(Table("", columns, table, "")))


if __name__ == "__main__":
    main()
