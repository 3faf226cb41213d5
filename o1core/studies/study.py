"""A study whose rows are runs: its variants of a recipe, a run for each variant and seed, and what they leave behind.

    study.json       which study it is          seed-0/LABEL/    a run for each variant and seed
    inference.json   times, of compare          result.json      the rows, with table.md and plot.png

What two runs have in common, the base's evaluation and the first round's samples, is made once and linked: those files are
never written to again, only replaced.
"""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ..errors import UserError
from ..evaluation import Comparison, DialResult, DisharmonyResult, Figures, Outcome, RunResult, StudyResult, StudyRow
from ..files import read_object, write_atomic, write_json, write_record
from ..metrics import Spread, over_seeds
from ..recipe import METHODS, Recipe
from ..records import to_json
from ..report import Table, plot_study, study_tables, to_markdown
from ..rewards import WITH_LAMBDA
from ..run_folder import SIDES, RunFolder, holds_something
from ..runs import Job, Resources, open_session, prune

OpenJob = Callable[[Recipe], Job]
Result = TypeVar("Result", StudyResult, DisharmonyResult, DialResult)

PROMPTING = (  # and how an answer is judged
    *("prompt", "system", "template", "thought_tags", "max_new_tokens", "top_p", "top_k", "seed"),
    *("truncated", "grader", "grader_print"),
)
BASE = SIDES[0]
DECIDED_BY = {  # a part of a run's folder: the settings that decide it
    BASE: ("model_print", "dtype", "tests", "eval_samples", "eval_temperature", *PROMPTING),
    "round-00/rollouts": (
        "model_print",
        "dtype",
        "train_print",
        "samples",
        "temperature",
        "instruction",
        "budget_low",
        "budget_high",
        "opening",
        *PROMPTING,
    ),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyFolder:
    """The paths of a study, whether they exist or not."""

    path: Path

    @property
    def study(self) -> Path:
        return self.path / "study.json"

    @property
    def inference(self) -> Path:
        return self.path / "inference.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def table(self) -> Path:
        return self.path / "table.md"

    @property
    def plot(self) -> Path:
        return self.path / "plot.png"

    def run_name(self, seed: int, label: str) -> str:
        """The path of a variant's run of a seed, as result.json has it."""
        return f"seed-{seed}/{label.replace(' ', '-')}"

    def run(self, seed: int, label: str) -> RunFolder:
        return RunFolder(self.path / self.run_name(seed, label))

    def claim(self, kind: str) -> None:
        """Make the folder a study's of this kind. Raises UserError where it holds something else."""
        held = read_object(self.study).get("study") if self.study.exists() else None
        if held not in (None, kind) or (held is None and holds_something(self.path)):
            raise UserError(f"{self.path}: is not empty and holds no study {kind}; choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.study, {"study": kind})


@dataclass(frozen=True)
class Variant:
    """One run of a study for each seed: its name in the table, its value on the plot's axis, and its settings."""

    label: str
    value: str | float | None
    recipe: Recipe


def lambda_variants(recipe: Recipe, values: str) -> list[Variant]:
    """A variant for each lambda; values: "0,1,2,5"."""
    texts = comma_list("--values", values)
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise UserError(f"--values: {values} is not a list of numbers, such as 0,1,2,5") from None
    objective, reward = recipe.objective.kind, recipe.reward.kind
    if objective != "surrogate" or reward not in WITH_LAMBDA:
        raise UserError(f"study lambda: {objective} with the reward {reward} has no lambda; choose another --method")
    if len({f"{value:g}" for value in numbers}) < len(numbers):
        raise UserError(f"--values: {values} repeats a value")
    return [Variant(f"lambda {value:g}", value, recipe.replace(lam=value)) for value in numbers]


def percentile_variants(recipe: Recipe, percentiles: str) -> list[Variant]:
    """A variant for each part of the problems by reference accuracy; percentiles: "0-40,30-70"."""
    if recipe.objective.kind == "none":
        raise UserError("study difficulty: --objective none trains on no problems; choose another --method")
    spans = comma_list("--percentiles", percentiles)
    return [Variant(f"percentiles {span}", span, recipe.replace(percentiles=span)) for span in spans]


def method_variants(methods: str, recipe_of: Callable[[str], Recipe]) -> list[Variant]:
    """A variant for each method; methods: "sft,dpo", or "all". One with the settings of an earlier one is left out and
    logged."""
    variants: list[Variant] = []
    for method in METHODS if methods == "all" else comma_list("--methods", methods):
        recipe = recipe_of(method)
        twin = next((v.label for v in variants if v.recipe == recipe), None)
        if twin is None:
            variants.append(Variant(method, method, recipe))
        else:
            log.warning("%s has the settings of %s under this recipe; it is run once", method, twin)
    return variants


def comma_list(flag: str, text: str) -> list[str]:
    """The parts of a comma-separated list. Raises UserError where it is empty or repeats a part."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or len(set(parts)) < len(parts):
        raise UserError(f"{flag}: {text!r} must be a comma-separated list without repeats")
    return parts


def run_study(
    kind: str, open_job: OpenJob, variants: list[Variant], seeds: int, path: Path, resources: Resources
) -> StudyResult:
    """The study `kind` (lambda, difficulty) in the folder `path`: returns what its result.json says."""
    result = run_variants(kind, open_job, variants, seeds, path, resources)
    return write_outputs(StudyFolder(path), result, study_tables, plot_study)


def run_variants(
    kind: str, open_job: OpenJob, variants: list[Variant], seeds: int, path: Path, resources: Resources
) -> StudyResult:
    """Prune under every variant and seed below the folder `path`; a run that is done is read. Returns the rows of a
    table, the base first, with means over seeds."""
    folder = StudyFolder(path)
    folder.claim(kind)
    found: dict[str, list[RunResult]] = {variant.label: [] for variant in variants}
    with tqdm(total=seeds * len(variants), desc=f"study {kind}", unit="run") as bar:
        for seed in range(seeds):
            done: list[RunFolder] = []
            for variant in variants:
                bar.set_postfix_str(f"seed {seed}, {variant.label}")
                run = folder.run(seed, variant.label)
                job = open_job(replace(variant.recipe, seed=variant.recipe.seed + seed))
                if done:  # before, nothing can be reused, and the checkpoint has not been opened yet
                    prepare(job, run, resources, done)
                found[variant.label].append(prune(job, run, resources))
                done.append(run)
                bar.update()
    return result_of(kind, folder, found, {variant.label: variant.value for variant in variants})


def prepare(job: Job, run: RunFolder, resources: Resources, done: list[RunFolder]) -> None:
    """Claim a run's folder and give it what it has in common with runs that are done."""
    with open_session(job, run, resources) as session:
        session.claim()
        reuse_parts(done, run)


def result_of(
    kind: str, folder: StudyFolder, found: dict[str, list[RunResult]], values: dict[str, str | float | None]
) -> StudyResult:
    """The study's result: the base's row, and one for each variant. found: label: the result of each seed; values: label:
    its place on a plot's axis."""
    first = next(iter(found.values()))
    rows = [study_row("base", None, [], [of_base(result.comparison) for result in first])]
    for label, results in found.items():
        names = [folder.run_name(seed, label) for seed in range(len(results))]
        rows.append(study_row(label, values[label], names, [result.comparison for result in results]))
    intervals = "seeds" if len(first) > 1 else "problems"
    return StudyResult(kind, list(first[0].comparison.tests), len(first), rows, first[0].settings, intervals)


def of_base(comparison: Comparison) -> Comparison:
    """The base beside itself, from which it differs in nothing."""

    def beside_itself(o: Outcome) -> Outcome:
        return Outcome(o.base, o.base, 0.0, 0.0, None if o.aes is None else 0.0)

    tests = {name: beside_itself(test) for name, test in comparison.tests.items()}
    return Comparison(beside_itself(comparison.average), tests)


def study_row(label: str, value: float | str | None, runs: list[str], found: list[Comparison]) -> StudyRow:
    """Figures of the average and of each test, over seeds."""
    tests = {name: figures_of([c.tests[name] for c in found]) for name in found[0].tests}
    return StudyRow(label, value, runs, figures_of([c.average for c in found]), tests)


def figures_of(outcomes: Sequence[Outcome]) -> Figures:
    """Each figure of one seed's outcome with its interval over problems, or of several seeds' with that over the seeds. aes
    is None where a seed has none."""
    if len(outcomes) == 1:
        (o,) = outcomes
        accuracy = Spread(o.pruned.accuracy, o.pruned.accuracy_low, o.pruned.accuracy_high)
        return Figures(accuracy, Spread(o.pruned.mean_tokens), o.cut, o.gain, o.score)
    scores = [o.aes for o in outcomes if o.aes is not None]
    return Figures(
        over_seeds([o.pruned.accuracy for o in outcomes], 0.0, 1.0),
        over_seeds([o.pruned.mean_tokens for o in outcomes], 0.0),
        over_seeds([o.length_cut for o in outcomes], most=1.0),
        over_seeds([o.accuracy_gain for o in outcomes], -1.0, 1.0),
        over_seeds(scores) if len(scores) == len(outcomes) else None,
    )


def reuse_parts(done: Sequence[RunFolder], run: RunFolder) -> None:
    """Give a run the parts that an earlier run has and that the same settings decide."""
    for part, names in DECIDED_BY.items():
        mine = run.read_settings()
        for source in done:
            theirs = source.read_settings()
            there, here = source.path / part, run.path / part
            if there.exists() and not here.exists() and all(theirs.get(name) == mine.get(name) for name in names):
                partial = run.path / ".shared.partial"
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(there, partial, copy_function=link)
                here.parent.mkdir(exist_ok=True)
                os.replace(partial, here)


def link(source: str | Path, target: str | Path) -> str:
    """A hard link, or a copy on a file system without links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return str(target)


def write_outputs(
    folder: StudyFolder, result: Result, tables: Callable[[Result], list[Table]], plot: Callable[[Result, Path], None]
) -> Result:
    """Write what a study leaves behind; result.json comes last."""
    text = "\n\n".join(map(to_markdown, tables(result))) + "\n"
    write_atomic(folder.table, lambda path: path.write_text(text, encoding="utf-8"))
    plot(result, folder.plot)
    write_record(folder.result, to_json(result))
    return result
