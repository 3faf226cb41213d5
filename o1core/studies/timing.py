"""How long the checkpoints of a study take to answer the same prompts.

One engine with the evaluation's sampling answers them all, in turns, so that the time differs by the lengths alone.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from ..evaluation import InferenceTime, read_run_result
from ..files import read_record, write_record
from ..model import load
from ..runs import Job, Resources
from ..typed_json import Amount, from_json, to_json
from ..types import Problem
from .pruning import OpenJob
from .study_folder import StudyFolder
from .variants import Variant

TIMED_PROMPTS, TURNS = 64, 3  # prompts of each test; times that all checkpoints answer them


@dataclass(frozen=True)
class InferenceTimes:
    """inference.json: on which device, and label: seconds of each turn."""

    place: str
    times: dict[str, tuple[Amount, ...]]


@dataclass(frozen=True)
class Timed:
    """A checkpoint of the study and the problems that it answers, as its method asks them."""

    label: str
    job: Job
    checkpoint: Path
    problems: list[Problem]


def inference_times(
    open_job: OpenJob, variants: list[Variant], folder: StudyFolder, resources: Resources
) -> dict[str, InferenceTime]:
    """label: the median of a checkpoint's times and of their ratios to the base's, turn by turn. All of seed 0."""
    labels = ["base", *(v.label for v in variants)]
    held = None
    if folder.inference.exists():
        held = from_json(InferenceTimes, read_record(folder.inference), str(folder.inference))
    if held is None or list(held.times) != labels or held.place != str(resources):
        held = InferenceTimes(str(resources), measure(checkpoints(open_job, variants, folder), resources))
        write_record(folder.inference, to_json(held))
    base = held.times["base"]
    return {
        label: InferenceTime(median(times), median(mine / theirs for mine, theirs in zip(times, base)))
        for label, times in held.times.items()
    }


def checkpoints(open_job: OpenJob, variants: list[Variant], folder: StudyFolder) -> list[Timed]:
    """The base and the checkpoint of each variant."""
    jobs = {variant.label: open_job(variant.recipe) for variant in variants}
    first = jobs[variants[0].label]
    found = [Timed("base", first, first.model, timed_problems(first))]
    for label, job in jobs.items():
        checkpoint = Path(read_run_result(folder.run(0, label).result).checkpoint)
        found.append(Timed(label, job, checkpoint, job.instructed(timed_problems(job), training=False)))
    return found


def timed_problems(job: Job) -> list[Problem]:
    return [problem for test in job.tests.values() for problem in test[:TIMED_PROMPTS]]


def measure(timed: list[Timed], resources: Resources) -> dict[str, tuple[float, ...]]:
    """label: seconds of each turn, the checkpoints one after the other in each."""
    times: dict[str, list[float]] = {t.label: [] for t in timed}
    for _ in tqdm(range(TURNS), desc="inference time", unit="turn"):
        for t in timed:
            times[t.label].append(seconds_to_answer(t, resources))
    return {label: tuple(seconds) for label, seconds in times.items()}


def seconds_to_answer(timed: Timed, resources: Resources) -> float:
    recipe = timed.job.recipe
    params = recipe.evaluation_params()
    model, tokenizer = load(timed.checkpoint, timed.job.dtype, resources.device)
    prompts = [tokenizer.prompt(p.question, p.system) for p in timed.problems]
    engine = resources.engine(model, tokenizer, recipe.sampling.max_new_tokens)
    engine.generate(prompts[:1], replace(params, n=1, max_new_tokens=2))  # what a first call does once is not timed
    if resources.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    engine.generate(prompts, params)
    return time.perf_counter() - start
