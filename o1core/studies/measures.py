"""What a comparison of methods says beside AES: measures of the evaluations' completions, and what each method cost."""

from dataclasses import replace
from statistics import mean

import numpy as np

from ..evaluation import Cost, Measures, StudyResult, StudyRow, read_evaluation
from ..metrics import accuracy_within, budget_area, lengths_by_verdict, ockscore
from ..rollout import read_groups
from ..run_folder import SIDES, RunFolder
from ..training import read_log
from ..types import Group, lengths_and_verdicts
from .pruning import spread_of
from .study_folder import StudyFolder

CURVE_POINTS = 12  # budgets up to the evaluation's limit, each half of the second after it

Completions = tuple[np.ndarray, np.ndarray]  # lengths in tokens and verdicts, each [P, K]


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
    seeds = [[completions(run, side, test) for test in tests] for run in runs]
    by_verdict = [[lengths_by_verdict(*test) for test in seed] for seed in seeds]
    right = [[found for found, _ in seed if found is not None] for seed in by_verdict]
    wrong = [[found for _, found in seed if found is not None] for seed in by_verdict]
    curves = [accuracy_within(*test, budgets) for seed in seeds for test in seed]
    return Measures(
        ockscore=spread_of([mean(ockscore(float(c.mean()), float(n.mean())) for n, c in seed) for seed in seeds]),
        tokens_right=spread_of([mean(found) for found in right]) if all(right) else None,
        tokens_wrong=spread_of([mean(found) for found in wrong]) if all(wrong) else None,
        budget_area=spread_of([mean(budget_area(*test, longest) for test in seed) for seed in seeds]),
        budgets=budgets,
        accuracy_within=[mean(values) for values in zip(*curves)],
    )


def completions(run: RunFolder, side: str, test: str) -> Completions:
    return completions_of(read_groups(run.evaluation(side, test).rollouts))


def completions_of(groups: list[Group]) -> Completions:
    lengths, correct = lengths_and_verdicts(groups)
    return lengths.numpy(), correct.numpy()


def cost_of(runs: list[RunFolder]) -> Cost:
    """The cost of a method's runs, one run a seed."""
    found = [cost_of_run(run) for run in runs]
    seconds = [seconds for _, _, seconds in found if seconds is not None]
    return Cost(
        spread_of([samples for samples, _, _ in found]),
        spread_of([tokens for _, tokens, _ in found]),
        spread_of(seconds) if len(seconds) == len(found) else None,
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
