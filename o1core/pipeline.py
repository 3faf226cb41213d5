"""A run from end to end: evaluate, sample, train, evaluate again, report; each step skipped where its result is there.

A run lives in one folder. settings.json says what it was asked for and on what; a folder is never shared by two runs:

    settings.json   base/   round-*/   state-*/   log.jsonl   pruned/   after/   result.json   plot.png
"""

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from . import arithmetic, load
from .config import DTYPES, read_config, read_json
from .engine import Engine
from .errors import UserError
from .evaluate import compare, evaluate
from .memory import cache_bytes, free_memory
from .problems import Problem, fingerprint, load_problems, overlap
from .recipe import Recipe
from .report import plot
from .sampling import SamplingParams
from .state import states
from .store import write_json
from .tokenizer import Tokenizer
from .train import sample_round, train
from .transformer import Transformer
from .update import seed_of
from .weights import weight_files

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).with_name("tiny_o1")
LONG_PROMPT, MOST_SLOTS = 1024, 256  # what a slot is sized for besides the completion; more slots gain little
HELD_OUT = 0.2  # of a problem file without one of its own to evaluate on


@dataclass(frozen=True)
class Place:
    """Where a run computes, and how many completions it decodes at once (None: as many as fit). Nothing here may change
    a result, only its speed."""

    device: torch.device
    slots: int | None = None

    def engine(self, model: Transformer, tokenizer: Tokenizer, recipe: Recipe) -> Engine:
        slots = self.slots
        if slots is None:
            tokens = min(recipe.max_new_tokens + LONG_PROMPT, model.config.max_positions)
            fit = free_memory(self.device) // 2 // cache_bytes(model.config, tokens, model.embed.dtype)
            slots = max(1, min(MOST_SLOTS, fit))
        return Engine(model, tokenizer, slots)


@dataclass(frozen=True)
class Job:
    """What a run is about: a checkpoint, problems to train on, problems to evaluate on, a recipe."""

    model: Path
    dtype: torch.dtype
    train: list[Problem]
    test: list[Problem]
    recipe: Recipe

    def settings(self) -> dict:
        """What settings.json says, besides the paths: the recipe, and prints of everything else that decides a result."""
        return self.recipe.to_json() | {
            "dtype": str(self.dtype).removeprefix("torch."),
            "model_print": model_print(self.model),
            "train_print": fingerprint(self.train),
            "test_print": fingerprint(self.test),
        }


def open_job(model: Path | None, data: Path | None, eval_data: Path | None, dtype: str, recipe: Recipe) -> Job:
    """Read what a run needs. Without a model it is the embedded one, and then the problems are generated.

    Without eval_data the last fifth of the shuffled data is held out. Problems to evaluate on are never trained on.
    Raises UserError for everything that is wrong with the files.
    """
    if model is not None and data is None:
        raise UserError("--data: a problem file is needed with --model")
    if data is None:
        train = arithmetic.problems("train", recipe.problems or 1000, recipe.seed)
        test = arithmetic.problems("test", recipe.eval_problems or 1000, recipe.seed)
    else:
        train = load_problems(data, shuffle_seed=recipe.shuffle_seed)
        if eval_data is None:
            held = max(1, int(len(train) * HELD_OUT))
            if held == len(train):
                raise UserError(
                    f"{data}: one problem cannot be both trained and evaluated on; add more, or --eval-data"
                )
            train, test = train[:-held], train[-held:]
        else:
            test = load_problems(eval_data)
        train, test = train[: recipe.problems], test[: recipe.eval_problems]
    if shared := overlap(test, train):
        log.warning("%d problems to evaluate on are in the training data too; they are not trained on", len(shared))
        train = [p for p in train if p not in shared]
    if not train:
        raise UserError(f"{data}: every problem in it is also one to evaluate on; nothing is left to train on")
    return Job(model or EMBEDDED, resolve_dtype(model, dtype), train, test, recipe)


def open_evaluation(model: Path | None, data: Path | None, dtype: str, recipe: Recipe) -> Job:
    """A job that evaluates alone, on all of `data` or on the embedded model's test problems."""
    if data is None:
        test = arithmetic.problems("test", recipe.eval_problems or 1000, recipe.seed)
    else:
        test = load_problems(data, limit=recipe.eval_problems)
    return Job(model or EMBEDDED, resolve_dtype(model, dtype), [], test, recipe)


def resolve_dtype(model: Path | None, dtype: str) -> torch.dtype:
    """The dtype that computes. "auto" is the checkpoint's own; the embedded one is small enough for float32."""
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.float32 if model is None else read_config(model).dtype


def model_print(folder: Path) -> str:
    """A hash that tells checkpoints apart: config.json, and the size, first and last MiB of every weight file."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in weight_files(folder):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name} {size}".encode() + file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def claim(run: Path, job: Job) -> None:
    """Make `run` this job's folder. Raises UserError where it is another's."""
    settings, path = job.settings(), run / "settings.json"
    if path.exists():
        held = read_json(path)
        for name in settings:
            if held.get(name) != settings[name]:
                asked = f"{json.dumps(held.get(name))} there, {json.dumps(settings[name])} asked for"
                raise UserError(f"{run}: holds a run with other settings ({name}: {asked}); choose another --out")
        return
    if run.exists() and any(run.iterdir()):
        raise UserError(f"{run}: is not empty and holds no settings.json; choose another --out")
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, settings | {"model": str(job.model)})


def run_sample(job: Job, run: Path, place: Place) -> None:
    """Sample the first round."""
    claim(run, job)
    model, tokenizer = load(job.model, job.dtype, place.device)
    sample_round(place.engine(model, tokenizer, job.recipe), tokenizer, job.train, job.recipe, run, 0)


def run_train(job: Job, run: Path, place: Place, resume: bool) -> Path:
    """Train, sampling first what is not there; returns the pruned checkpoint's folder."""
    claim(run, job)
    if (run / "pruned").exists():
        return run / "pruned"
    model, tokenizer = load(job.model, job.dtype, place.device)
    engine = place.engine(model, tokenizer, job.recipe)
    return train(engine, tokenizer, job.model, job.train, job.recipe, run, resume)


def run_eval(job: Job, checkpoint: Path, folder: Path, place: Place, label: str) -> dict:
    """Evaluate a checkpoint on the job's test problems into `folder`."""
    recipe = job.recipe
    if (folder / "result.json").exists():
        return read_json(folder / "result.json")
    model, tokenizer = load(checkpoint, job.dtype, place.device)
    greedy = recipe.eval_temperature == 0
    params = SamplingParams(
        n=recipe.eval_samples,
        temperature=recipe.eval_temperature,
        top_p=1.0 if greedy else recipe.top_p,
        top_k=0 if greedy else recipe.top_k,
        max_new_tokens=recipe.max_new_tokens,
        seed=seed_of(recipe.seed, "evaluate"),
    )
    return evaluate(place.engine(model, tokenizer, recipe), tokenizer, job.test, params, folder, label)


def run_evaluation(job: Job, run: Path, place: Place) -> dict:
    """Evaluate the job's model alone, in a folder of its own."""
    claim(run, job)
    return run_eval(job, job.model, run, place, "evaluate")


def prune(job: Job, run: Path, place: Place) -> dict:
    """The main job. Returns what RUN/result.json says: base, pruned, length_cut, accuracy_gain, aes, seconds, ..."""
    start = time.perf_counter()
    claim(run, job)
    result = run / "result.json"
    if result.exists():
        return read_json(result)
    base = run_eval(job, job.model, run / "base", place, "evaluate the base")
    checkpoint = run_train(job, run, place, resume=bool(states(run)))
    after = run_eval(job, checkpoint, run / "after", place, "evaluate the pruned")
    summary = compare(base, after) | {
        "seconds": time.perf_counter() - start,  # of this call: a run that was killed and went on counts its last part
        "checkpoint": str(checkpoint),
        "settings": job.settings(),
    }
    plot(run, summary, run / "plot.png")
    write_json(result, summary)
    return summary
