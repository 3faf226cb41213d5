"""What `study compare` says of each method beside its score: measures of its completions, what it cost, and how long its
checkpoint takes to answer.

For the times one engine with the evaluation's sampling answers the same prompts with every checkpoint, in turns, so that
they differ by the lengths alone.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from tqdm import tqdm

from ..evaluation import (
    Cost,
    InferenceTime,
    Measures,
    StudyResult,
    StudyRow,
    answers_of,
    read_evaluation,
    read_run_result,
)
from ..files import read_record, write_record
from ..grading import after_thought, extract_answer, last_box, leaves_thought_open
from ..metrics import Answers, Spread, accuracy_within, budget_area, lengths_by_verdict, ockscore, over_seeds
from ..model import Tokenizer, load
from ..records import Amount, from_json, to_json
from ..report import open_tokenizer, plot_study, study_tables
from ..rollout import Engine, read_groups
from ..run_folder import SIDES, RunFolder
from ..runs import Job, Resources
from ..training import read_log
from ..types import Group, Problem, Sample
from .study import OpenJob, StudyFolder, Variant, run_variants, write_outputs

CURVE_POINTS = 12  # budgets up to the evaluation's limit, each half of the second after it
TIMED_PROMPTS, TURNS = 64, 3  # prompts of each test; times that all checkpoints answer them


def run_comparison(
    open_job: OpenJob, variants: list[Variant], seeds: int, path: Path, resources: Resources
) -> StudyResult:
    """The study `compare` in the folder `path`: returns what its result.json says."""
    result, folder = run_variants("compare", open_job, variants, seeds, path, resources), StudyFolder(path)
    times = inference_times(open_job, variants, folder, resources)
    result = replace(result, rows=[replace(row, inference=times[row.label]) for row in result.rows])
    result = with_measures(folder, result, variants[0].recipe.sampling.max_new_tokens)
    return write_outputs(folder, result, study_tables, plot_study)


def with_measures(folder: StudyFolder, result: StudyResult, longest: int) -> StudyResult:
    """The result with measures and cost in every row, and the base with measures alone. longest: tokens that an
    evaluation allows a completion."""
    before, after = SIDES
    runs = {row.label: [RunFolder(folder.path / name) for name in row.runs] for row in result.variants}
    first = runs[result.variants[0].label]

    def measured(row: StudyRow) -> StudyRow:
        if not row.runs:
            return replace(row, measures=measures_of(first, before, result.tests, longest))
        of_row = runs[row.label]
        return replace(row, measures=measures_of(of_row, after, result.tests, longest), cost=cost_of(of_row))

    return replace(result, rows=[measured(row) for row in result.rows])


def measures_of(runs: list[RunFolder], side: str, tests: list[str], longest: int) -> Measures:
    """The measures of one side of a method's runs, one run a seed."""
    budgets = sorted({max(1, round(longest / 2 ** (i / 2))) for i in range(CURVE_POINTS)})
    seeds = [[read_side(run, side, test) for test in tests] for run in runs]
    by_verdict = [[lengths_by_verdict(a.lengths, a.correct) for a in seed] for seed in seeds]
    right = [[found for found, _ in seed if found is not None] for seed in by_verdict]
    wrong = [[found for _, found in seed if found is not None] for seed in by_verdict]
    cut = [[answers_under_cuts(run, side, test) for test in tests] for run in runs]
    curves = [accuracy_within(a.lengths, a.correct, budgets) for seed in cut for a in seed]
    areas = [mean(budget_area(a.lengths, a.correct, longest) for a in seed) for seed in cut]
    scores = [mean(ockscore(float(a.correct.mean()), float(a.lengths.mean())) for a in seed) for seed in seeds]
    return Measures(
        ockscore=over_seeds(scores),
        tokens_right=over_seeds([mean(found) for found in right], 0.0) if all(right) else None,
        tokens_wrong=over_seeds([mean(found) for found in wrong], 0.0) if all(wrong) else None,
        budget_area=over_seeds(areas, 0.0, 1.0),
        budgets=budgets,
        accuracy_within=[mean(values) for values in zip(*curves)],
    )


def read_side(run: RunFolder, side: str, test: str) -> Answers:
    """What a run answered on one of its SIDES."""
    return answers_of(read_groups(run.evaluation(side, test).rollouts))


def answers_under_cuts(run: RunFolder, side: str, test: str) -> Answers:
    """The same, but for `lengths`: of a right completion the tokens from which on it is right, wherever it is cut.

    The rule is that of every verdict: what is cut off is wrong, unless a complete box stands after its thought.
    """
    groups = read_groups(run.evaluation(side, test).rollouts)
    tokenizer = open_tokenizer(run)
    answers = answers_of(groups)
    return replace(answers, lengths=np.array([[tokens_needed(g, s, tokenizer) for s in g.samples] for g in groups]))


def tokens_needed(group: Group, sample: Sample, tokenizer: Tokenizer) -> int:
    """Tokens after which the completion may be cut and keeps its answer: where the box closes, or all of them."""
    if not sample.correct:
        return sample.length
    ids, tags = sample.ids.tolist(), tokenizer.tags
    in_thought = leaves_thought_open(tokenizer.decode(group.prompt.tolist(), special=True), tags)

    def boxed(tokens: int) -> str | None:
        """The answer of the first tokens, if it stands in a box."""
        final = after_thought(tokenizer.decode(ids[:tokens]), tags, in_thought)
        return extract_answer(final) if final is not None and last_box(final) is not None else None

    answer = boxed(sample.length)
    if answer is None:
        return sample.length
    # The box mostly stands near the end: back in growing steps while it is there, then by halves.
    enough, step = sample.length, 1
    while enough > step and boxed(enough - step) == answer:
        enough, step = enough - step, 2 * step
    least = max(0, enough - step)
    while enough - least > 1:
        middle = (least + enough) // 2
        least, enough = (least, middle) if boxed(middle) == answer else (middle, enough)
    return enough


def cost_of(runs: list[RunFolder]) -> Cost:
    """The cost of a method's runs, one run a seed."""
    found = [cost_of_run(run) for run in runs]
    seconds = [seconds for _, _, seconds in found if seconds is not None]
    return Cost(
        Spread(mean(samples for samples, _, _ in found)),
        Spread(mean(tokens for _, tokens, _ in found)),
        Spread(mean(seconds)) if len(seconds) == len(found) else None,
    )


def cost_of_run(run: RunFolder) -> tuple[float, float, float | None]:
    """(completions sampled to train on, completion tokens trained on, seconds of sampling and training).

    Sampling is taken to run at the speed of the base's evaluations, training at the speed that each step logged. None
    where an evaluation logged no speed, since all of it was linked from another run.
    """
    log = read_log(run.log) if run.log.exists() else []
    if not log:
        return 0.0, 0.0, 0.0
    rounds = [read_groups(run.rollouts(i)) for i in range(1 + max(int(line["round"]) for line in log))]
    groups = [group for found in rounds for group in found]
    lengths = [s.length for g in groups for s in g.samples]
    prompt = mean(len(g.prompt) for g in groups)
    speeds = [read_evaluation(f.result).tokens_per_second for f in run.evaluations(SIDES[0]).values()]
    trained = sum(line["tokens"] for line in log)
    if not all(speeds):
        return float(len(lengths)), trained, None
    # tokens_per_second counts prompts too; a step trains tokens / mean_length completions.
    steps = [line["tokens"] * (1 + prompt / line["mean_length"]) / line["tokens_per_second"] for line in log]
    return float(len(lengths)), trained, sum(lengths) / mean(speeds) + sum(steps)


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
    engine = Engine(model, tokenizer, resources.slots)
    engine.generate(prompts[:1], replace(params, n=1, max_new_tokens=2))  # what a first call does once is not timed
    if resources.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    engine.generate(prompts, params)
    return time.perf_counter() - start
