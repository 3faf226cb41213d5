"""The dial: one adapter, scaled from 0 to 1.5, is a family of models between the base, the pruned one and beyond.

A scale multiplies what the adapter adds to the weights: W + scale * (alpha / rank) B A. 0 is the base, 1 is RUN/pruned. Every
scale is evaluated on the run's tests, in RUN/dial/scale-S/TEST; an interrupted dial resumes. Left out on purpose: a scale for
each layer, which is a search.
"""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..evaluation import DialResult, DialRow, Evaluation, RunResult, compare, finished_evaluation, read_dial
from ..model import adapted, load_adapter
from ..policy import Policy, select
from ..report import dial_tables, plot_dial, write_card
from ..run_folder import SIDES, EvaluationFolder, RunFolder
from ..runs import Job, Resources, Session, open_session
from .study import StudyFolder, write_outputs


class Dial:
    """A run's adapter on its base. The weights are read when they are first needed."""

    def __init__(self, session: Session) -> None:
        self.session, self.run = session, session.run
        self.policy: Policy | None = None
        self.alphas: list[float] = []

    def at(self, scale: float) -> Policy:
        """The policy with the adapter at a scale."""
        if self.policy is None:
            self.policy = self.session.open(self.session.job.model)
            select(self.policy.model, self.session.job.recipe.optimiser)
            load_adapter(self.policy.model, self.run.adapter)
            self.alphas = [module.alpha for module in adapted(self.policy.model)]
        for module, alpha in zip(adapted(self.policy.model), self.alphas):
            module.alpha = scale * alpha
        return self.policy

    def evaluate(self, scale: float) -> dict[str, Evaluation]:
        """The evaluations of a scale on each test; those that are there already, of the run itself too, are read."""
        job, found = self.session.job, {}
        for name, test in job.tests.items():
            problems = job.instructed(test, training=False)
            mine = EvaluationFolder(self.run.dial(scale) / name)
            held = (
                finished_evaluation(folder, problems) for folder in [*self.same(scale, name, test == problems), mine]
            )
            label = f"evaluate scale {scale:g}, {name}"
            params = job.recipe.evaluation_params()
            found[name] = next(filter(None, held), None) or self.at(scale).evaluate(problems, params, mine, label)
        return found

    def same(self, scale: float, test: str, asked_alike: bool) -> list[EvaluationFolder]:
        """The run's own evaluation of the same weights: before and after training."""
        if scale == 1:
            return [self.run.evaluation(SIDES[1], test)]
        return [self.run.evaluation(SIDES[0], test)] if scale == 0 and asked_alike else []


def turn_dial(job: Job, run: RunFolder, scales: Sequence[float], resources: Resources) -> DialResult:
    """Evaluate a run's adapter at each scale, and at 0, against which the others are compared."""
    need_adapter(run)
    with open_session(job, run, resources) as session:
        dial = Dial(session)
        found = {scale: dial.evaluate(scale) for scale in sorted({0.0, *scales})}
        rows = [DialRow(scale, compare(found[0.0], evaluations)) for scale, evaluations in found.items()]
        session.claim()
        return write_outputs(StudyFolder(run.dials), DialResult(rows, job.settings), dial_tables, plot_dial)


def export_scale(job: Job, run: RunFolder, scale: float, resources: Resources) -> Path:
    """Write the merged checkpoint of one scale, with its card; returns its folder. It is left as it is where it exists."""
    need_adapter(run)
    folder = run.dial(scale) / "checkpoint"
    if folder.exists():
        return folder
    with open_session(job, run, resources) as session:
        Dial(session).at(scale).save(folder)
        rows = read_dial(run.dials / "result.json").rows if (run.dials / "result.json").exists() else []
        known = [row.comparison for row in rows if row.scale == scale]
        result = RunResult(known[0], 0.0, str(folder), job.settings) if known else None
        write_card(folder, run.read_settings() | {"scale": scale}, job.model, result)
    return folder


def need_adapter(run: RunFolder) -> None:
    if not run.adapter.is_dir():
        raise UserError(f"{run.path}: has no adapter to scale; `o1core prune --lora-rank 32 --out RUN` makes one")
