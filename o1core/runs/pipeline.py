"""A run from end to end: evaluate, sample, train, evaluate again, report; each step skipped where its result is there.

A run lives in one folder. settings.json says what it was asked for and on what; a folder is never shared by two runs:

    settings.json   base/TEST/   round-*/   state-*/   log.jsonl   pruned/   after/TEST/   result.json   plot.png
"""

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import UserError
from ..evaluation.evaluate import compare, evaluate
from ..files import read_json, write_json
from ..model import DTYPES, Tokenizer, Transformer, load, read_config, weight_files
from ..problems import (
    GYM_PREFIX,
    Problem,
    arithmetic_problems,
    ask_in_form,
    drawn_budget,
    find_overlap,
    fingerprint,
    gym_problems,
    instruct,
    load_problems,
    parse_levels,
    parse_subjects,
    select,
)
from ..recipe.recipe import Recipe
from ..report.plots import plot_run
from ..rollout import Engine, SamplingParams, cache_bytes, free_memory
from ..seeds import seed_of
from ..training.loop import sample_round, train
from ..training.state import states

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[1] / "tiny_o1"
LONG_PROMPT, MOST_SLOTS = 1024, 256  # what a slot is sized for besides the completion; more slots gain little
RARE = 400  # generated problems among which every level stands: the rarest is every tenth
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
    """What a run is about: a checkpoint, problems to train on, tests (name: problems) to evaluate on, a recipe.

    The problems are as the base is asked them; `instructed` adds what the method asks besides.
    """

    model: Path
    dtype: torch.dtype
    train: list[Problem]
    tests: dict[str, list[Problem]]
    recipe: Recipe

    def settings(self) -> dict:
        """What settings.json says, besides the paths: the recipe, and prints of everything else that decides a result."""
        return self.recipe.to_json() | {
            "dtype": str(self.dtype).removeprefix("torch."),
            "model_print": model_print(self.model),
            "train_print": fingerprint(self.train),
            "tests": {name: fingerprint(test) for name, test in self.tests.items()},
        }

    def instructed(self, problems: list[Problem], training: bool) -> list[Problem]:
        """Problems with the method's instruction. Each has a budget of its own in training, all the same one after it."""
        r = self.recipe
        fixed = r.eval_budget or (r.budget_low + r.budget_high) // 2
        span = (r.budget_low, r.budget_high, r.seed)
        return [instruct(p, r.instruction, drawn_budget(p.id, *span) if training else fixed) for p in problems]


def open_job(
    model: Path | None, data: str | None, tests: list[str] | None, dtype: str, recipe: Recipe, by_level: bool = False
) -> Job:
    """Read what a run needs. Without a model it is the embedded one, and then the problems are generated.

    data and tests: problem files, or reasoning-gym:NAME. Without tests the last fifth of the shuffled data is held out
    (of generated problems: others are generated, with by_level three tests, easy to hard).
    Problems to evaluate on are never trained on. Raises UserError for everything that is wrong with the files.
    """
    if model is not None and data is None:
        raise UserError("--data: a problem file is needed with --model")
    if data is None:
        train = generated("train", recipe.problems, recipe)
        tests = open_tests(tests, recipe) or (generated_by_level if by_level else generated_tests)(recipe)
    else:
        train = selected(read_problems(data, recipe, recipe.shuffle_seed, "train"), recipe)
        tests = open_tests(tests, recipe)
        if not tests:
            held = max(1, int(len(train) * HELD_OUT))
            if held == len(train):
                raise UserError(
                    f"{data}: one problem cannot be both trained and evaluated on; add more, or --eval-data"
                )
            train, tests = train[:-held], {test_name(data): train[-held:][: recipe.eval_problems]}
        train = train[: recipe.problems]
    shared = [problem for test in tests.values() for problem in find_overlap(test, train)]
    if shared:
        log.warning("%d problems to evaluate on are in the training data too; they are not trained on", len(shared))
        train = [p for p in train if p not in shared]
    if not train:
        raise UserError(f"{data}: every problem in it is also one to evaluate on; nothing is left to train on")
    tests = {name: asked(test, recipe) for name, test in tests.items()}
    return Job(model or EMBEDDED, resolve_dtype(model, dtype), asked(train, recipe), tests, recipe)


def open_evaluation(model: Path | None, data: str | None, dtype: str, recipe: Recipe) -> Job:
    """A job that evaluates alone, on all of `data` or on the embedded model's test problems."""
    if data is None:
        tests = generated_tests(recipe)
    else:
        tests = {test_name(data): selected(read_problems(data, recipe, None, "test"), recipe)[: recipe.eval_problems]}
    tests = {name: asked(test, recipe) for name, test in tests.items()}
    return Job(model or EMBEDDED, resolve_dtype(model, dtype), [], tests, recipe)


def open_tests(tests: list[str] | None, recipe: Recipe) -> dict[str, list[Problem]]:
    """name: problems of each test file. Raises UserError where two have one name."""
    named = {test_name(test): test for test in tests or []}
    if len(named) < len(tests or []):
        raise UserError(f"--eval-data: two files have one name; they are told apart by it ({', '.join(named)})")
    if "average" in named:
        raise UserError(f"--eval-data: {named['average']}: a test cannot be called average; rename the file")
    return {name: read_problems(test, recipe, None, "test")[: recipe.eval_problems] for name, test in named.items()}


def read_problems(source: str, recipe: Recipe, shuffle_seed: int | None, purpose: str) -> list[Problem]:
    """Problems of a file, or of a reasoning-gym task; those to train and to evaluate on are drawn with other seeds."""
    if source.startswith(GYM_PREFIX):
        count = (recipe.problems if purpose == "train" else recipe.eval_problems) or 1000
        return gym_problems(source.removeprefix(GYM_PREFIX), count, seed_of(recipe.seed, purpose) % 2**31)
    return load_problems(Path(source), shuffle_seed=shuffle_seed)


def test_name(source: str) -> str:
    """What a test is called in folders and tables: the file's stem, or the task's name."""
    return source.removeprefix(GYM_PREFIX) if source.startswith(GYM_PREFIX) else Path(source).stem


def generated(split: str, count: int | None, recipe: Recipe) -> list[Problem]:
    """`count` (default 1000) generated problems of the recipe's levels."""
    count = count or 1000
    drawn = max(count, RARE)
    while len(found := selected(arithmetic_problems(split, drawn, recipe.seed), recipe)) < count:
        drawn *= 2
    return found[:count]


def generated_tests(recipe: Recipe) -> dict[str, list[Problem]]:
    return {"arithmetic": generated("test", recipe.eval_problems, recipe)}


def generated_by_level(recipe: Recipe) -> dict[str, list[Problem]]:
    """Three tests of generated problems, of 2, of 3 and of 4 or 5 operations: easy to hard."""
    levels = {"arithmetic-2": "2", "arithmetic-3": "3", "arithmetic-4-5": "4-5"}
    return {name: generated("test", recipe.eval_problems, replace(recipe, levels=of)) for name, of in levels.items()}


def selected(problems: list[Problem], recipe: Recipe) -> list[Problem]:
    """Those of the recipe's levels and subjects."""
    levels = None if recipe.levels is None else parse_levels(recipe.levels)
    subjects = None if recipe.subjects is None else parse_subjects(recipe.subjects)
    return select(problems, levels, subjects)


def asked(problems: list[Problem], recipe: Recipe) -> list[Problem]:
    return [ask_in_form(problem, recipe.prompt, recipe.system) for problem in problems]


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
    if holds_something(run):
        raise UserError(f"{run}: is not empty and holds no settings.json; choose another --out")
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, settings | {"model": str(job.model)})


def holds_something(folder: Path) -> bool:
    """Whether a folder holds more than what a kill left of a first write."""
    return folder.exists() and any(not path.name.endswith(".partial") for path in folder.iterdir())


def run_sample(job: Job, run: Path, place: Place) -> None:
    """Sample the first round."""
    claim(run, job)
    model, tokenizer = load(job.model, job.dtype, place.device)
    engine = place.engine(model, tokenizer, job.recipe)
    sample_round(engine, tokenizer, job.instructed(job.train, training=True), job.recipe, run, 0)


def run_train(job: Job, run: Path, place: Place, resume: bool) -> Path:
    """Train, sampling first what is not there; returns the pruned checkpoint's folder."""
    claim(run, job)
    if (run / "pruned").exists():
        return run / "pruned"
    model, tokenizer = load(job.model, job.dtype, place.device)
    engine = place.engine(model, tokenizer, job.recipe)
    return train(engine, tokenizer, job.model, job.instructed(job.train, training=True), job.recipe, run, resume)


def run_eval(
    job: Job, checkpoint: Path, tests: dict[str, list[Problem]], folder: Path, place: Place, label: str
) -> dict[str, dict]:
    """Evaluate a checkpoint on tests into folder/NAME; returns each one's result."""
    todo = [name for name in tests if not (folder / name / "result.json").exists()]
    if todo:
        model, tokenizer = load(checkpoint, job.dtype, place.device)
        engine = place.engine(model, tokenizer, job.recipe)
        for name in todo:
            evaluate(engine, tokenizer, tests[name], eval_params(job.recipe), folder / name, f"{label}, {name}")
    return {name: read_json(folder / name / "result.json") for name in tests}


def eval_params(recipe: Recipe) -> SamplingParams:
    """How an evaluation samples."""
    greedy = recipe.eval_temperature == 0
    return SamplingParams(
        n=recipe.eval_samples,
        temperature=recipe.eval_temperature,
        top_p=1.0 if greedy else recipe.top_p,
        top_k=0 if greedy else recipe.top_k,
        max_new_tokens=recipe.max_new_tokens,
        seed=seed_of(recipe.seed, "evaluate"),
    )


def run_evaluation(job: Job, run: Path, place: Place) -> dict:
    """Evaluate the job's model alone, asked as the method asks, in a folder of its own."""
    claim(run, job)
    (test,) = job.tests.values()
    model, tokenizer = load(job.model, job.dtype, place.device)
    engine = place.engine(model, tokenizer, job.recipe)
    return evaluate(engine, tokenizer, job.instructed(test, training=False), eval_params(job.recipe), run, "evaluate")


def prune(job: Job, run: Path, place: Place) -> dict:
    """The main job. Returns what RUN/result.json says: evaluate.compare's figures, seconds, checkpoint, settings."""
    start = time.perf_counter()
    claim(run, job)
    result = run / "result.json"
    if result.exists():
        return read_json(result)
    base = run_eval(job, job.model, job.tests, run / "base", place, "evaluate the base")
    trains = job.recipe.objective != "none"
    checkpoint = run_train(job, run, place, resume=bool(states(run))) if trains else job.model
    tests = {name: job.instructed(test, training=False) for name, test in job.tests.items()}
    after = run_eval(job, checkpoint, tests, run / "after", place, "evaluate the pruned")
    summary = compare(base, after) | {
        "seconds": time.perf_counter() - start,  # of this call: a run that was killed and went on counts its last part
        "checkpoint": str(checkpoint),
        "settings": job.settings(),
    }
    plot_run(run, summary, run / "plot.png")
    write_json(result, summary)
    return summary
