"""A policy and its trainer: what samples and is evaluated, and what changes its weights.

    policy = o1core.load("Qwen3-1.7B")
    trainer = o1core.Trainer(policy, lr=2e-7)
    rollouts = policy.sample(problems, n=16)
    for batch in rollouts.score("length-harmonizing").pick(2).split(32):
        print(trainer.step(batch))
    policy.save("pruned")

`o1core prune` is made of the same two. In one process what is sampled from and what is trained are one model. Of many
processes each trains its shards, and samples from a plain copy of all weights (or with --tensor-parallel of a part), which
gets the trained weights whenever something is sampled.
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from .choices import Offload
from .distributed import allot_weights, copy_weights, drop_weights, export_checkpoint, trained_model
from .errors import UserError
from .evaluation import MOSTLY, Evaluation, evaluation_of
from .grading import FAULTS, Attempt, Grader, leaves_thought_open
from .model import (
    Tokenizer,
    Transformer,
    adapted,
    add_adapters,
    draw_adapters,
    fold_adapters,
    merged_weights,
    read_config,
)
from .recipe import OptimiserSettings, Recipe, most_micro_tokens
from .records import to_json
from .rollout import (
    Engine,
    RolloutFolder,
    SamplingParams,
    folder_or_temporary,
    keep_large_tensors,
    problems_held,
    write_samples,
)
from .run_folder import EvaluationFolder
from .seeds import seed_of
from .training import Objective, Rollouts, Updater, reference_logprobs, sampler_logprobs, select_trained
from .types import Completion, Example, Group, Problem, Sample

log = logging.getLogger(__name__)

# A shard is written after so many completions or seconds, whichever comes first: that is what a kill can lose.
SHARD_COMPLETIONS, SHARD_SECONDS = 2048, 60

Finished = tuple[Problem, list[int], list[Completion]]  # a problem, its prompt's ids and what was sampled


@dataclass(eq=False)
class Policy:
    """A checkpoint at work.

    folder: where it was read from; model: what samples; trained: what a Trainer changes, the same in one process.
    truncated: "wrong", or "keep" as graded what ran out of tokens; grader: FILE.py:function, one of
    your own. longest: the most new tokens of a completion where a call does not say.
    """

    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    engine: Engine
    longest: int
    truncated: Literal["wrong", "keep"] = "wrong"
    grader: str | None = None
    reference_by: str = "trainer"  # or "sampler": whose they are
    replay_router: bool = False  # whether they are computed by the experts that sampled
    trained: Transformer = field(init=False)
    micro_tokens: int = field(init=False)  # of a forward pass for reference log-probs
    steps: int = field(default=0, init=False)  # how often a Trainer has changed the weights
    # What a trainer wraps around sampling, so that the model samples with the trained weights.
    sampling: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, init=False)

    def __post_init__(self) -> None:
        self.trained = self.model
        self.micro_tokens = most_micro_tokens(self.model.embed.is_cuda)

    def sample(
        self,
        problems: list[Problem],
        params: SamplingParams | None = None,
        folder: Path | str | None = None,
        label: str = "sample",
        opening: str = "",
        routes: bool = True,
        **settings: Any,
    ) -> Rollouts:
        """Sample and grade n completions of each problem.

        params: how to sample, or `settings` of SamplingParams such as n=16. folder: keeps them; problems that it holds are
        not sampled again, so an interrupted call resumes. opening: text that each completion begins with; its tokens count
        towards the limit, and since the sampler had no choice about them their log-probs are 0. routes: whether a mixture's
        experts are kept beside the tokens, for an update.

        Ranks share the problems, and read each other's from the folder, which all of them must see. Completions are
        graded a shard at a time; answers that hung or killed their grader count as wrong and are logged. The engine's
        cache is given back at the end. Raises UserError where a prompt does not fit the context, the opening fills the
        limit, or the folder was begun with other settings or after another number of steps.
        """
        params = params or SamplingParams(**{"max_new_tokens": self.longest} | settings)
        if len({problem.id for problem in problems}) < len(problems):
            raise UserError(f"{label}: two problems have one id; give each its own")
        begin = opening_ids(self.tokenizer, opening, params.max_new_tokens)
        made_with = {"steps": self.steps, "opening": opening} | vars(params)
        with folder_or_temporary(folder, label) as path, self.sampling(), merged_weights(self.model):
            store = RolloutFolder(path, label, made_with)
            self._sample([p for p in problems if p.id not in store.held], params, store, begin, len(problems), routes)
            groups = store.whole([p.id for p in problems])
        return Rollouts(groups, params.max_new_tokens, self._reference(self.steps, opening))

    def _sample(
        self,
        todo: list[Problem],
        params: SamplingParams,
        store: RolloutFolder,
        begin: list[int],
        total: int,
        routes: bool,
    ) -> None:
        """Add to the store what it lacks: `todo` of `total` problems. begin: the opening's tokens."""
        prompts = self.tokenizer.prompts(todo, self.model.config.max_positions)
        sampled = dataclasses.replace(params, max_new_tokens=params.max_new_tokens - len(begin))
        pending: list[Finished] = []
        seen: Counter[str] = Counter()  # for the bar
        written = time.monotonic()
        done = (total - len(todo)) * params.n
        bar = tqdm(total=total * params.n, initial=done, desc=store.label, unit="sample")
        grader = Grader(tags=self.tokenizer.tags, truncated=self.truncated, function=self.grader)
        stream = self.engine.stream_dealt([prompt + begin for prompt in prompts], sampled)
        with keep_large_tensors(), grader, bar, closing(stream):

            def show() -> None:
                right = f", {seen['right'] / seen['graded']:.0%} right" if seen["graded"] else ""
                bar.set_postfix_str(f"{seen['tokens'] / seen['sampled']:.0f} tokens{right}", refresh=False)

            def flush() -> None:
                groups = self.grade(grader, pending)
                verdicts = [s.correct for group in groups for s in group.samples]
                seen.update(graded=len(verdicts), right=sum(verdicts))
                show()
                store.add(groups)
                pending.clear()

            for i, completions in stream:
                pending.append((todo[i], prompts[i], [begun_with(begin, c, routes) for c in completions]))
                seen.update(sampled=params.n, tokens=sum(len(begin) + len(c.ids) for c in completions))
                show()
                bar.update(params.n)
                if len(pending) * params.n >= SHARD_COMPLETIONS or time.monotonic() - written > SHARD_SECONDS:
                    flush()
                    written = time.monotonic()
            if pending:
                flush()
        self.engine.release()
        if faults := {name: n for name, n in grader.counts.items() if name in (*FAULTS, "too long")}:
            log.warning("%s: answers counted as wrong because of their grader: %s", store.label, faults)

    def grade(self, grader: Grader, finished: list[Finished]) -> list[Group]:
        """Groups of what was sampled, each completion with its verdict."""
        attempts = []
        for p, prompt, completions in finished:
            in_thought = leaves_thought_open(self.tokenizer.decode(prompt, special=True), self.tokenizer.tags)
            for c in completions:
                text, cut_off = self.tokenizer.decode(c.ids), c.finish_reason == "length"
                attempts.append(Attempt(text, p.answer, p.task, p, in_thought, cut_off))
        verdicts = iter(grader.grade_many(attempts))
        groups = []
        for problem, prompt, completions in finished:
            samples = []
            for c in completions:
                verdict = next(verdicts)
                ids, logprobs = torch.tensor(c.ids, dtype=torch.int32), torch.tensor(c.logprobs, dtype=torch.float32)
                samples.append(Sample(ids, logprobs, c.finish_reason, verdict.answer, verdict.correct, c.routes))
            groups.append(Group(problem.id, torch.tensor(prompt, dtype=torch.int32), tuple(samples), problem.budget))
        return groups

    def evaluate(
        self,
        problems: list[Problem],
        params: SamplingParams | None = None,
        folder: EvaluationFolder | None = None,
        label: str = "evaluate",
        **settings: Any,
    ) -> Evaluation:
        """Accuracy and tokens on problems: greedy, or of n samples each with n=4, temperature=0.6.

        folder: keeps problems, rollouts and result. Its seconds and tokens_per_second count what this call sampled.
        """
        params = params or SamplingParams(**{"max_new_tokens": self.longest, "temperature": 0.0} | settings)
        if folder is not None:
            folder.begin(problems)
        held = set() if folder is None else problems_held(folder.rollouts)
        start = time.perf_counter()
        rollouts = self.sample(problems, params, None if folder is None else folder.rollouts, label, routes=False)
        seconds = time.perf_counter() - start
        sampled = sum(s.length for g in rollouts.groups if g.problem not in held for s in g.samples)
        found = evaluation_of(rollouts.groups, seconds, sampled)
        warn_of_cuts(label, found.truncated, params.max_new_tokens)
        if folder is not None:
            write_samples(folder.samples, rollouts.groups, problems, self.tokenizer)
            folder.finish(to_json(found))
        return found

    def save(self, folder: Path | str) -> None:
        """Write the trained weights, adapters merged, as a Hugging Face folder in the dtype that computes, the rest copied
        from where the policy was read."""
        export_checkpoint(self.trained, self.folder, Path(folder), self.model.embed.dtype)

    def reference(self, examples: list[Example]) -> list[Tensor]:
        """float32 log-probs [L] of each example under the weights as they are, by the trainer's forward; or with reference_by
        "sampler" its own, where both agree. Raises UserError where it kept none."""
        by_trainer = partial(
            reference_logprobs,
            self.trained,
            self.tokenizer.size,
            micro_tokens=self.micro_tokens,
            replay=self.replay_router,
        )
        return sampler_logprobs(examples, by_trainer) if self.reference_by == "sampler" else by_trainer(examples)

    def _reference(self, steps: int, opening: str) -> Callable[[list[Example]], list[Tensor]]:
        def of_the_sampler(examples: list[Example]) -> list[Tensor]:
            if self.steps != steps:
                raise UserError(
                    "the policy was trained after it had sampled these rollouts; call split, which computes their reference "
                    "log-probs, before the first step"
                )
            if opening and self.reference_by == "sampler":
                raise UserError(
                    '--reference sampler: did not choose the tokens of the opening; use reference="trainer"'
                )
            return self.reference(examples)

        return of_the_sampler


def warn_of_cuts(label: str, truncated: float, limit: int) -> None:
    """Say so where most completions were cut off: their accuracy then says more about the limit than about the policy."""
    if truncated > MOSTLY:
        log.warning(
            "%s: %.0f %% of the completions were cut off at %d tokens; raise --max-new-tokens",
            label,
            100 * truncated,
            limit,
        )


def opening_ids(tokenizer: Tokenizer, opening: str, limit: int) -> list[int]:
    """The tokens of an opening. Raises UserError where they fill the limit of a completion, or cannot be encoded."""
    ids = tokenizer.encode(opening) if opening else []
    if len(ids) >= limit:
        raise UserError(f"--opening: its {len(ids)} tokens fill --max-new-tokens {limit}")
    return ids


def begun_with(begin: list[int], rest: Completion, routes: bool) -> Completion:
    """The completion that begins with tokens which were not sampled. routes: whether it keeps them."""
    logprobs = [0.0] * len(begin) + rest.logprobs
    return dataclasses.replace(rest, ids=begin + rest.ids, logprobs=logprobs, routes=rest.routes if routes else None)


class Trainer:
    """Trains a policy, a batch a step."""

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe | None = None,
        *,
        objective: str | Objective | None = None,
        optimiser: str | Callable[[dict[str, Tensor]], torch.optim.Optimizer] | None = None,
        offload: Offload = "none",
        **settings: Any,
    ) -> None:
        """recipe: its objective, optimiser and execution settings; `settings` override single ones, by the names of the
        flags (lr=2e-7, ratio="token", lora_rank=16). objective, optimiser: a name, or one of your own: an Objective
        (training/objectives.py), a function from {name: fp32 weight} to a torch optimiser. offload: what waits in the
        host's memory while something is sampled.

        Raises UserError where the model has fewer layers than are trained, or the objective trains nothing.
        """
        named = {"objective": objective, "optimiser": optimiser}
        recipe = (recipe or Recipe()).replace(**settings | {k: v for k, v in named.items() if isinstance(v, str)})
        if adapted(policy.trained):
            raise UserError("the policy has adapters that another Trainer trains; call its finish() first")
        self.policy, self.offload, self.lr = policy, offload, recipe.optimiser.lr
        model = trained_model(policy.model, policy.folder, lambda model: select(model, recipe.optimiser))
        draw_adapters(model, seed_of(recipe.seed, "adapters"))
        self.updater = Updater(
            model,
            policy.tokenizer.size,
            recipe.objective if objective is None or isinstance(objective, str) else objective,
            recipe.optimiser,
            recipe.execution,
            None if isinstance(optimiser, str) else optimiser,
        )
        policy.trained, policy.sampling = model, self.sampling
        policy.micro_tokens, policy.reference_by = self.updater.micro_tokens, recipe.objective.reference
        policy.replay_router = recipe.optimiser.replay_router

    def step(self, batch: list[Example], lr: float | None = None) -> dict[str, float]:
        """One optimiser step on a batch of rollouts.score(...).pick(...).split(...). lr: default the optimiser's.

        Returns the metrics from before the step: loss, ratio_mean, ratio_max, clip_fraction, approx_kl (nats a token) and
        grad_norm. Raises UserError, with the weights as they were, where the loss or the gradient is not finite.
        """
        metrics = self.updater.step(batch, self.lr if lr is None else lr)
        self.policy.steps += 1
        return metrics

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, the policy's model has the trained weights, and the update leaves room for it; afterwards its memory is
        given back where another one is trained."""
        policy = self.policy
        if policy.model is not policy.trained:
            self.hand_over()
        try:
            with self.updater.resting(self.offload):
                yield
        finally:
            if policy.model is not policy.trained:
                drop_weights(policy.model)

    def hand_over(self) -> None:
        """Give the policy's model the trained weights."""
        policy = self.policy
        allot_weights(policy.model)
        copy_weights(policy.trained, read_config(policy.folder), policy.model, policy.engine.team)

    def finish(self) -> None:
        """The policy's model is the trained one from here on, adapters merged for good."""
        if self.policy.model is self.policy.trained:
            fold_adapters(self.policy.model)
        else:
            self.hand_over()
        self.policy.sampling = nullcontext


def select(model: Transformer, settings: OptimiserSettings) -> None:
    """Choose the weights that are trained; with --lora-rank, those of adapters that are added here and still undrawn."""
    if settings.lora_rank is not None:
        of = settings
        add_adapters(model, settings.lora_rank, of.lora_alpha, of.lora_targets, of.train_last_layers, of.lora_experts)
    select_trained(model, settings.train_last_layers, settings.train_router)
