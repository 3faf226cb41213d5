"""The paper's studies, each a folder with a result.json, a table.md and a plot.png.

disharmony   are the long answers the right ones? Many samples of some problems, cut by length
lambda       the weight of a right answer against the length
difficulty   which problems to train on
compare      all methods on all tests, with inference time (the paper's Table 2)

The last three are runs of pipeline.prune under STUDY/seed-N/LABEL. What two runs of a seed have in common, the base's
evaluation and the first round's samples, is made once and linked. A run that is done is read, so a study that was killed
goes on when the same command is given again.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from ..evaluation.evaluate import compare, write_problems
from ..files import read_json, write_atomic, write_json
from ..metrics import accuracy_interval, mean_interval
from ..model import load
from ..recipe import Recipe
from ..report.plots import plot_ablation, plot_comparison, plot_disharmony
from ..report.tables import disharmony_table, study_table
from ..rewards import WITH_LAMBDA
from ..rollout import lengths_and_verdicts, sample_problems
from ..run_folder import RunFolder, holds_something
from ..runs import Job, Resources, prune
from ..seeds import seed_of

log = logging.getLogger(__name__)

ASKED = ("prompt", "system", "max_new_tokens", "top_p", "top_k", "seed")
SHARED = {  # a part of a run's folder: the settings that decide it
    "base": ("model_print", "dtype", "tests", "eval_samples", "eval_temperature", *ASKED),
    "round-00/rollouts": (
        "model_print",
        "dtype",
        "train_print",
        "samples",
        "temperature",
        "instruction",
        "budget_low",
        "budget_high",
        *ASKED,
    ),
}
TIMED_PROMPTS, TURNS = 64, 3
THIRDS = ("hardest third", "middle third", "easiest third")


@dataclass(frozen=True)
class Variant:
    """One run of a study: its name in the table, the value on the plot's axis, and its settings."""

    label: str
    value: str | float | None
    recipe: Recipe


def study_disharmony(job: Job, intervals: int, folder: Path, resources: Resources) -> dict:
    """Sample each of recipe.problems test problems recipe.samples times and hold accuracy against length.

    Raises UserError where there are fewer problems than asked for, or fewer samples than intervals.
    """
    ((name, test),) = job.tests.items()
    recipe = job.recipe
    problems, samples = recipe.selection.problems or len(test), recipe.sampling.samples
    if len(test) < problems:
        raise UserError(f"--problems: {name} holds {len(test)} problems, not {problems}")
    if not 1 < intervals <= samples:
        raise UserError(
            f"--intervals: {intervals} of {samples} samples a problem; it takes 2 at least, and one sample each"
        )
    RunFolder(folder).claim(job.settings, job.model)
    test = test[:problems]
    model, tokenizer = load(job.model, job.dtype, resources.device)
    params = recipe.sampling.params(seed_of(recipe.seed, "disharmony"))
    test = job.instructed(test, training=False)
    write_problems(folder, test)
    engine = resources.engine(model, tokenizer, recipe.sampling.max_new_tokens)
    groups = sample_problems(engine, tokenizer, test, params, folder / "rollouts", "sample")
    lengths, correct = lengths_and_verdicts(groups)
    result = {"study": "disharmony", "problems": problems, "samples": samples, "intervals": intervals}
    result["rows"] = disharmony(lengths, correct, difficulties(test, correct), intervals)
    return finish(folder, result | {"settings": job.settings}, disharmony_table, plot_disharmony)


def disharmony(lengths: Tensor, correct: Tensor, difficulty: list[str], intervals: int) -> list[dict]:
    """Accuracy by length: "all" first, then each difficulty.

    lengths, correct [P, K]; difficulty [P]. Every problem's samples, short to long, are cut into `intervals` parts of
    equal count (they differ by one where K does not divide). Of each part: accuracy with its 95 % interval over problems
    and mean_tokens. gap: accuracy of the longest part less that of the shortest, a difference within problems, with its
    interval.
    """
    order = lengths.argsort(dim=1, stable=True)
    parts = [
        (lengths.gather(1, cut).numpy(), correct.gather(1, cut).numpy()) for cut in order.tensor_split(intervals, dim=1)
    ]
    rows = []
    for label in ["all", *sorted(set(difficulty))] if len(set(difficulty)) > 1 else ["all"]:
        chosen = np.array([label in ("all", d) for d in difficulty])
        figures = []
        for i, (tokens, right) in enumerate(parts):
            low, high = accuracy_interval(right[chosen])
            figures.append(
                {
                    "interval": i + 1,
                    "accuracy": float(right[chosen].mean()),
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "mean_tokens": float(tokens[chosen].mean()),
                }
            )
        gap, low, high = mean_interval(parts[-1][1][chosen].mean(axis=1) - parts[0][1][chosen].mean(axis=1))
        rows.append(
            {
                "label": label,
                "problems": int(chosen.sum()),
                "intervals": figures,
                "gap": {"mean": gap, "low": max(-1.0, low), "high": min(1.0, high)},
            }
        )
    return rows


def difficulties(problems: list, correct: Tensor) -> list[str]:
    """ "level N" where every problem has one, else the third of the problems by accuracy."""
    if all(p.level for p in problems):
        return [f"level {p.level}" for p in problems]
    third = [""] * len(problems)
    for name, part in zip(THIRDS, correct.float().mean(1).argsort(stable=True).tensor_split(3)):
        for i in part.tolist():
            third[i] = name
    return third


def by_lambda(recipe: Recipe, values: str) -> list[Variant]:
    """A run a lambda; values: "0,1,2,5"."""
    texts = items("--values", values)
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise UserError(f"--values: {values} is not a list of numbers, such as 0,1,2,5") from None
    if recipe.objective.kind != "surrogate" or recipe.reward.kind not in WITH_LAMBDA:
        raise UserError(
            f"study lambda: {recipe.objective.kind} with the reward {recipe.reward.kind} has no lambda; choose another --method"
        )
    if len({f"{value:g}" for value in numbers}) < len(numbers):
        raise UserError(f"--values: {values} says a value twice")
    return [Variant(f"lambda {value:g}", value, recipe.but(lam=value)) for value in numbers]


def by_percentiles(recipe: Recipe, percentiles: str) -> list[Variant]:
    """A run a part of the problems by reference accuracy; percentiles: "0-40,30-70"."""
    if recipe.objective.kind == "none":
        raise UserError("study difficulty: --objective none trains on no problems; choose another --method")
    spans = items("--percentiles", percentiles)
    return [Variant(f"percentiles {span}", span, recipe.but(percentiles=span)) for span in spans]


def by_method(methods: str, recipe_of: Callable[[str], Recipe]) -> list[Variant]:
    """A run a method; methods: "sft,dpo". One that resolves to the settings of an earlier one is left out and logged."""
    variants: list[Variant] = []
    for method in items("--methods", methods):
        recipe = recipe_of(method)
        twin = next((v.label for v in variants if v.recipe == recipe), None)
        if twin is None:
            variants.append(Variant(method, method, recipe))
        else:
            log.warning("%s has the settings of %s under this recipe; it is run once", method, twin)
    return variants


def items(flag: str, text: str) -> list[str]:
    """The parts of a comma list. Raises UserError where it is empty or says a thing twice."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or len(set(parts)) < len(parts):
        raise UserError(f"{flag}: {text!r} must be a list with commas between, each thing once")
    return parts


def run_study(
    kind: str,
    open_job: Callable[[Recipe], Job],
    variants: list[Variant],
    seeds: int,
    folder: Path,
    resources: Resources,
) -> dict:
    """The study `kind` (lambda, difficulty, compare): returns what STUDY/result.json says."""
    result = run_variants(kind, open_job, variants, seeds, folder, resources)
    if kind == "compare":
        times = inference_times(open_job, variants, folder, resources)
        for row in result["rows"]:
            of_row = times[row["label"]]
            ratio = median(mine / base for mine, base in zip(of_row, times["base"]))
            row["inference"] = {"seconds": median(of_row), "ratio": ratio}
        return finish(folder, result, study_table, plot_comparison)
    axis = {"lambda": "lambda", "difficulty": "percentiles of reference accuracy (0 is the hardest)"}[kind]
    return finish(folder, result, study_table, lambda result, path: plot_ablation(result, axis, path))


def finish(folder: Path, result: dict, table: Callable[[dict], str], plot: Callable[[dict, Path], None]) -> dict:
    """Write what a study leaves behind."""
    text = table(result) + "\n"
    write_atomic(folder / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    plot(result, folder / "plot.png")
    write_json(folder / "result.json", result)
    return result


def run_variants(
    kind: str,
    open_job: Callable[[Recipe], Job],
    variants: list[Variant],
    seeds: int,
    folder: Path,
    resources: Resources,
) -> dict:
    """Prune under every variant and seed; the rows of a table, the base first, with means over seeds."""
    found: dict[str, list[dict]] = {variant.label: [] for variant in variants}
    runs: dict[str, list[str]] = {variant.label: [] for variant in variants}
    claim_study(folder, kind)
    with tqdm(total=seeds * len(variants), desc=f"study {kind}", unit="run") as bar:
        for seed in range(seeds):
            done: list[Path] = []
            for variant in variants:
                bar.set_postfix_str(f"seed {seed}, {variant.label}")
                name = f"seed-{seed}/{slug(variant.label)}"
                run = folder / name
                job = open_job(replace(variant.recipe, seed=variant.recipe.seed + seed))
                RunFolder(run).claim(job.settings, job.model)
                for part in SHARED:
                    share(part, done, run)
                found[variant.label].append(prune(job, RunFolder(run), resources))
                runs[variant.label].append(name)
                done.append(run)
                bar.update()
    first = found[variants[0].label]
    rows = [row("base", None, [], [as_pruned(summary) for summary in first])]
    rows += [row(v.label, v.value, runs[v.label], found[v.label]) for v in variants]
    tests = list(first[0]["tests"])
    return {"study": kind, "tests": tests, "seeds": seeds, "rows": rows, "settings": first[0]["settings"]}


def claim_study(folder: Path, kind: str) -> None:
    """Make `folder` a study's. Raises UserError where it holds something else."""
    path = folder / "study.json"
    held = read_json(path).get("study") if path.exists() else None
    if held not in (None, kind) or (held is None and holds_something(folder)):
        raise UserError(f"{folder}: is not empty and holds no study {kind}; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"study": kind})


def slug(label: str) -> str:
    """A variant's label as the name of its folder."""
    return label.replace(" ", "-")


def as_pruned(summary: dict) -> dict:
    """A run's result as if nothing had been pruned: the base against itself."""
    base = {name: test["base"] for name, test in summary["tests"].items()}
    return compare(base, base)


def row(label: str, value, runs: list[str], summaries: list[dict]) -> dict:
    """A row of a study: figures of the average and of each test, over seeds."""
    tests = {name: figures([s["tests"][name] for s in summaries]) for name in summaries[0]["tests"]}
    return {
        "label": label,
        "value": value,
        "runs": runs,
        "average": figures(summaries),
        "tests": tests,
        "inference": None,
    }


def figures(results: list[dict]) -> dict:
    """accuracy, mean_tokens, length_cut, accuracy_gain, aes: each the mean, the least and the most over seeds."""
    values = {
        "accuracy": [r["pruned"]["accuracy"] for r in results],
        "mean_tokens": [r["pruned"]["mean_tokens"] for r in results],
        "length_cut": [r["length_cut"] for r in results],
        "accuracy_gain": [r["accuracy_gain"] for r in results],
        "aes": [r["aes"] for r in results],
    }
    return {
        name: None if None in found else {"mean": mean(found), "low": min(found), "high": max(found)}
        for name, found in values.items()
    }


def share(part: str, done: list[Path], run: Path) -> None:
    """Give a run what an earlier one of the study has and what the same settings decide. The files are linked: they are
    never written to again, only replaced."""
    mine = read_json(run / "settings.json")
    for source in done:
        theirs = read_json(source / "settings.json")
        if (source / part).exists() and not (run / part).exists() and all(theirs[k] == mine[k] for k in SHARED[part]):
            partial = run / ".shared.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source / part, partial, copy_function=link)
            (run / part).parent.mkdir(exist_ok=True)
            os.replace(partial, run / part)


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def inference_times(
    open_job: Callable[[Recipe], Job], variants: list[Variant], folder: Path, resources: Resources
) -> dict[str, list[float]]:
    """label: seconds for the same prompts in TURNS turns, the checkpoints one after the other in each turn.

    All of seed 0, by one engine with the evaluation's sampling: the time differs by the lengths alone.
    """
    path = folder / "inference.json"
    labels = ["base", *(v.label for v in variants)]
    held = read_json(path) if path.exists() else {"times": {}}
    if list(held["times"]) == labels and held["place"] == str(resources):
        return held["times"]
    jobs = [open_job(variant.recipe) for variant in variants]
    timed = []  # label, job, checkpoint, problems
    for label, job in zip(labels, [jobs[0], *jobs]):
        test, checkpoint = [p for t in job.tests.values() for p in t[:TIMED_PROMPTS]], job.model
        if label != "base":
            test = job.instructed(test, training=False)
            checkpoint = Path(read_json(folder / "seed-0" / slug(label) / "result.json")["checkpoint"])
        timed.append((label, job, checkpoint, test))
    times: dict[str, list[float]] = {label: [] for label in labels}
    for _ in tqdm(range(TURNS), desc="inference time", unit="turn"):
        for label, job, checkpoint, test in timed:
            model, tokenizer = load(checkpoint, job.dtype, resources.device)
            prompts = [tokenizer.prompt(p.question, p.system) for p in test]
            engine = resources.engine(model, tokenizer, job.recipe.sampling.max_new_tokens)
            engine.generate(prompts[:1], replace(job.recipe.evaluation_params(), n=1, max_new_tokens=2))
            if resources.device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            engine.generate(prompts, job.recipe.evaluation_params())
            times[label].append(time.perf_counter() - start)
    write_json(path, {"place": str(resources), "times": times})
    return times
