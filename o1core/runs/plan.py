"""What fits: where a run computes, the slots and micro-batches that it gets there, and what would help where it is too large.

`o1core plan` prints a plan, and a run makes one before its first step. The bytes are footprint.py's. Slots concern sampling
alone and micro-batches training alone, so that each is the most that fits. A run that cannot fit is refused with the flags
that would make it fit, tried from the one that costs least. Times are stated rates times counted operations, for an idea of
the order.
"""

from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..choices import Offload
from ..distributed import ALONE, Team, gather, neighbours, processes
from ..errors import UserError
from ..model import ModelConfig
from ..recipe import flag, most_micro_tokens
from ..report import Cell, Column, Table
from ..rollout import MOST_SLOTS, fit_cache, free_memory
from ..training import check_installed
from .footprint import (
    Machine,
    Phase,
    Workload,
    active,
    cache_config,
    count_weights,
    footprint,
    kind_of_cache,
    sample_phase,
)

GIB = 1 << 30
OF_MACHINE = ("tensor_parallel", "offload")
FRAGMENTS = 1.4  # what a process may hold on a CPU, as a multiple of what is alive, where freed memory is kept
GPU_FLOPS, GPU_BANDWIDTH = 1.25e14, 1.4e12  # 40 % of an A800's bf16 rate, 70 % of the bytes a second of its memory


@dataclass(frozen=True)
class Resources:
    """device; slots: completions decoded at once (None: as many as fit into half of the free memory); pages: of a paged KV
    cache, for all of them (None: what half of the free memory holds); tracker: one of training.TRACKERS; team: the ranks
    that share a model to sample from; offload: what waits in the host's memory meanwhile. Nothing here may change a result,
    only its speed."""

    device: torch.device
    slots: int | None = None
    tracker: str | None = None
    team: Team = ALONE
    offload: Offload = "none"
    pages: int | None = None

    def __post_init__(self) -> None:
        if self.tracker is not None:
            check_installed(self.tracker)

    def machine(self) -> Machine:
        """All ranks of the run call this. Processes on a CPU share its memory; the rank that has least decides."""
        cuda = self.device.type == "cuda"
        free = min(gather("the memory", free_memory(self.device) // (1 if cuda else neighbours())))
        return Machine(processes(), cuda, self.team.members, self.offload, free)


@dataclass(frozen=True)
class Plan:
    """A workload on a machine: completions decoded at once, pages of the KV cache where it has pages, tokens a micro-batch,
    and the phases' bytes a rank."""

    config: ModelConfig
    workload: Workload
    machine: Machine
    slots: int
    pages: int | None
    micro_tokens: int
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self.machine.memory

    @property
    def tight(self) -> bool:
        """Whether it fits only without fragments."""
        return FRAGMENTS * self.peak.total > self.machine.memory


def plan_run(config: ModelConfig, workload: Workload, machine: Machine, slots: int | None = None) -> Plan:
    """The most slots, where they are not given, and tokens a micro-batch, where the recipe names none, that fit, on a CPU
    with the fragments of freed memory. config: its dtype is the one that computes.

    The KV cache takes what training leaves, and half of the memory at most; with pages it takes that much whatever the slots
    are. Slots are never more than the completions that are asked for.
    """
    one = sample_phase(config, workload, machine, 1)
    without = one.total - one.parts["KV cache"]
    room, pages = max(0, min(machine.memory - without, machine.memory // 2)), None
    if kind_of_cache(config, machine) == "pages":
        longest, own = workload.row(config), cache_config(config, machine)
        slots, pages = fit_cache("pages", own, longest, config.dtype, room, workload.completions, slots)
    elif slots is None:
        most = range(1, 1 + min(MOST_SLOTS, share(workload.completions, machine)))
        slots = max(1, bisect(most, without + room, key=lambda n: sample_phase(config, workload, machine, n).total))
    asked = workload.recipe.execution.micro_tokens
    least = workload.packed(1, workload.pair)
    largest = most_micro_tokens(machine.cuda)
    largest = largest if machine.cuda else max(largest, least)
    for micro_tokens in [asked] if asked else halves(largest, least):
        phases = footprint(config, workload, machine, slots, micro_tokens, pages)
        if max(phase.total for phase in phases[1:] or phases) <= machine.memory / (1 if machine.cuda else FRAGMENTS):
            break
    return Plan(config, workload, machine, slots, pages, micro_tokens, phases)


def share(completions: int, machine: Machine) -> int:
    """Of completions, those of one team of ranks."""
    return -(-completions // (machine.ranks // machine.tensor_parallel))


def halves(most: int, least: int) -> Iterator[int]:
    """most, its half and so on, down to `least`."""
    yield most
    while (most := most // 2) >= least:
        yield most


def proposals(plan: Plan) -> Iterator[tuple[dict[str, Any], Plan]]:
    """(changed settings, the plan with them) of changes that make it fit, from the one that costs least. The settings
    tensor_parallel and offload are the machine's."""
    recipe = plan.workload.recipe
    for change in changes(plan):
        settings = {name: value for name, value in change.items() if recipe.to_json().get(name) != value}
        of_recipe = {name: value for name, value in settings.items() if name not in OF_MACHINE}
        machine = replace(plan.machine, **{name: settings[name] for name in OF_MACHINE if name in settings})
        workload = replace(plan.workload, recipe=recipe.replace(**of_recipe | {"micro_tokens": None}))
        found = plan_run(plan.config, workload, machine)
        asked = recipe.execution.micro_tokens
        if asked and found.micro_tokens < asked:
            settings["micro_tokens"] = found.micro_tokens
        if settings and found.fits:
            yield settings, found


def changes(plan: Plan) -> Iterator[dict[str, Any]]:
    """Settings to try, from the one that costs least: time, then what is trained. The micro-batch is what fits then."""
    machine, recipe = plan.machine, plan.workload.recipe
    offloads: list[dict[str, Any]] = [{"offload": "moments"}, {"offload": "optimiser"}] if machine.cuda else []
    teams: list[dict[str, Any]] = [
        {"tensor_parallel": n} for n in (2, 4, 8) if machine.ranks % n == 0 and plan.config.num_kv_heads % n == 0
    ]
    most = offloads[-1] if offloads else {}
    yield {}
    yield from offloads
    for room in [{}, *offloads, *teams, *(most | team for team in teams)]:
        yield {"checkpointing": True} | room
    now = recipe.optimiser.train_last_layers or plan.config.num_layers
    smaller: list[dict[str, Any]] = [{"optimiser": "adam-mini"}]
    if recipe.optimiser.lora_rank is None:
        smaller += [{"train_last_layers": max(1, now * part // 4)} for part in (3, 2, 1)]
        smaller += [{"lora_rank": 32, "train_last_layers": None}]
    for part in smaller:
        yield from (part | {"checkpointing": True} | room for room in ({}, most | (teams[-1] if teams else {})))


def as_flags(settings: dict[str, Any]) -> str:
    """As they are typed; a setting that is None is "none"."""
    words = {name: "none" if value is None else str(value) for name, value in settings.items()}
    return " ".join(flag(name) if settings[name] is True else f"{flag(name)} {words[name]}" for name in settings)


def check_fits(plan: Plan) -> None:
    """Raise UserError, with flags that would make it fit, where the plan needs more memory than there is."""
    if plan.fits:
        return
    peak = plan.peak
    parts = sorted(peak.parts.items(), key=lambda part: -part[1])[:2]
    largest = " and ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
    need = f"needs {peak.total / GIB:.1f} GiB ({largest}) and {plan.machine.memory / GIB:.1f} are free"
    # What is proposed is a smaller way to train.
    found = next(proposals(plan), None) if plan.workload.trains else None
    if found is None:
        raise UserError(f"memory: {peak.name} {need}; use a smaller model, or more GPUs by torchrun")
    raise UserError(f"memory: {peak.name} {need}; {as_flags(found[0])} would fit")


def plan_line(plan: Plan) -> str:
    """What a run says of its plan at its start; `o1core plan` has the parts."""
    needs = ", ".join(f"{in_units(phase.total)} to {phase.name}" for phase in plan.phases)
    of = f"{in_units(plan.machine.memory)} free{' a process' if plan.machine.ranks > 1 else ''}"
    return f"memory: {needs}, of {of}; {', '.join(chosen(plan))}"


def chosen(plan: Plan) -> list[str]:
    """What follows from the plan: "36 slots" or "256 slots on 11,000 pages", "4,192 tokens a micro-batch"."""
    found = [f"{plan.slots} slots" + (f" on {plan.pages:,} pages" if plan.pages is not None else "")]
    if plan.workload.trains:
        tokens, _ = plan.workload.micro_batch(plan.machine.ranks, plan.micro_tokens)
        found.append(f"{tokens:,} tokens a micro-batch")
    return found


def plan_table(plan: Plan) -> Table:
    """GiB a rank (a GPU has one), a row for each part and a column for each phase."""
    names = list(dict.fromkeys(name for phase in plan.phases for name, size in phase.parts.items() if size))
    rows = [
        [Cell(name), *(Cell(gib(phase.parts[name]) if name in phase.parts else "") for phase in plan.phases)]
        for name in names
    ]
    rows.append([Cell("all"), *(Cell(gib(phase.total)) for phase in plan.phases)])
    counts = count_weights(plan.config, plan.workload.recipe.optimiser)
    place = "on each GPU" if plan.machine.cuda else "of main memory"
    note = (
        f"GiB {place}, of {gib(plan.machine.memory)}; {counts.trained / 1e9:.2f} B weights trained; "
        f"{'; '.join(chosen(plan))}. Prompts of up to {plan.workload.prompt:,} tokens. "
    )
    if plan.fits:
        if plan.machine.cuda:
            sampling, update = hours(plan)
            note += f"A round takes about {sampling:.1f} h to sample and {update:.1f} h to train on GPUs like an A800. "
        note += "It fits."
    else:
        found = [as_flags(settings) for settings in least_changes(plan)]
        note += "It does not fit. "
        note += f"These would: {'; '.join(found)}." if found else "Nothing proposed here would."
    columns = [Column("GiB", label=True), *(Column(phase.name) for phase in plan.phases)]
    return Table("Memory", columns, rows, note)


def least_changes(plan: Plan) -> list[dict[str, Any]]:
    """Proposals without those that change more than an earlier one does."""
    kept: list[dict[str, Any]] = []
    for settings, _ in proposals(plan):
        if not any(earlier.keys() <= settings.keys() for earlier in kept):
            kept.append(settings)
    return kept


def in_units(size: int) -> str:
    """ "3.4 GiB" or "12.3 MiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.1f} MiB"


def hours(plan: Plan) -> tuple[float, float]:
    """Hours of a round's sampling and training, where completions are half as long as they may be: decoding reads the
    weights and half of the cache for each token of all slots, an update multiplies those that compute a token at GPU_FLOPS."""
    recipe, counts = plan.workload.recipe, count_weights(plan.config, plan.workload.recipe.optimiser)
    weights = counts.trained * (not counts.adapters) + counts.frozen
    problems, length = recipe.selection.problems or 1000, recipe.sampling.max_new_tokens / 2
    tokens = problems * recipe.sampling.samples * length
    read = plan.config.dtype.itemsize * weights + plan.phases[0].parts["KV cache"] / 2
    teams = plan.machine.ranks // plan.machine.tensor_parallel
    sampling = tokens / (plan.slots * teams) * read / plan.machine.tensor_parallel / GPU_BANDWIDTH
    trained = problems * recipe.objective.picked * min(length, recipe.objective.cutoff) * recipe.optimiser.epochs
    passes = 2 + 2 * (1 + recipe.execution.checkpointing) + 2 * counts.trained / weights
    return sampling / 3600, trained * active(plan.config) * passes / (GPU_FLOPS * plan.machine.ranks) / 3600


def gib(size: int) -> str:
    return f"{size / GIB:.1f}"
