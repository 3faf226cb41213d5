"""One round of training: what is picked of its rollouts, its reference log-probs and teacher, and its optimiser steps."""

import json
import logging
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..distributed import any_rank, is_lead, meet, once
from ..errors import UserError
from ..interrupts import deferred
from ..recipe import Recipe
from ..rollout import free_memory
from ..run_folder import RunFolder
from ..seeds import seed_of
from ..types import Example, Group, lengths_and_verdicts
from .memory import RewardMemory
from .picking import Picked, pick_examples, remember
from .reference import read_reference, save_reference
from .state import Progress, save_state
from .step import Updater, learning_rate, reference_logprobs
from .teacher import Teacher, open_teacher
from .tracker import Send

log = logging.getLogger(__name__)


def train_round(
    groups: list[Group],
    prompts: dict[str, Tensor] | None,
    recipe: Recipe,
    run: RunFolder,
    updater: Updater,
    progress: Progress,
    send: Send,
    begun: int,
) -> Progress:
    """Train on a round's rollouts from progress.step on. Returns the progress at the start of the next round.

    prompts: what CRISP's teacher is asked, by problem; None without a teacher. begun: how many tokens of each completion
    are an --opening, which was not sampled.
    """
    round_index = progress.round_index
    picked = pick_round(groups, recipe, round_index, progress.memory)
    reference = load_reference(run.reference(round_index), updater, picked.examples, progress)
    teacher = None
    if prompts is not None:
        teacher = open_teacher(run.teacher(round_index), updater, picked.examples, prompts)
    summary = summarise(groups, picked, reference, begun)
    log.info("round %d: %s", round_index + 1, ", ".join(f"{k} {v:.4g}" for k, v in summary.items()))
    steps = Round(run, updater, recipe, picked.examples, reference, summary, send, teacher)
    return replace(steps.train(progress), memory=remember(progress.memory, groups, recipe.reward))


def pick_round(groups: list[Group], recipe: Recipe, round_index: int, memory: RewardMemory) -> Picked:
    """What a round trains on. memory: of the rounds before. Raises UserError where nothing is left."""
    seed = seed_of(recipe.seed, round_index, "pick")
    picked = pick_examples(groups, recipe.reward, recipe.objective, seed, memory)
    if not picked.examples:
        raise UserError(
            f"round {round_index + 1}: no completion may be trained on ({picked.over_cutoff} over --cutoff, "
            f"{picked.masked} truncated and masked, {picked.uniform} of {len(groups)} problems with "
            "nothing to tell their samples apart)"
        )
    return picked


@dataclass(frozen=True)
class Round:
    """The optimiser steps of one round. summary: what `summarise` returned, for the log; send: to a tracker; teacher: of
    CRISP alone."""

    run: RunFolder
    updater: Updater
    recipe: Recipe
    examples: list[Example]
    reference: list[Tensor]
    summary: dict[str, float]
    send: Send
    teacher: Teacher | None = None

    def train(self, progress: Progress) -> Progress:
        """Run the steps from progress.step on. Returns the progress at the start of the next round, with the memory of
        this one."""
        settings, save_every = self.recipe.deciding(), self.recipe.execution.save_every
        batches = list(self.batches(progress.round_index))
        label = f"train, round {progress.round_index + 1} of {self.recipe.sampling.rounds}"
        todo = tqdm(batches[progress.step :], desc=label, unit="step", initial=progress.step, total=len(batches))
        log_file = self.run.log if is_lead() else os.devnull
        with open(log_file, "a", encoding="utf-8", buffering=1) as lines:
            for batch in todo:
                with deferred() as asked_to_stop:
                    line = self.step(batch, progress, len(batches))
                    progress = replace(progress, step=progress.step + 1, steps=progress.steps + 1)
                    lines.write(json.dumps(line) + "\n")
                    self.send(line["step"], {name: value for name, value in line.items() if name != "step"})
                    due = progress.steps % save_every == 0 or any_rank(asked_to_stop())
                    if due and progress.step < len(batches):
                        save_state(self.run, self.updater, progress, settings)
                device = self.updater.model.embed.device
                memory = f"peak {line['peak_memory_mib']:.0f} MiB, free {free_memory(device) >> 20} MiB"
                masked = f", {line['masked_tokens']:.0f} tokens masked" if "masked_tokens" in line else ""
                todo.set_postfix_str(memory + masked)
        return replace(progress, round_index=progress.round_index + 1, step=0)

    def batches(self, round_index: int) -> Iterator[list[int]]:
        """Indices of examples per step: every epoch in an order of its own, units kept whole."""
        size, settings = self.updater.objective.unit_size, self.recipe.optimiser
        for epoch in range(settings.epochs):
            generator = torch.Generator().manual_seed(seed_of(self.recipe.seed, round_index, epoch, "order"))
            order = torch.randperm(len(self.examples) // size, generator=generator)
            for part in order.split(settings.batch):
                yield [size * unit + i for unit in part.tolist() for i in range(size)]

    def step(self, batch: list[int], progress: Progress, steps_in_round: int) -> dict[str, Any]:
        """One optimiser step; returns its line of the log."""
        start = time.perf_counter()
        rounds, done = self.recipe.sampling.rounds, progress.round_index + (progress.step + 0.5) / steps_in_round
        # Half a step on: neither the first step of a warm-up nor the last of a cosine is spent on a rate of zero.
        lr = learning_rate(done / rounds, self.recipe.optimiser)
        chosen = [self.examples[i] for i in batch]
        taught = None if self.teacher is None else self.teacher.taught(batch)
        metrics = self.updater.step(chosen, [self.reference[i] for i in batch], lr, taught)
        seconds = time.perf_counter() - start
        return {
            "step": progress.steps + 1,
            "round": progress.round_index,
            **metrics,
            "lr": lr,
            "reward": sum(e.reward for e in chosen) / len(chosen),
            "mean_length": sum(len(e.ids) for e in chosen) / len(chosen),
            "truncated": sum(e.truncated for e in chosen) / len(chosen),
            "round_accuracy": self.summary["accuracy"],
            "round_mean_tokens": self.summary["mean_tokens"],
            "reference_mean": self.summary["logprob_mean"],
            "reference_max": self.summary["logprob_max"],
            "tokens_per_second": sum(e.tokens for e in chosen) / seconds,
            "peak_memory_mib": peak_memory(self.updater.model.embed.device),
        }


def load_reference(path: Path, updater: Updater, examples: list[Example], progress: Progress) -> list[Tensor]:
    """Reference log-probs of the examples: read where they are there, else computed, before a round's first step."""
    reference = read_reference(path, examples)
    meet("the reference")  # no rank writes before all have read
    if reference is None and progress.step:
        raise UserError(
            f"{path}: belongs to other rollouts than are there; delete it, and the same command trains the "
            "round again from its start"
        )
    if reference is None:
        reference = reference_logprobs(updater.model, updater.vocab, examples, updater.execution.micro_tokens)
        computed = reference
        once("the reference", lambda: save_reference(path, examples, computed))
    return reference


def summarise(groups: list[Group], picked: Picked, reference: list[Tensor], begun: int) -> dict[str, float]:
    """What a round's rollouts look like, and what is trained on of them.

    Fractions (accuracy, truncated), tokens (mean_tokens), counts, and how far the trainer's log-probs are from the
    sampler's, in nats per sampled token: mean and max of the absolute difference (logprob_mean, logprob_max). The first
    `begun` tokens of each completion were not sampled.
    """
    lengths, correct = lengths_and_verdicts(groups)
    truncated = [s.finish_reason == "length" for g in groups for s in g.samples]
    gap = torch.cat([(r - e.logprobs)[begun:] for r, e in zip(reference, picked.examples)]).abs()
    return {
        "accuracy": correct.float().mean().item(),
        "mean_tokens": lengths.float().mean().item(),
        "truncated": sum(truncated) / len(truncated),
        "logprob_mean": gap.mean().item(),
        "logprob_max": gap.max().item(),
        "picked": len(picked.examples),
        "over_cutoff": picked.over_cutoff,
        "masked": picked.masked,
        "uniform": picked.uniform,
    }


def peak_memory(device: torch.device) -> float:
    """MiB: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # getrusage's peak is at first that of the process which started this one
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
