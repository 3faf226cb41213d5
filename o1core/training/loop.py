"""The training run: rounds of sample, reward, reference, update; logged a line a step, and resumable to the bit.

A run's folder while it trains:

    round-00/rollouts/               what the policy sampled (store.py)
    round-00/reference.safetensors   log-probs of what was picked, by the trainer's own forward before the first step
    state-*/                         the newest training state (state.py)
    log.jsonl                        one JSON line a step
    pruned/                          the result, a Hugging Face folder
"""

import json
import logging
import resource
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from ..files import write_atomic
from ..model import Tokenizer, save_checkpoint
from ..problems import Problem
from ..recipe.recipe import Recipe
from ..rollout import Engine, Group, SamplingParams, lengths_and_verdicts, sample_problems
from ..seeds import seed_of
from .picking import Example, between_percentiles, pick_examples
from .state import Progress, load_state, save_state, states
from .step import Updater, learning_rate, reference_logprobs

log = logging.getLogger(__name__)


def sample_round(
    engine: Engine, tokenizer: Tokenizer, problems: list[Problem], recipe: Recipe, run: Path, round: int
) -> list[Group]:
    """The rollouts of a round, sampled from the engine's model or read back. Each round has random numbers of its own."""
    params = SamplingParams(
        recipe.samples,
        recipe.temperature,
        recipe.top_p,
        recipe.top_k,
        recipe.max_new_tokens,
        seed_of(recipe.seed, "sample", round),
    )
    label = f"sample, round {round + 1} of {recipe.rounds}"
    return sample_problems(engine, tokenizer, problems, params, run / f"round-{round:02d}" / "rollouts", label)


def train(
    engine: Engine, tokenizer: Tokenizer, source: Path, problems: list[Problem], recipe: Recipe, run: Path, resume: bool
) -> Path:
    """Prune the engine's model, loaded from `source`, on `problems`; returns the folder of the pruned checkpoint.

    With resume, goes on from the newest state in `run`; on a CPU the weights end bitwise as if it had never stopped.
    Raises UserError where `run` holds a state and resume is off, or where a loss or gradient is not finite (the newest
    state stays).
    """
    if recipe.objective == "none":
        raise UserError("--objective none: there is nothing to train; `o1core prune` evaluates its instruction")
    if states(run) and not resume:
        raise UserError(f"{run}: holds the state of a training run; go on with --resume, or choose another --out")
    updater = Updater(engine.model, tokenizer.size, recipe)
    progress = load_state(run, updater) or Progress()
    trim_log(run / "log.jsonl", progress.steps)
    if recipe.percentiles is not None:  # after the first round its rollouts are there, and nothing is sampled
        everything = sample_round(engine, tokenizer, problems, recipe, run, 0)
        kept = {group.problem for group in between_percentiles(everything, recipe.percentiles)}
        problems = [problem for problem in problems if problem.id in kept]
    for round in range(progress.round, recipe.rounds):
        if progress.step == 0:
            save_state(run, updater, progress)  # what the round is sampled from
        groups = sample_round(engine, tokenizer, problems, recipe, run, round)
        picked = pick_examples(groups, recipe, round)
        if not picked.examples:
            raise UserError(
                f"round {round + 1}: no completion may be trained on ({picked.over_cutoff} over --cutoff, "
                f"{picked.masked} truncated and masked, {picked.uniform} of {len(groups)} problems with "
                "nothing to tell their samples apart)"
            )
        reference = load_reference(run / f"round-{round:02d}", updater, picked.examples, progress)
        summary = describe(groups) | distance(picked.examples, reference)
        summary |= {"picked": len(picked.examples), "over_cutoff": picked.over_cutoff, "masked": picked.masked}
        summary |= {"uniform": picked.uniform}
        log.info("round %d: %s", round + 1, ", ".join(f"{k} {v:.4g}" for k, v in summary.items()))
        progress = train_round(run, updater, picked.examples, reference, progress, summary)
    save_state(run, updater, progress)
    if not (run / "pruned").exists():
        save_checkpoint(engine.model, source, run / "pruned")
    return run / "pruned"


def train_round(
    run: Path, updater: Updater, examples: list[Example], reference: list[Tensor], progress: Progress, summary: dict
) -> Progress:
    """The optimiser steps of one round, from progress.step on. Returns the progress at the start of the next."""
    recipe = updater.recipe
    size = recipe.together
    batches = [
        [size * unit + i for unit in batch for i in range(size)]
        for epoch in range(recipe.epochs)
        for batch in shuffled(len(examples) // size, recipe, progress.round, epoch)
    ]
    label = f"train, round {progress.round + 1} of {recipe.rounds}"
    with open(run / "log.jsonl", "a", encoding="utf-8", buffering=1) as lines:
        for batch in tqdm(batches[progress.step :], desc=label, unit="step", initial=progress.step, total=len(batches)):
            start = time.perf_counter()
            chosen = [examples[i] for i in batch]
            # Half a step on: neither the first step of a warm-up nor the last of a cosine is spent on a rate of zero.
            lr = learning_rate((progress.round + (progress.step + 0.5) / len(batches)) / recipe.rounds, recipe)
            metrics = updater.step(chosen, [reference[i] for i in batch], lr)
            progress = replace(progress, step=progress.step + 1, steps=progress.steps + 1)
            tokens = sum(e.tokens for e in chosen)
            line = {"step": progress.steps, "round": progress.round, **metrics, "lr": lr}
            line["reward"] = sum(e.reward for e in chosen) / len(chosen)
            line["mean_length"] = sum(len(e.ids) for e in chosen) / len(chosen)
            line["truncated"] = sum(e.truncated for e in chosen) / len(chosen)
            line |= {f"round_{name}": summary[name] for name in ("accuracy", "mean_tokens")}
            line |= {f"reference_{name}": summary[f"logprob_{name}"] for name in ("mean", "max")}
            line["tokens_per_second"] = tokens / (time.perf_counter() - start)
            line["peak_memory_mib"] = peak_memory(updater.model.embed.device)
            lines.write(json.dumps(line) + "\n")
            if progress.steps % recipe.save_every == 0 and progress.step < len(batches):
                save_state(run, updater, progress)
    return Progress(progress.round + 1, 0, progress.steps)


def shuffled(count: int, recipe: Recipe, round: int, epoch: int) -> list[list[int]]:
    """Batches of at most recipe.batch indices below `count`, in an order of this round and epoch alone."""
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, round, epoch, "order"))
    return [part.tolist() for part in torch.randperm(count, generator=generator).split(recipe.batch)]


def load_reference(folder: Path, updater: Updater, examples: list[Example], progress: Progress) -> list[Tensor]:
    """Reference log-probs of the examples: computed before a round's first step, read back after it."""
    path = folder / "reference.safetensors"
    if progress.step == 0:
        reference = reference_logprobs(updater.model, updater.vocab, examples, updater.recipe)
        write_atomic(path, lambda temporary: save_file({"logprobs": torch.cat(reference)}, temporary))
        return reference
    return list(load_file(path)["logprobs"].split([len(e.ids) for e in examples]))


def describe(groups: list[Group]) -> dict[str, float]:
    """What a round's rollouts look like: fractions and tokens."""
    lengths, correct = lengths_and_verdicts(groups)
    truncated = [s.finish_reason == "length" for g in groups for s in g.samples]
    return {
        "accuracy": correct.float().mean().item(),
        "mean_tokens": lengths.float().mean().item(),
        "truncated": sum(truncated) / len(truncated),
    }


def distance(examples: list[Example], reference: list[Tensor]) -> dict[str, float]:
    """How far the trainer's log-probs are from the sampler's, in nats a token: mean and max of the absolute value."""
    gap = torch.cat([r - e.logprobs for r, e in zip(reference, examples)]).abs()
    return {"logprob_mean": gap.mean().item(), "logprob_max": gap.max().item()}


def trim_log(path: Path, steps: int) -> None:
    """Drop the lines of steps that a killed run did and its newest state does not know."""
    if path.exists():
        kept = [line for line in read_log(path) if line["step"] <= steps]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_log(path: Path) -> list[dict]:
    """The lines of a log; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def peak_memory(device: torch.device) -> float:
    """MiB: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
