"""What a run needs and what would fit: `o1core plan`, and the check that a run makes before its first step.

The bytes are footprint.py's. Times are stated rates times counted operations, for an idea of the order. A run that
cannot fit is refused with the flags that would make it fit, tried from the one that costs least.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import UserError
from ..model import ModelConfig
from ..recipe import Recipe, flag
from ..report import Cell, Column, Table
from .footprint import Machine, Phase, cache_config, count_weights, kind_of_cache, longest_row, micro_batch, phases
from .resources import MOST_SLOTS, fit_pages

GIB = 1 << 30
OF_MACHINE = ("tensor_parallel", "offload")
FRAGMENTS = 1.4  # what a process may hold on a CPU, as a multiple of what is alive, where freed blocks are kept
GPU_FLOPS, GPU_BANDWIDTH = 1.25e14, 1.4e12  # 40 % of an A800's bf16 rate, 70 % of the bytes a second of its memory


@dataclass(frozen=True)
class Plan:
    """A recipe on a machine: `memory` bytes a rank, completions decoded at once, pages of the KV cache where it has pages,
    and the phases' bytes."""

    recipe: Recipe
    machine: Machine
    memory: int
    slots: int
    pages: int | None
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self.memory

    @property
    def tight(self) -> bool:
        """Whether it fits only without fragments."""
        return FRAGMENTS * self.peak.total > self.memory


def plan_run(
    config: ModelConfig,
    recipe: Recipe,
    dtype: torch.dtype,
    memory: int,
    machine: Machine | None = None,
    slots: int | None = None,
    trains: bool = True,
) -> Plan:
    """slots: None for as many as fit beside what training holds, in half of the memory at most. With pages the cache has
    that much memory whatever the slots are. trains: False where something is sampled or evaluated alone."""
    machine, trains = machine or Machine(), trains and recipe.objective.kind != "none"
    pages = None
    without = phases(config, recipe, dtype, machine, 0, trains)[0].total
    room = max(0, min(memory - without, memory // 2))
    if kind_of_cache(config, machine) == "pages":
        own, longest = cache_config(config, machine), longest_row(config, recipe)
        slots, pages = fit_pages(own, longest, dtype, room, slots)
    elif slots is None:
        of_one = phases(config, recipe, dtype, machine, 1, trains)[0].total - without
        slots = max(1, min(MOST_SLOTS, room // of_one))
    found = phases(config, recipe, dtype, machine, slots, trains, pages)
    return Plan(recipe, machine, memory, slots, pages, tuple(found))


def proposals(config: ModelConfig, plan: Plan, dtype: torch.dtype) -> Iterator[tuple[dict[str, Any], Plan]]:
    """(changed settings, the plan with them) of changes that make it fit, from the one that costs least. The settings
    tensor_parallel and offload are the machine's."""
    for change in changes(config, plan):
        settings = {name: value for name, value in change.items() if plan.recipe.to_json().get(name) != value}
        of_recipe = {name: value for name, value in settings.items() if name not in OF_MACHINE}
        machine = replace(plan.machine, **{name: settings[name] for name in OF_MACHINE if name in settings})
        changed = plan_run(config, plan.recipe.replace(**of_recipe), dtype, plan.memory, machine)
        if settings and changed.fits:
            yield settings, changed


def changes(config: ModelConfig, plan: Plan) -> Iterator[dict[str, Any]]:
    """Settings to try, from the one that costs least: time, then what is trained."""
    tokens, longest = micro_batch(plan.recipe, plan.machine)
    smaller = []
    while (tokens := tokens // 2) >= longest:
        smaller.append({"micro_tokens": tokens})
    checkpointing = {"checkpointing": True}
    least = checkpointing | (smaller[-1] if smaller else {})
    offloads: list[dict[str, Any]] = [{"offload": "moments"}, {"offload": "optimiser"}] if plan.machine.cuda else []
    teams: list[dict[str, Any]] = [
        {"tensor_parallel": n} for n in (2, 4, 8) if plan.machine.ranks % n == 0 and config.num_kv_heads % n == 0
    ]
    yield from offloads
    yield from smaller
    most = offloads[-1] if offloads else {}
    for room in [dict[str, Any](), *offloads, *teams, *(most | team for team in teams)]:
        yield checkpointing | room
        yield from (step | checkpointing | room for step in smaller)
    rooms: tuple[dict[str, Any], ...] = ({}, most | (teams[-1] if teams else {}))
    for room in rooms:
        yield {"optimiser": "adam-mini"} | least | room
    if plan.recipe.optimiser.lora_rank is None:
        now = plan.recipe.optimiser.train_last_layers or config.num_layers
        fewer: list[dict[str, Any]] = [{"train_last_layers": max(1, now * part // 4)} for part in (3, 2, 1)]
        for part in (*fewer, {"lora_rank": 32, "train_last_layers": None}):
            yield from (part | least | room for room in rooms)


def as_flags(settings: dict[str, Any]) -> str:
    """As they are typed; a setting that is None is "none"."""
    words = {name: "none" if value is None else str(value) for name, value in settings.items()}
    return " ".join(flag(name) if settings[name] is True else f"{flag(name)} {words[name]}" for name in settings)


def check_fits(config: ModelConfig, plan: Plan, dtype: torch.dtype) -> None:
    """Raise UserError, with flags that would make it fit, where the plan needs more memory than there is."""
    if plan.fits:
        return
    peak = plan.peak
    parts = sorted(peak.parts.items(), key=lambda part: -part[1])[:2]
    largest = " and ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
    need = f"needs {peak.total / GIB:.1f} GiB ({largest}) and {plan.memory / GIB:.1f} are free"
    trains = len(plan.phases) > 1  # what is proposed is a smaller way to train
    found = next(proposals(config, plan, dtype), None) if trains else None
    if found is None:
        raise UserError(f"memory: {peak.name} {need}; use a smaller model, or more GPUs by torchrun")
    raise UserError(f"memory: {peak.name} {need}; {as_flags(found[0])} would fit")


def plan_table(config: ModelConfig, plan: Plan, dtype: torch.dtype) -> Table:
    """GiB a rank (a GPU has one), a row for each part and a column for each phase."""
    names = list(dict.fromkeys(name for phase in plan.phases for name, size in phase.parts.items() if size))
    rows = [
        [Cell(name), *(Cell(gib(phase.parts[name]) if name in phase.parts else "") for phase in plan.phases)]
        for name in names
    ]
    rows.append([Cell("all"), *(Cell(gib(phase.total)) for phase in plan.phases)])
    tokens, _ = micro_batch(plan.recipe, plan.machine)
    counts = count_weights(config, plan.recipe.optimiser)
    note = (
        f"GiB on each GPU, of {gib(plan.memory)}; {counts.trained / 1e9:.2f} B weights trained; {slots_of(plan)}, each "
        f"decoding one completion; {tokens:,} tokens a micro-batch. "
    )
    if plan.fits:
        sampling, update = hours(config, plan, dtype)
        note += f"A round takes about {sampling:.1f} h to sample and {update:.1f} h to train on GPUs like an A800. "
        note += "It fits."
    else:
        found = [as_flags(settings) for settings in least_changes(config, plan, dtype)]
        note += "It does not fit. "
        note += f"These would: {'; '.join(found)}." if found else "Nothing proposed here would."
    columns = [Column("GiB", label=True), *(Column(phase.name) for phase in plan.phases)]
    return Table("Memory", columns, rows, note)


def least_changes(config: ModelConfig, plan: Plan, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Proposals without those that change more than an earlier one does."""
    kept: list[dict[str, Any]] = []
    for settings, _ in proposals(config, plan, dtype):
        if not any(earlier.keys() <= settings.keys() for earlier in kept):
            kept.append(settings)
    return kept


def plan_lines(plan: Plan) -> list[str]:
    """What a run says of its plan at its start: each phase with its largest parts, then the settings that follow."""
    lines = []
    for phase in plan.phases:
        parts = sorted(phase.parts.items(), key=lambda part: -part[1])
        shown = [f"{name} {in_units(size)}" for name, size in parts if size >= phase.total / 20]
        lines.append(f"memory to {phase.name}: {in_units(phase.total)} ({', '.join(shown)})")
    execution, (tokens, _) = plan.recipe.execution, micro_batch(plan.recipe, plan.machine)
    lines.append(
        f"memory free: {in_units(plan.memory)}{' a process' if plan.machine.ranks > 1 else ''}; {slots_of(plan)}, "
        f"{tokens} tokens a micro-batch, {'with' if execution.checkpointing else 'without'} checkpointing, "
        f"offload {plan.machine.offload}"
    )
    return lines


def in_units(size: int) -> str:
    """ "3.4 GiB" or "12.3 MiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.1f} MiB"


def slots_of(plan: Plan) -> str:
    """ "36 slots", or "256 slots on 11,000 pages"."""
    return f"{plan.slots} slots" + (f" on {plan.pages:,} pages" if plan.pages is not None else "")


def hours(config: ModelConfig, plan: Plan, dtype: torch.dtype) -> tuple[float, float]:
    """Hours of a round's sampling and training, where completions are half as long as they may be: decoding reads the
    weights and half of the cache for each token of all slots, an update multiplies at GPU_FLOPS."""
    recipe, counts = plan.recipe, count_weights(config, plan.recipe.optimiser)
    weights = counts.trained * (not counts.adapters) + counts.frozen
    problems, length = recipe.selection.problems or 1000, recipe.sampling.max_new_tokens / 2
    tokens = problems * recipe.sampling.samples * length
    read = dtype.itemsize * weights + plan.phases[0].parts["KV cache"] / 2
    teams = plan.machine.ranks // plan.machine.tensor_parallel
    sampling = tokens / (plan.slots * teams) * read / plan.machine.tensor_parallel / GPU_BANDWIDTH
    trained = problems * recipe.objective.picked * min(length, recipe.objective.cutoff) * recipe.optimiser.epochs
    passes = 2 + 2 * (1 + recipe.execution.checkpointing) + 2 * counts.trained / weights
    return sampling / 3600, trained * weights * passes / (GPU_FLOPS * plan.machine.ranks) / 3600


def gib(size: int) -> str:
    return f"{size / GIB:.1f}"
