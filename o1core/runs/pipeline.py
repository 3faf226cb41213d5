"""A run from end to end: evaluate, sample, train, evaluate again, report; steps whose result exists are skipped.

A run lives in one folder (run_folder.py names what is in it), which is never shared by two runs.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..distributed import is_lead, load_part, meet, neighbours, once, processes, together
from ..evaluation import Evaluation, RunResult, compare, evaluate, finished_evaluation, read_run_result
from ..files import write_record
from ..model import Tokenizer, open_tensors, read_config
from ..recipe import MAY_CHANGE, Recipe
from ..report import plot_run
from ..rollout import Engine, free_memory, map_large_blocks, opening_ids
from ..run_folder import SIDES, RunFolder
from ..run_lock import RunLock
from ..text import one_line
from ..training import is_intact, load_optimiser_modules, open_tracker, sample_round, train
from ..typed_json import to_json
from ..types import Problem
from .footprint import Machine
from .job import Job
from .plan import check_fits, plan_lines, plan_run
from .resources import Resources

log = logging.getLogger(__name__)


@dataclass
class Session:
    """A job at work in its folder. The weights are read from disk when they are first needed, and again only where
    another checkpoint is asked for than the one in memory. The folder is claimed once they have been read: what cannot be
    opened leaves no trace."""

    job: Job
    run: RunFolder
    resources: Resources
    lock: RunLock
    finished: bool = field(default=False, init=False)  # whether the run has come to its result
    claimed: bool = field(default=False, init=False)
    planned: bool = field(default=False, init=False)  # whether the memory was found to be enough
    loaded: tuple[Path, Engine, Tokenizer] | None = field(default=None, init=False)

    def open(self, checkpoint: Path) -> tuple[Engine, Tokenizer]:
        """The engine and tokenizer of a checkpoint."""
        if self.loaded is None or self.loaded[0] != checkpoint:
            self.loaded = None  # the old model goes before the new one comes
            tokenizer = Tokenizer(checkpoint, read_config(checkpoint).vocab_size)
            where, longest = self.resources, self.job.recipe.sampling.max_new_tokens
            opening_ids(tokenizer, self.job.recipe.prompt.opening, longest)  # refused here, not after an evaluation
            model = together("the model", lambda: load_part(checkpoint, self.job.dtype, where.device, where.team))
            self.loaded = checkpoint, where.engine(model, tokenizer, longest), tokenizer
            self.claim()
        return self.loaded[1:]

    def check_memory(self) -> None:
        """Before the first weight is read: raise UserError where a file of them is not whole or training cannot fit, else say
        what the run needs, and decide the slots. Processes on a CPU share its memory; the one that has least decides."""
        config, device = read_config(self.job.model), self.resources.device
        together("the model", lambda: open_tensors(self.job.model, config))
        machine = Machine(processes(), device.type == "cuda", self.resources.team.members, self.resources.offload)
        if not machine.cuda:
            load_optimiser_modules()
        free = min(meet("the memory", free_memory(device) // (1 if machine.cuda else neighbours())))
        plan = plan_run(config, self.job.recipe, self.job.dtype, free, machine, self.resources.slots)
        check_fits(config, plan, self.job.dtype)
        for line in plan_lines(plan):
            log.info("%s", line)
        if plan.tight and not machine.cuda:
            map_large_blocks()
        self.resources = replace(self.resources, slots=plan.slots, pages=plan.pages)
        self.planned = True

    def check(self) -> None:
        """Raise UserError where the folder belongs to another job, or to a process at work in it."""
        self.finished = once("the run's folder", self._check)

    def _check(self) -> bool:
        held = self.run.check(*self._terms())
        finished = self.run.result.exists() and held.get("rounds") == self.job.recipe.sampling.rounds
        if held and not finished:
            self.lock.acquire()
        return finished

    def claim(self) -> None:
        """Own the folder from here on; files may be written to it."""
        if not self.claimed:
            once("the run's folder", self._claim)
            self.claimed = True

    def _claim(self) -> None:
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.lock.acquire()
        if self.lock.killed is not None:
            log.warning(
                "%s: the last process here (%d) ended without a word. If the machine ran out of memory, use a smaller "
                "--micro-tokens or --slots, or --checkpointing",
                *(self.run.path, self.lock.killed),
            )
        self.run.claim(*self._terms(), self.job.model)

    def _terms(self) -> tuple[dict[str, Any], frozenset[str], dict[str, Any]]:
        """What the folder is claimed for: settings, the names of those that may change, defaults of older folders."""
        here = {"device": str(self.resources.device), "threads": torch.get_num_threads(), "processes": processes()}
        return self.job.settings | here, MAY_CHANGE | here.keys(), Recipe().to_json() | here

    def sample(self) -> None:
        """Sample the first round."""
        engine, tokenizer = self.open(self.job.model)
        problems = self.job.instructed(self.job.train, training=True)
        sample_round(engine, tokenizer, problems, self.job.recipe, self.run, 0)

    def train(self, resume: bool) -> Path:
        """Train, sampling first what is missing; returns the pruned checkpoint's folder."""
        exists, done = once("the pruned checkpoint", self._pruned)
        if done:
            return self.run.pruned
        if exists:
            log.warning("%s: damaged or not finished; it is made again from the newest state", self.run.pruned)
            resume = True
        if not self.planned:
            self.check_memory()
        engine, tokenizer = self.open(self.job.model)
        problems = self.job.instructed(self.job.train, training=True)
        recipe = self.job.recipe
        offload = self.resources.offload
        with open_tracker(self.resources.tracker if is_lead() else None, self.run.path, recipe.to_json()) as send:
            pruned = train(engine, tokenizer, self.job.model, problems, recipe, self.run, resume, send, offload)
        self.loaded = pruned, engine, tokenizer  # training changed the weights in memory to those it saved
        return pruned

    def _pruned(self) -> tuple[bool, bool]:
        """Whether there is a pruned checkpoint, and whether it is whole."""
        exists = self.run.pruned.exists()
        return exists, exists and (is_intact(self.run) or not self.run.states())

    def evaluate(
        self, checkpoint: Path, tests: dict[str, list[Problem]], side: str, label: str
    ) -> dict[str, Evaluation]:
        """Evaluate a checkpoint on tests; returns each one's result."""
        results = {}
        for name, problems in tests.items():
            folder = self.run.evaluation(side, name)
            found = finished_evaluation(folder, problems)
            if found is None:
                engine, tokenizer = self.open(checkpoint)
                params = self.job.recipe.evaluation_params()
                found = evaluate(engine, tokenizer, problems, params, folder, f"{label}, {one_line(name)}")
            results[name] = found
        return results

    def evaluate_alone(self) -> Evaluation:
        """Evaluate the job's model alone, asked as the method asks, in a folder of its own."""
        (test,) = self.job.tests.values()
        problems, params = self.job.instructed(test, training=False), self.job.recipe.evaluation_params()
        found = finished_evaluation(self.run.own_evaluation, problems)
        if found is None:
            engine, tokenizer = self.open(self.job.model)
            found = evaluate(engine, tokenizer, problems, params, self.run.own_evaluation, "evaluate")
        return found


@contextmanager
def open_session(job: Job, run: RunFolder, resources: Resources) -> Iterator[Session]:
    """The job at work in its folder, which other processes are kept out of. Raises UserError where it belongs to another
    job, or a process is at work in it."""
    with RunLock(run.lock) as lock:
        session = Session(job, run, resources, lock)
        session.check()
        yield session


def prune(job: Job, run: RunFolder, resources: Resources) -> RunResult:
    """The main job. Returns what RUN/result.json says."""
    start = time.perf_counter()
    with open_session(job, run, resources) as session:
        if session.finished:
            return read_run_result(run.result)
        if once("the run's folder", run.settings.exists):
            session.claim()
        if job.recipe.objective.kind != "none":
            session.check_memory()
        before, after = SIDES
        base = session.evaluate(job.model, job.tests, before, "evaluate the base")
        trains = job.recipe.objective.kind != "none"
        checkpoint = session.train(resume=True) if trains else job.model
        tests = {name: job.instructed(test, training=False) for name, test in job.tests.items()}
        pruned = session.evaluate(checkpoint, tests, after, "evaluate the pruned")
        seconds = time.perf_counter() - start  # of this call: an interrupted run counts only its last part
        result = RunResult(compare(base, pruned), seconds, str(checkpoint), job.settings)
        once("the plot", lambda: plot_run(run, result))
        once("the result", lambda: write_record(run.result, to_json(result)))
        return result
