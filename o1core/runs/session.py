"""A run from end to end: evaluate, sample, train, evaluate again, report; steps whose result exists are skipped.

A run lives in one folder (run_folder.py names what is in it), which is never shared by two runs.
"""

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ..distributed import check_tensors, load_part, processes
from ..errors import UserError
from ..evaluation import Evaluation, RunResult, compare, finished_evaluation, read_run_result
from ..model import Tokenizer, find_model, read_config
from ..policy import Policy, opening_ids
from ..recipe import MAY_CHANGE, Recipe
from ..records import to_json
from ..report import logged_steps, plot_run, tracked_result, write_cards
from ..rollout import Engine, map_large_tensors, write_samples
from ..run_folder import SIDES, RunFolder
from ..text import one_line
from ..training import load_optimiser_modules, open_tracker
from ..types import Problem
from .footprint import Workload
from .job import EMBEDDED, Job, resolve_dtype
from .loop import sample_round, train
from .plan import Plan, Resources, check_fits, plan_line, plan_run

log = logging.getLogger(__name__)


def open_tokenizer(checkpoint: Path, recipe: Recipe, day: str | None = None) -> Tokenizer:
    """A checkpoint's tokenizer, with the recipe's way to ask. day: what a chat template takes for today."""
    tokenizer = Tokenizer(checkpoint, read_config(checkpoint).vocab_size, recipe.prompt.template, day)
    tokenizer.find_tags(recipe.prompt.tags, recipe.prompt.system)
    return tokenizer


def open_policy(
    checkpoint: Path, dtype: torch.dtype, recipe: Recipe, where: Resources, tokenizer: Tokenizer | None = None
) -> Policy:
    """A checkpoint as a policy, with the recipe's way to ask and to judge. tokenizer: its own, where it is open already.

    Raises UserError naming the file and the field where the folder is not a whole checkpoint of a supported family, or the
    opening fills a completion.
    """
    longest = recipe.sampling.max_new_tokens
    tokenizer = tokenizer or open_tokenizer(checkpoint, recipe)
    model = load_part(checkpoint, dtype, where.device, where.team)
    engine = Engine(model, tokenizer, where.slots, where.team, where.pages)
    policy = Policy(checkpoint, model, tokenizer, engine, longest, grader=recipe.reward.grader)
    policy.truncated = "keep" if recipe.reward.truncated == "keep" else "wrong"  # masked ones are wrong too
    opening_ids(tokenizer, recipe.prompt.opening, longest)  # refused here, not after an evaluation
    return policy


def load(
    folder: Path | str = EMBEDDED,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    max_new_tokens: int = 2048,
    revision: str | None = None,
) -> Policy:
    """Open a Hugging Face folder as a policy, with its .model, .tokenizer and .engine. A name on the hub
    ("Qwen/Qwen3-0.6B") is downloaded into the hub's cache.

    dtype: a torch dtype or its name, default the one that config.json states. device: default the GPU where there is one.
    max_new_tokens: the longest completion where `sample` does not say. revision: of a name on the hub, a branch, a tag or a
    commit. Raises UserError naming the file and the field where the folder is not a whole checkpoint of a supported family,
    and as find_model does.
    """
    path = find_model(folder, revision).folder
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    compute = resolve_dtype(None if path == EMBEDDED else path, dtype) if isinstance(dtype, str) else dtype
    return open_policy(path, compute, Recipe.of(max_new_tokens=max_new_tokens), Resources(device))


@dataclass
class Session:
    """A job at work in its folder. The weights are read from disk when they are first needed, and again only where
    another checkpoint is asked for than the one in memory. The folder is claimed once they have been read: what cannot be
    opened leaves no trace."""

    job: Job
    run: RunFolder
    resources: Resources
    day: str = field(default="", init=False)  # that the run began on: chat templates may ask for it
    finished: bool = field(default=False, init=False)  # whether the run has come to its result
    claimed: bool = field(default=False, init=False)
    plan: Plan | None = field(default=None, init=False)  # that fits
    tokenizer: Tokenizer | None = field(default=None, init=False)  # of the job's model
    loaded: tuple[Path, Policy] | None = field(default=None, init=False)

    def open(self, checkpoint: Path) -> Policy:
        """The policy of a checkpoint."""
        if self.loaded is None or self.loaded[0] != checkpoint:
            self.loaded = None  # the old model goes before the new one comes
            if self.plan is None:
                self.check_memory(trains=False)
            tokenizer = self.tokenizer
            if checkpoint != self.job.model:
                tokenizer = open_tokenizer(checkpoint, self.job.recipe, self.day)
            policy = open_policy(checkpoint, self.job.dtype, self.job.recipe, self.resources, tokenizer)
            self.loaded = checkpoint, policy
            self.claim()
        return self.loaded[1]

    def ask_all(self) -> int:
        """Render every prompt of the run before its folder is claimed, so that what cannot be asked leaves no trace. Returns
        the tokens of the longest. Raises UserError that names the problem."""
        job, tokenizer = self.job, open_tokenizer(self.job.model, self.job.recipe, self.day)
        tests = [problem for test in job.tests.values() for problem in test]
        tests += job.validation
        asked = [*tests, *job.instructed(tests, training=False), *job.instructed(job.train, training=True)]
        # Without an instruction a test's problem is asked in one form alone, and each is rendered once.
        prompts = tokenizer.prompts(list(dict.fromkeys(asked)), read_config(job.model).max_positions)
        self.tokenizer = tokenizer
        log.info("thoughts stand between %s and %s", *map(" or ".join, (tokenizer.tags.opens, tokenizer.tags.closes)))
        return max(map(len, prompts), default=1)

    def check_memory(self, trains: bool = True) -> None:
        """Before the first weight is read: raise UserError where a file of them is not whole, a problem cannot be asked or
        the run cannot fit; else say what it needs, and settle the slots and the micro-batches."""
        job, config, where = self.job, read_config(self.job.model), self.resources
        check_tensors(job.model)
        longest = self.ask_all()
        trains = trains and not self.run.pruned_state()[1]
        if trains and where.device.type == "cpu":
            load_optimiser_modules()
        problems = len(job.train) if job.recipe.objective.kind != "none" else 0
        tested = max(map(len, [*job.tests.values(), job.validation]), default=0)
        workload = Workload.of(job.recipe, trains, longest, problems, tested)
        self.plan = plan = plan_run(replace(config, dtype=job.dtype), workload, where.machine(), where.slots)
        check_fits(plan)
        log.info("%s", plan_line(plan))
        if plan.tight and where.device.type == "cpu":
            map_large_tensors()
        self.resources = replace(where, slots=plan.slots, pages=plan.pages)
        if workload.trains and job.recipe.execution.micro_tokens is None:
            self.job, self.claimed = job.in_micro_batches(plan.micro_tokens), False  # the folder is told

    def check(self) -> None:
        """Claim a folder that was begun by this job. Raises UserError where it belongs to another one, or to a process at
        work in it."""
        self.day = self.run.held("day") or date.today().isoformat()
        cut = self.run.held("micro_tokens")  # another cut of the batches would change the last bits
        if cut is not None and self.job.recipe.execution.micro_tokens is None:
            self.job = self.job.in_micro_batches(cut)
        self.finished = self.run.check(*self._terms())
        if not self.finished and self.run.is_begun():
            self.claim()

    def claim(self) -> None:
        """Own the folder from here on; files may be written to it."""
        if not self.claimed:
            self.run.claim(*self._terms(), self.job.origin)
            self.claimed = True

    def _terms(self) -> tuple[dict[str, Any], frozenset[str], dict[str, Any]]:
        """What the folder is claimed for: settings, the names of those that may change, defaults of older folders."""
        here = {"device": str(self.resources.device), "threads": torch.get_num_threads(), "processes": processes()}
        here |= {"day": self.day, "torch": torch.__version__, "device_name": device_name(self.resources.device)}
        return self.job.settings | here, MAY_CHANGE | here.keys(), Recipe().to_json() | here

    def sample(self) -> None:
        """Sample the first round."""
        problems = self.job.instructed(self.job.train, training=True)
        policy = self.open(self.job.model)
        rollouts = sample_round(policy, problems, self.job.recipe, self.run, 0)
        write_samples(self.run.samples(0), rollouts.groups, problems, policy.tokenizer)

    def train(self, resume: bool) -> Path:
        """Train, sampling first what is missing; returns the pruned checkpoint's folder."""
        exists, done = self.run.pruned_state()
        if done:
            return self.run.pruned
        if exists:
            log.warning("%s: damaged or not finished; it is made again from the newest state", self.run.pruned)
            resume = True
        if self.plan is None:
            self.check_memory()
        policy, recipe, of = self.open(self.job.model), self.job.recipe, self.resources
        problems = self.job.instructed(self.job.train, training=True)
        held_out = self.job.instructed(self.job.validation, training=False)
        self.loaded = None  # where training fails, what is in memory is no checkpoint
        with open_tracker(of.tracker, self.run.path, recipe.to_json()) as send:
            pruned = train(policy, problems, recipe, self.run, resume, send, of.offload, held_out)
        self.run.alone(lambda: write_cards(self.run, self.job.model, None))
        if recipe.evaluation.keep == "last":
            self.loaded = pruned, policy  # training changed the weights in memory to those it saved
        return pruned

    def tell(self, result: RunResult) -> None:
        """Send the tracker what the run has come to, a step after the last. The run is done: what fails is a warning."""
        if self.resources.tracker is None:
            return
        step = max((line["step"] for line in logged_steps(self.run)), default=0) + 1
        try:
            with open_tracker(self.resources.tracker, self.run.path, self.job.recipe.to_json()) as send:
                send(step, tracked_result(self.run, result))
        except UserError as error:
            log.warning("%s", error)

    def evaluate(
        self, checkpoint: Path, tests: dict[str, list[Problem]], side: str, label: str
    ) -> dict[str, Evaluation]:
        """Evaluate a checkpoint on tests; returns each one's result."""
        results = {}
        for name, problems in tests.items():
            folder = self.run.evaluation(side, name)
            found = finished_evaluation(folder, problems)
            if found is None:
                params = self.job.recipe.evaluation_params()
                found = self.open(checkpoint).evaluate(problems, params, folder, f"{label}, {one_line(name)}")
            results[name] = found
        return results

    def evaluate_alone(self) -> Evaluation:
        """Evaluate the job's model alone, asked as the method asks, in a folder of its own."""
        (test,) = self.job.tests.values()
        problems, folder = self.job.instructed(test, training=False), self.run.own_evaluation
        found = finished_evaluation(folder, problems)
        if found is None:
            found = self.open(self.job.model).evaluate(problems, self.job.recipe.evaluation_params(), folder)
        return found


def device_name(device: torch.device) -> str:
    """What a reader of the run is told of the machine: the GPU's name, or the processor's kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


@contextmanager
def open_session(job: Job, run: RunFolder, resources: Resources) -> Iterator[Session]:
    """The job at work in its folder, which other processes are kept out of. Raises UserError where it belongs to another
    job, or a process is at work in it."""
    with run:
        session = Session(job, run, resources)
        session.check()
        yield session


def prune(job: Job, run: RunFolder, resources: Resources) -> RunResult:
    """The main job: evaluate, train, evaluate again, report. Returns what RUN/result.json says."""
    trains = job.recipe.objective.kind != "none"
    with open_session(job, run, resources) as session:
        if session.finished:
            return read_run_result(run.result)
        if trains:
            session.check_memory()
        before, after = SIDES
        last = job.recipe.phase()
        base = session.evaluate(job.model, job.tests, before, f"1/{last.partition('/')[2]} evaluate the base")
        checkpoint = session.train(resume=True) if trains else job.model
        tests = {name: job.instructed(test, training=False) for name, test in job.tests.items()}
        pruned = session.evaluate(checkpoint, tests, after, f"{last} evaluate the pruned")
        result = RunResult(compare(base, pruned), run.seconds(), str(checkpoint), session.job.settings)
        run.alone(lambda: write_cards(run, job.model, result))
        run.finish(to_json(result), lambda: plot_run(run, result))
        session.tell(result)
        return result
