"""Sampling as a job: problems in, graded rollouts on disk out. An interrupted job resumes where its shards end."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..distributed import deal, meet, once
from ..errors import UserError
from ..grading import FAULTS, Attempt, Grader
from ..model import Tokenizer
from ..types import Completion, Group, Problem, Sample
from .engine import Engine
from .memory import keep_large_blocks
from .sampling import SamplingParams
from .store import read_groups, write_shard

log = logging.getLogger(__name__)

Finished = tuple[Problem, list[int], list[Completion]]  # a problem, its prompt's ids and what was sampled

# A shard is written after so many completions or seconds, whichever comes first: that is what a kill can lose.
SHARD_COMPLETIONS, SHARD_SECONDS = 2048, 60


def sample_problems(
    engine: Engine,
    tokenizer: Tokenizer,
    problems: list[Problem],
    params: SamplingParams,
    folder: Path,
    label: str,
    opening: str = "",
) -> list[Group]:
    """Sample params.n completions of each problem into `folder` and return them in the order of `problems`.

    opening: text that each completion begins with. Its tokens belong to the completion and count towards its limit; the
    sampler had no choice about them, so their log-probs are 0.

    Problems that the folder holds already are not sampled again. Ranks share the others, and read each other's from the
    folder, which all of them must see. Completions are graded a shard at a time; answers that hung or killed their
    grader count as wrong and are logged. The engine's cache is given back at the end. Raises UserError where a prompt
    does not fit the context, or the opening fills the limit.
    """
    done = {group.problem: group for group in read_groups(folder)}
    held = set(once(label, lambda: list(done)))  # no rank writes before all have read
    todo = [p for p in problems if p.id not in held]
    prompts = [tokenizer.prompt(p.question, p.system) for p in todo]
    begun = opening_ids(tokenizer, opening, params.max_new_tokens)
    params = replace(params, max_new_tokens=params.max_new_tokens - len(begun))
    pending: list[Finished] = []
    total = len(problems) * params.n
    written = time.monotonic()
    bar = tqdm(total=total, initial=total - len(todo) * params.n, desc=label, unit="sample")
    with keep_large_blocks(), Grader() as grader, bar:

        def flush() -> None:
            for group in grade_groups(grader, tokenizer, pending):
                done[group.problem] = group
            write_shard(folder, (done[problem.id] for problem, _, _ in pending))
            pending.clear()

        asked = [prompt + begun for prompt in prompts]
        for i, completions in engine.stream(asked, params, deal(len(prompts), engine.team)):
            if not engine.team.speaks:
                continue
            pending.append((todo[i], prompts[i], [continued(begun, c) for c in completions]))
            bar.update(params.n)
            if len(pending) * params.n >= SHARD_COMPLETIONS or time.monotonic() - written > SHARD_SECONDS:
                flush()
                written = time.monotonic()
        if pending:
            flush()
        engine.release()
        faults = {name: n for name, n in grader.counts.items() if name in (*FAULTS, "too long")}
    if faults:
        log.warning("%s: answers counted as wrong because of their grader: %s", label, faults)
    meet(label)
    if any(p.id not in done for p in problems):  # other ranks have sampled them
        done = {group.problem: group for group in read_groups(folder)}
    return [done[p.id] for p in problems]


def opening_ids(tokenizer: Tokenizer, opening: str, limit: int) -> list[int]:
    """The tokens of an opening. Raises UserError where they fill the limit of a completion, or cannot be encoded."""
    ids = tokenizer.encode(opening) if opening else []
    if len(ids) >= limit:
        raise UserError(f"--opening: its {len(ids)} tokens fill --max-new-tokens {limit}")
    return ids


def continued(begun: list[int], rest: Completion) -> Completion:
    """The completion that begins with tokens which were not sampled."""
    return replace(rest, ids=begun + rest.ids, logprobs=[0.0] * len(begun) + rest.logprobs)


def grade_groups(grader: Grader, tokenizer: Tokenizer, finished: list[Finished]) -> list[Group]:
    """Groups of (problem, prompt ids, completions), each completion with its verdict."""
    attempts = [
        Attempt(tokenizer.decode(c.ids), p.answer, p.task) for p, _, completions in finished for c in completions
    ]
    verdicts = iter(grader.grade_many(attempts))
    groups = []
    for problem, prompt, completions in finished:
        samples = []
        for c in completions:
            verdict = next(verdicts)
            ids, logprobs = torch.tensor(c.ids, dtype=torch.int32), torch.tensor(c.logprobs, dtype=torch.float32)
            samples.append(Sample(ids, logprobs, c.finish_reason, verdict.answer, verdict.correct))
        groups.append(Group(problem.id, torch.tensor(prompt, dtype=torch.int32), tuple(samples), problem.budget))
    return groups
