"""A run from end to end: evaluate, sample, train, evaluate again, report; steps whose result exists are skipped.

A run lives in one folder (run_folder.py names what is in it), which is never shared by two runs.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation import Evaluation, RunResult, compare, evaluate, read_evaluation, read_run_result
from ..files import write_json
from ..model import Tokenizer, load
from ..problems import Problem
from ..report import plot_run
from ..rollout import Engine
from ..run_folder import SIDES, RunFolder
from ..text import one_line
from ..training import open_tracker, sample_round, train
from ..typed_json import to_json
from .job import Job
from .resources import Resources


@dataclass
class Session:
    """A job at work. The weights are read from disk when they are first needed, and again only where another checkpoint
    is asked for than the one in memory."""

    job: Job
    run: RunFolder
    resources: Resources
    loaded: tuple[Path, Engine, Tokenizer] | None = field(default=None, init=False)

    def open(self, checkpoint: Path) -> tuple[Engine, Tokenizer]:
        """The engine and tokenizer of a checkpoint."""
        if self.loaded is None or self.loaded[0] != checkpoint:
            self.loaded = None  # the old model goes before the new one comes
            model, tokenizer = load(checkpoint, self.job.dtype, self.resources.device)
            longest = self.job.recipe.sampling.max_new_tokens
            self.loaded = checkpoint, self.resources.engine(model, tokenizer, longest), tokenizer
        return self.loaded[1:]

    def sample(self) -> None:
        """Sample the first round."""
        engine, tokenizer = self.open(self.job.model)
        problems = self.job.instructed(self.job.train, training=True)
        sample_round(engine, tokenizer, problems, self.job.recipe, self.run, 0)

    def train(self, resume: bool) -> Path:
        """Train, sampling first what is missing; returns the pruned checkpoint's folder."""
        if self.run.pruned.exists():
            return self.run.pruned
        engine, tokenizer = self.open(self.job.model)
        problems = self.job.instructed(self.job.train, training=True)
        recipe = self.job.recipe
        with open_tracker(self.resources.tracker, self.run.path, recipe.to_json()) as send:
            pruned = train(engine, tokenizer, self.job.model, problems, recipe, self.run, resume, send)
        self.loaded = pruned, engine, tokenizer  # training changed the weights in memory to those it saved
        return pruned

    def evaluate(
        self, checkpoint: Path, tests: dict[str, list[Problem]], side: str, label: str
    ) -> dict[str, Evaluation]:
        """Evaluate a checkpoint on tests; returns each one's result."""
        results = {}
        for name, problems in tests.items():
            folder = self.run.evaluation(side, name)
            if folder.result.exists():
                results[name] = read_evaluation(folder.result)
            else:
                engine, tokenizer = self.open(checkpoint)
                params = self.job.recipe.evaluation_params()
                results[name] = evaluate(engine, tokenizer, problems, params, folder, f"{label}, {one_line(name)}")
        return results

    def evaluate_alone(self) -> Evaluation:
        """Evaluate the job's model alone, asked as the method asks, in a folder of its own."""
        (test,) = self.job.tests.values()
        engine, tokenizer = self.open(self.job.model)
        problems, params = self.job.instructed(test, training=False), self.job.recipe.evaluation_params()
        return evaluate(engine, tokenizer, problems, params, self.run.own_evaluation, "evaluate")


def open_session(job: Job, run: RunFolder, resources: Resources) -> Session:
    """Claim the folder for the job. Raises UserError where it belongs to another."""
    run.claim(job.settings, job.model)
    return Session(job, run, resources)


def prune(job: Job, run: RunFolder, resources: Resources) -> RunResult:
    """The main job. Returns what RUN/result.json says."""
    start = time.perf_counter()
    session = open_session(job, run, resources)
    if run.result.exists():
        return read_run_result(run.result)
    before, after = SIDES
    base = session.evaluate(job.model, job.tests, before, "evaluate the base")
    trains = job.recipe.objective.kind != "none"
    checkpoint = session.train(resume=bool(run.states())) if trains else job.model
    tests = {name: job.instructed(test, training=False) for name, test in job.tests.items()}
    pruned = session.evaluate(checkpoint, tests, after, "evaluate the pruned")
    seconds = time.perf_counter() - start  # of this call: an interrupted run counts only its last part
    result = RunResult(compare(base, pruned), seconds, str(checkpoint), job.settings)
    plot_run(run, result)
    write_json(run.result, to_json(result))
    return result
