"""The training run: rounds of sample, reward, reference, update; one log line per step, and resumable to the bit.

run_folder.py names what a run leaves on disk. The reference log-probs of a round are those of the policy that sampled
it, by the trainer's own forward, computed before the round's first step and kept beside the rollouts.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..distributed import Offload, allot_weights, copy_weights, drop_weights, export_checkpoint, once, trained_model
from ..errors import UserError
from ..files import damaged_file, digests, read_record, write_record
from ..model import (
    Tokenizer,
    Transformer,
    adapted,
    add_adapters,
    draw_adapters,
    fold_adapters,
    merged_weights,
    model_fingerprint,
    read_config,
    save_adapter,
)
from ..recipe import OptimiserSettings, Recipe
from ..rollout import Engine, opening_ids, problems_held, read_groups, sample_problems
from ..run_folder import RunFolder
from ..seeds import seed_of
from ..types import Group, Problem
from .log import trim_log
from .objectives import objective_of
from .one_round import train_round
from .picking import between_percentiles
from .state import Progress, durable, load_state, rewind, save_state
from .step import Updater, select_trained
from .teacher import forget_teachers, teacher_prompts
from .tracker import Send, send_nothing

log = logging.getLogger(__name__)


def sample_round(
    engine: Engine, tokenizer: Tokenizer, problems: list[Problem], recipe: Recipe, run: RunFolder, round_index: int
) -> list[Group]:
    """The rollouts of a round, sampled from the engine's model or read back."""
    label = f"sample, round {round_index + 1} of {recipe.sampling.rounds}"
    params = recipe.round_params(round_index)
    with merged_weights(engine.model):
        folder, opening = run.rollouts(round_index), recipe.prompt.opening
        return sample_problems(engine, tokenizer, problems, params, folder, label, opening)


def train(
    engine: Engine,
    tokenizer: Tokenizer,
    source: Path,
    problems: list[Problem],
    recipe: Recipe,
    run: RunFolder,
    resume: bool,
    send: Send = send_nothing,
    offload: Offload = "none",
) -> Path:
    """Prune the engine's model, loaded from `source`, on `problems`; returns the folder of the pruned checkpoint.

    With resume, training continues from the newest state in `run`; on a CPU the weights end bitwise as if it had never
    stopped. send: receives the log's lines too; offload: what waits in the host's memory while rollouts are sampled.
    Raises UserError where `run` holds a state and resume is off, or where a
    loss or gradient is not finite (the newest state stays).
    """
    objective_of(recipe.objective)  # refuses "none"
    if once("the training states", lambda: bool(run.states())) and not resume:
        raise UserError(
            f"{run.path}: holds the state of a training run; continue it with --resume, or choose another --out"
        )
    model = trained_model(engine.model, source, lambda model: select(model, recipe.optimiser))
    draw_adapters(model, seed_of(recipe.seed, "adapters"))
    updater = Updater(model, tokenizer.size, recipe.objective, recipe.optimiser, recipe.execution)
    settings = recipe.deciding()
    progress = load_state(run, updater, settings) or Progress()
    if progress.step and not once(
        "the round's files", lambda: is_complete(run, problems, recipe, progress.round_index)
    ):
        progress = restart_round(run, updater, settings, progress.round_index)
    once("the log", lambda: trim_log(run.log, progress.steps))
    if recipe.selection.percentiles is not None:  # after the first round its rollouts exist, and nothing is sampled
        with sampling(engine, updater, source, offload):
            everything = sample_round(engine, tokenizer, problems, recipe, run, 0)
        kept = {group.problem for group in between_percentiles(everything, recipe.selection.percentiles)}
        problems = [problem for problem in problems if problem.id in kept]
    prompts = None
    if recipe.objective.kind == "crisp":
        prompts = teacher_prompts(tokenizer, problems, recipe.objective.teacher_instruction)
    begun = len(opening_ids(tokenizer, recipe.prompt.opening, recipe.sampling.max_new_tokens))
    with durable(updater):
        for round_index in range(progress.round_index, recipe.sampling.rounds):
            if progress.step == 0:
                save_state(run, updater, progress, settings)  # what the round is sampled from
                once("the teacher", partial(forget_teachers, run, round_index))
            with sampling(engine, updater, source, offload):
                groups = sample_round(engine, tokenizer, problems, recipe, run, round_index)
            progress = train_round(groups, prompts, recipe, run, updater, progress, send, begun)
        save_state(run, updater, progress, settings)
    once("the teacher", lambda: forget_teachers(run, recipe.sampling.rounds))
    export(updater.model, engine.model.embed.dtype, source, run)
    hand_over(updater.model, engine, source)
    return run.pruned


def select(model: Transformer, settings: OptimiserSettings) -> None:
    """Choose the weights that are trained; with --lora-rank, those of adapters that are added here and still undrawn."""
    if settings.lora_rank is not None:
        of = settings
        add_adapters(model, settings.lora_rank, of.lora_alpha, of.lora_targets, of.train_last_layers)
    select_trained(model, settings.train_last_layers)


@contextmanager
def sampling(engine: Engine, updater: Updater, source: Path, offload: Offload) -> Iterator[None]:
    """Inside, the engine's model has the trained weights, and the update leaves room for it; afterwards its memory is given
    back where another one is trained."""
    model = updater.model
    if engine.model is not model:
        hand_over(model, engine, source)
    with updater.resting(offload):
        yield
    if engine.model is not model:
        drop_weights(engine.model)


def hand_over(model: Transformer, engine: Engine, source: Path) -> None:
    """Give the engine's model the trained weights, adapters merged."""
    if engine.model is model:
        fold_adapters(model)
    else:
        allot_weights(engine.model)
        copy_weights(model, read_config(source), engine.model, engine.team)


def is_complete(run: RunFolder, problems: list[Problem], recipe: Recipe, round_index: int) -> bool:
    """Whether everything is there that the round's steps so far were trained on: rollouts, reference log-probs, teacher.

    Raises UserError where the first round's rollouts, from which percentiles are taken, are lost in a later one.
    """
    wanted = {problem.id for problem in problems}
    if recipe.selection.percentiles is not None:
        by_id = {group.problem: group for group in read_groups(run.rollouts(0))}
        everything = [by_id[p.id] for p in problems if p.id in by_id]  # in the order in which ties are broken
        if len(everything) == len(wanted):
            wanted = {group.problem for group in between_percentiles(everything, recipe.selection.percentiles)}
        elif round_index > 0:
            raise UserError(
                f"{run.rollouts(0)}: holds {len(everything)} of {len(wanted)} problems, and --percentiles needs all; "
                "restore its files, or choose another --out"
            )
    taught = recipe.objective.kind != "crisp" or run.teacher(round_index).exists()
    return wanted <= problems_held(run.rollouts(round_index)) and run.reference(round_index).exists() and taught


def restart_round(run: RunFolder, updater: Updater, settings: dict[str, Any], round_index: int) -> Progress:
    """Go back to the state that the round started from, since the policy has moved since and new rollouts of it would
    not belong to the old ones. Raises UserError where that state is lost too."""
    if not once("the training states", lambda: rewind(run)):
        raise UserError(
            f"{run.round(round_index)}: is not whole, and the state that it started from is lost; restore its files, or "
            "choose another --out"
        )
    log.warning("%s: is not whole; the round is trained again from its start", run.round(round_index))
    once("the reference", lambda: run.reference(round_index).unlink(missing_ok=True))
    once("the teacher", lambda: forget_teachers(run, round_index + 1))
    progress = load_state(run, updater, settings)
    assert progress is not None
    return progress


def export(model: Transformer, dtype: torch.dtype, source: Path, run: RunFolder) -> None:
    """Write the pruned checkpoint, adapters merged, and the checksums of its files, unless they are there and intact.
    Adapters are written before it, alone."""
    if adapted(model):
        once("the adapter", lambda: save_adapter(model, source, model_fingerprint(source), run.adapter))
    if once("the pruned checkpoint", lambda: is_intact(run)):
        return
    once("the pruned checkpoint", lambda: shutil.rmtree(run.pruned, ignore_errors=True))
    export_checkpoint(model, source, run.pruned, dtype)
    once("the pruned checkpoint", lambda: write_record(run.pruned_record, {"files": digests(run.pruned)}))


def is_intact(run: RunFolder) -> bool:
    """Whether the pruned checkpoint is there with all of its files as they were written."""
    if not run.pruned.exists() or not run.pruned_record.exists():
        return False
    files = read_record(run.pruned_record).get("files")
    return isinstance(files, dict) and damaged_file(run.pruned, files) is None
