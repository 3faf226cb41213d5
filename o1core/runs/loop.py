"""The training of a run: rounds of sample, score, pick and update; one log line per step, and resumable to the bit.

Read `train` first. run_folder.py names what a run leaves on disk. The reference log-probs of a round are those of the
policy that sampled it, by the trainer's own forward. They are computed before the round's first step, because from then
on that policy is gone, and kept beside the rollouts.
"""

import logging
import resource
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..choices import Offload
from ..distributed import deferred
from ..errors import UserError
from ..model import Tokenizer, adapted, save_adapter
from ..policy import Policy, Trainer, opening_ids, warn_of_cuts
from ..problems import instruct
from ..recipe import Recipe
from ..rewards import State
from ..rollout import problems_held, read_groups, write_samples
from ..run_folder import RunFolder
from ..seeds import seed_of
from ..training import (
    Picked,
    Progress,
    Rollouts,
    Scored,
    Send,
    durable,
    forget_teachers,
    has_states,
    kept_reference,
    learning_rate,
    load_state,
    log_line,
    objective_of,
    open_log,
    open_teacher,
    rewind,
    save_state,
    send_nothing,
    trim_log,
)
from ..types import Example, Problem
from .validation import Validation

log = logging.getLogger(__name__)


def train(
    policy: Policy,
    problems: list[Problem],
    recipe: Recipe,
    run: RunFolder,
    resume: bool,
    send: Send = send_nothing,
    offload: Offload = "none",
    validation: list[Problem] | None = None,
) -> Path:
    """Prune a policy on problems; returns the folder of the pruned checkpoint, which the policy then is, unless --keep best
    has kept an earlier round's.

    With resume, training continues from the newest state in `run`; on a CPU the weights end bitwise as if it had never
    stopped. send: receives the log's lines too; offload: what waits in the host's memory while rollouts are sampled;
    validation: problems to evaluate on between rounds.
    Raises UserError where `run` holds a state and resume is off, or where a loss or gradient is not finite (the newest
    state stays).
    """
    objective_of(recipe.objective)  # refuses "none"
    if has_states(run) and not resume:
        raise UserError(
            f"{run.path}: holds the state of a training run; continue it with --resume, or choose another --out"
        )
    trainer = Trainer(policy, recipe, offload=offload)
    settings = recipe.deciding()
    progress = load_state(run, trainer.updater, settings) or Progress()
    # Percentiles are those of the first round's rollouts, so later rounds need these even before their first step.
    to_check = progress.step or (recipe.selection.percentiles is not None and progress.round_index > 0)
    whole = not to_check or is_complete(run, problems, recipe, progress.round_index)
    if progress.step and not (whole and progress.same_batches):
        progress = restart_round(run, trainer, settings, progress.round_index)
    trim_log(run.log, progress.steps)
    if recipe.selection.percentiles is not None:  # after the first round its rollouts exist, and nothing is sampled
        between = sample_round(policy, problems, recipe, run, 0).between_percentiles(recipe.selection.percentiles)
        ids = {group.problem for group in between.groups}
        problems = [problem for problem in problems if problem.id in ids]
    watch = Validation(policy, validation, recipe, run, send) if validation else None
    with durable(trainer.updater):
        for index in range(progress.round_index, recipe.sampling.rounds):
            if progress.step == 0:
                save_state(run, trainer.updater, progress, settings)  # what the round is sampled from
                forget_teachers(run, index)
                policy.steps = progress.steps
                if watch and watch.measure(index):
                    break
            policy.steps = progress.steps - progress.step  # its rollouts were, or are, sampled after so many
            rollouts = sample_round(policy, problems, recipe, run, index)
            policy.steps = progress.steps
            scored = score_round(rollouts, recipe, progress)
            if progress.step == 0:
                write_samples(run.samples(index), rollouts.groups, problems, policy.tokenizer, scored.reward)
            picked = pick_round(scored, recipe, index)
            compute = partial(policy.reference, picked.examples)
            kept = kept_reference(run.reference(index), picked.examples, compute, progress.step == 0)
            picked = picked.with_reference(kept)
            if recipe.objective.kind == "crisp":
                picked = taught(picked, policy, trainer, problems, recipe, run.teacher(index))
            summary = summarise(
                rollouts, picked, len(opening_ids(policy.tokenizer, recipe.prompt.opening, rollouts.limit))
            )
            log.info("round %d: %s", index + 1, ", ".join(f"{k} {v:.4g}" for k, v in summary.items()))
            progress = Round(run, trainer, recipe, picked, summary, scored.state, send).train(progress)
        else:
            save_state(run, trainer.updater, progress, settings)
            policy.steps = progress.steps
            if watch:
                watch.measure(recipe.sampling.rounds)
    forget_teachers(run, recipe.sampling.rounds)
    if watch and recipe.evaluation.keep == "best":
        watch.export()
    else:
        export(policy, run)
    trainer.finish()
    policy.steps = 0  # it is the pruned checkpoint now
    return run.pruned


def sample_round(policy: Policy, problems: list[Problem], recipe: Recipe, run: RunFolder, index: int) -> Rollouts:
    """The rollouts of a round, sampled or read back."""
    label = f"{recipe.phase(index, 0)} sample, round {index + 1} of {recipe.sampling.rounds}"
    rollouts = policy.sample(problems, recipe.round_params(index), run.rollouts(index), label, recipe.prompt.opening)
    warn_of_cuts(label, rollouts.truncated.float().mean().item(), rollouts.limit)
    return rollouts


def score_round(rollouts: Rollouts, recipe: Recipe, progress: Progress) -> Scored:
    """The round's rollouts with the recipe's reward. The state that it returns counts from the next round on."""
    settings = {name: value for name, value in vars(recipe.reward).items() if name != "kind"}
    return rollouts.score(recipe.reward.kind, progress.reward, **settings)


def pick_round(scored: Scored, recipe: Recipe, index: int) -> Picked:
    """What a round trains on. Raises UserError where nothing is left."""
    seed = seed_of(recipe.seed, index, "pick")
    picked = scored.pick(recipe.objective, seed, mask_truncated=recipe.reward.truncated == "mask")
    if not picked.examples:
        raise UserError(
            f"round {index + 1}: no completion may be trained on ({picked.over_cutoff} over --cutoff, "
            f"{picked.masked} truncated and masked, {picked.uniform} of {len(scored.rollouts.groups)} problems whose samples "
            "all earn the same reward)"
        )
    return picked


def taught(
    picked: Picked, policy: Policy, trainer: Trainer, problems: list[Problem], recipe: Recipe, folder: Path
) -> Picked:
    """The picked examples with CRISP's teacher: the weights of now, asked to be concise."""
    prompts = teacher_prompts(policy.tokenizer, problems, recipe.objective.teacher_instruction)
    teacher = open_teacher(folder, trainer.updater, picked.examples, prompts)
    trainer.updater.teacher_head = teacher.head
    return replace(picked, examples=teacher.teach(picked.examples))


def teacher_prompts(tokenizer: Tokenizer, problems: list[Problem], instruction: str) -> dict[str, Tensor]:
    """problem id: int32 ids of the prompt that the teacher is asked."""
    asked = {p.id: instruct(p, instruction, 0) for p in problems}
    return {name: torch.tensor(tokenizer.prompt(p.question, p.system), dtype=torch.int32) for name, p in asked.items()}


@dataclass(frozen=True)
class Round:
    """The optimiser steps of one round. summary: what `summarise` returned, for the log; reward: the state for the next
    round's; send: to a tracker."""

    run: RunFolder
    trainer: Trainer
    recipe: Recipe
    picked: Picked
    summary: dict[str, float]
    reward: State
    send: Send

    def train(self, progress: Progress) -> Progress:
        """Run the steps from progress.step on. Returns the progress at the start of the next round."""
        settings, save_every = self.recipe.deciding(), self.recipe.execution.save_every
        batches = self.batches(progress.round_index)
        index, rounds = progress.round_index, self.recipe.sampling.rounds
        label = f"{self.recipe.phase(index, 1)} train, round {index + 1} of {rounds}"
        todo = tqdm(batches[progress.step :], desc=label, unit="step", initial=progress.step, total=len(batches))
        with open_log(self.run.log) as lines:
            for batch in todo:
                with deferred() as asked_to_stop:
                    line = self.step(batch, progress, len(batches))
                    progress = replace(progress, step=progress.step + 1, steps=progress.steps + 1)
                    if progress.step == len(batches):
                        progress = Progress(progress.round_index + 1, 0, progress.steps, self.reward)
                    lines.write(log_line(line))
                    self.send(line["step"], {name: value for name, value in line.items() if name != "step"})
                    if progress.steps % save_every == 0 or asked_to_stop():
                        save_state(self.run, self.trainer.updater, progress, settings)
                shown = f"reward {line['reward']:.3g}, {line['mean_length']:.0f} tokens"
                masked = f", {line['masked_tokens']:.0f} masked" if "masked_tokens" in line else ""
                todo.set_postfix_str(f"{shown}{masked}, peak {line['peak_memory_mib']:.0f} MiB")
        return progress

    def batches(self, index: int) -> list[list[Example]]:
        """The examples of each step: every epoch in an order of its own."""
        of = self.recipe.optimiser
        seeds = [seed_of(self.recipe.seed, index, epoch, "order") for epoch in range(of.epochs)]
        return [batch for seed in seeds for batch in self.picked.split(of.batch, seed)]

    def step(self, batch: list[Example], progress: Progress, steps_in_round: int) -> dict[str, Any]:
        """One optimiser step; returns its line of the log."""
        start = time.perf_counter()
        rounds, done = self.recipe.sampling.rounds, progress.round_index + (progress.step + 0.5) / steps_in_round
        # Half a step on: neither the first step of a warm-up nor the last of a cosine is spent on a rate of zero.
        lr = learning_rate(done / rounds, self.recipe.optimiser)
        metrics = self.trainer.step(batch, lr)
        seconds = time.perf_counter() - start
        return {
            "step": progress.steps + 1,
            "round": progress.round_index,
            **metrics,
            "lr": lr,
            "reward": sum(e.reward for e in batch) / len(batch),
            "mean_length": sum(len(e.ids) for e in batch) / len(batch),
            "truncated": sum(e.truncated for e in batch) / len(batch),
            "round_accuracy": self.summary["accuracy"],
            "round_mean_tokens": self.summary["mean_tokens"],
            "reference_mean": self.summary["logprob_mean"],
            "reference_max": self.summary["logprob_max"],
            "tokens_per_second": sum(e.tokens for e in batch) / seconds,
            "peak_memory_mib": peak_memory(self.trainer.policy.model.embed.device),
        }


def summarise(rollouts: Rollouts, picked: Picked, opening_length: int) -> dict[str, float]:
    """What a round's rollouts look like, and what is trained on of them.

    Fractions (accuracy, truncated), tokens (mean_tokens), counts, and how far the trainer's log-probs are from the
    sampler's, in nats per sampled token: mean and max of the absolute difference (logprob_mean, logprob_max). The first
    `opening_length` tokens of each completion were not sampled.
    """
    gap = torch.cat([gap_of(e)[opening_length:] for e in picked.examples]).abs()
    return {
        "accuracy": rollouts.correct.float().mean().item(),
        "mean_tokens": rollouts.lengths.float().mean().item(),
        "truncated": rollouts.truncated.float().mean().item(),
        "logprob_mean": gap.mean().item(),
        "logprob_max": gap.max().item(),
        "picked": len(picked.examples),
        "over_cutoff": picked.over_cutoff,
        "masked": picked.masked,
        "uniform": picked.uniform,
    }


def gap_of(e: Example) -> Tensor:
    assert e.reference is not None
    return e.reference - e.logprobs


def is_complete(run: RunFolder, problems: list[Problem], recipe: Recipe, index: int) -> bool:
    """Whether everything is there that the round's steps so far were trained on: rollouts, reference log-probs, teacher.

    Raises UserError where the first round's rollouts, from which percentiles are taken, are lost in a later one.
    """

    def act() -> bool:
        wanted = {problem.id for problem in problems}
        if recipe.selection.percentiles is not None:
            by_id = {group.problem: group for group in read_groups(run.rollouts(0))}
            everything = [by_id[p.id] for p in problems if p.id in by_id]  # in the order in which ties are broken
            if len(everything) == len(wanted):
                kept = Rollouts(everything, 0).between_percentiles(recipe.selection.percentiles)
                wanted = {group.problem for group in kept.groups}
            elif index > 0:
                raise UserError(
                    f"{run.rollouts(0)}: holds {len(everything)} of {len(wanted)} problems, and --percentiles needs all; "
                    "restore its files, or choose another --out"
                )
        has_teacher = recipe.objective.kind != "crisp" or run.teacher(index).exists()
        return wanted <= problems_held(run.rollouts(index)) and run.reference(index).exists() and has_teacher

    return run.alone(act)


def restart_round(run: RunFolder, trainer: Trainer, settings: dict[str, Any], index: int) -> Progress:
    """Go back to the state that the round started from, since the policy has moved since and new rollouts of it would
    not belong to the old ones. Raises UserError where that state is lost too."""
    if not rewind(run):
        raise UserError(
            f"{run.round(index)}: is not whole, or an older version began it, and the state that it started from is lost; "
            "restore its files, or choose another --out"
        )
    log.warning(
        "%s: is not whole, or an older version began it; the round is trained again from its start", run.round(index)
    )
    run.drop_reference(index)
    forget_teachers(run, index + 1)
    progress = load_state(run, trainer.updater, settings)
    assert progress is not None
    return progress


def export(policy: Policy, run: RunFolder) -> None:
    """Write the pruned checkpoint, adapters merged, unless it is there and whole. Adapters are written before it, alone."""
    if adapted(policy.trained):
        run.write_adapter(lambda folder: save_adapter(policy.trained, policy.folder, folder))
    run.write_pruned(policy.save)


def peak_memory(device: torch.device) -> float:
    """MiB: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # getrusage's peak is at first that of the process which started this one
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
