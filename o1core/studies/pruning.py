"""Runs under every variant and seed, and the rows of a table that they make."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from ..evaluation import Comparison, Figures, Outcome, RunResult, Spread, StudyResult, StudyRow, compare
from ..recipe import Recipe
from ..run_folder import RunFolder
from ..runs import Job, Resources, open_session, prune
from .reuse import reuse_parts
from .study_folder import StudyFolder
from .variants import Variant

OpenJob = Callable[[Recipe], Job]


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
    first = found[variants[0].label]
    rows = [study_row("base", None, [], [as_unpruned(result.comparison) for result in first])]
    for variant in variants:
        names = [folder.run_name(seed, variant.label) for seed in range(seeds)]
        comparisons = [result.comparison for result in found[variant.label]]
        rows.append(study_row(variant.label, variant.value, names, comparisons))
    return StudyResult(kind, list(first[0].comparison.tests), seeds, rows, first[0].settings)


def prepare(job: Job, run: RunFolder, resources: Resources, done: list[RunFolder]) -> None:
    """Claim a run's folder and give it what it has in common with runs that are done."""
    with open_session(job, run, resources) as session:
        session.claim()
        reuse_parts(done, run)


def as_unpruned(comparison: Comparison) -> Comparison:
    """The base against itself."""
    base = {name: test.base for name, test in comparison.tests.items()}
    return compare(base, base)


def study_row(label: str, value: float | str | None, runs: list[str], found: list[Comparison]) -> StudyRow:
    """Figures of the average and of each test, over seeds."""
    tests = {name: figures_over_seeds([c.tests[name] for c in found]) for name in found[0].tests}
    return StudyRow(label, value, runs, figures_over_seeds([c.average for c in found]), tests)


def figures_over_seeds(outcomes: list[Outcome]) -> Figures:
    """Each figure of several seeds' outcomes. aes is None where a seed has none."""
    scores = [o.aes for o in outcomes if o.aes is not None]
    return Figures(
        spread_of([o.pruned.accuracy for o in outcomes]),
        spread_of([o.pruned.mean_tokens for o in outcomes]),
        spread_of([o.length_cut for o in outcomes]),
        spread_of([o.accuracy_gain for o in outcomes]),
        spread_of(scores) if len(scores) == len(outcomes) else None,
    )


def spread_of(values: list[float]) -> Spread:
    """The mean, the least and the most."""
    return Spread(mean(values), min(values), max(values))
