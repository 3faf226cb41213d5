"""A completion depends on (seed, prompt, sample index) alone, to the bit, at real widths.

    python -m tests.campaigns bits [--prompts 12 --samples 8 --new-tokens 24 --layers 1] [--vocab 151936]

A random model of 896 / 4864 / 151936 (Qwen2.5-0.5B) in bf16 and fp32, with 1 and 2 threads, samples the same completions
with 64 slots, with 8, with 96, in reversed order, each prompt alone, and as a job that is killed with SIGKILL after a
shard and resumed. Prints a table of completions and of those whose ids or log-probs differ from the first way's.
"""

import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from o1core import Completion, Engine, SamplingParams, Transformer, policy
from o1core.model import ModelConfig, initialise
from o1core.rollout import read_groups
from o1core.types import Problem

from .harness import in_a_child, start_child

WIDTHS = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "ffn_size": 4864,
    "num_heads": 14,
    "num_kv_heads": 2,
    "head_dim": 64,
    "tied": True,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = ("8 slots", "96 slots", "reversed", "alone", "killed")


class Words:
    """A tokenizer of `size` tokens that are numbers; a prompt's tokens follow from the question alone."""

    def __init__(self, size: int) -> None:
        self.size, self.eos_ids = size, (0,)

    def prompt(self, question: str, system: str | None = None) -> list[int]:
        generator = torch.Generator().manual_seed(int(question))
        return torch.randint(1, 250, (5 + 17 * int(question) % 120,), generator=generator).tolist()

    def decode(self, ids: list[int], special: bool = False) -> str:
        return " ".join(map(str, ids))


def real_widths(dtype: torch.dtype, layers: int, vocab: int = WIDTHS["vocab_size"]) -> Transformer:
    """A random model whose attention and MLP count: its logits differ with all of a prompt."""
    shape = WIDTHS | {"vocab_size": vocab, "num_layers": layers, "max_positions": 4096}
    config = ModelConfig(architecture="Qwen2ForCausalLM", norm_eps=1e-6, rope_theta=1e6, dtype=dtype, **shape)
    model = Transformer(config)
    initialise(model, seed=0, std=0.05)
    return model.to(dtype)


@dataclass(frozen=True)
class Case:
    """What a child process samples."""

    dtype: str
    threads: int
    prompts: int = 12
    samples: int = 8
    new_tokens: int = 24
    layers: int = 1
    vocab: int = WIDTHS["vocab_size"]

    def policy(self) -> tuple[Transformer, Words]:
        assert torch.get_num_threads() == self.threads
        return real_widths(DTYPES[self.dtype], self.layers, self.vocab), Words(self.vocab)

    def params(self) -> SamplingParams:
        return SamplingParams(n=self.samples, max_new_tokens=self.new_tokens, seed=1)

    def problems(self) -> list[Problem]:
        return [Problem(str(i), str(i), "") for i in range(self.prompts)]


def run_bits(**sizes: int) -> int:
    """The whole table, printed; returns the number of completions that differ."""
    print(f"{'dtype':6}{'threads':>8}  {'way':10}{'completions':>12}{'differ':>8}", flush=True)
    total = 0
    for dtype in DTYPES:
        for threads in (1, 2):
            case = Case(dtype, threads, **sizes)
            found = in_a_child(sample_in_ways, vars(case), threads=threads) | {"killed": run_killed(case)}
            for way, (count, differ) in found.items():
                print(f"{dtype:6}{threads:8}  {way:10}{count:12}{differ:8}", flush=True)
                total += differ
    return total


def run_killed(case: Case) -> tuple[int, int]:
    """(completions, differing ones) of a job that was killed once after a shard and resumed, against one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        in_a_child(sample_job, vars(case), str(whole), threads=case.threads)
        child = start_child(sample_job, vars(case), str(cut), threads=case.threads)
        while child.poll() is None and not list(cut.glob("*.jsonl")):
            time.sleep(0.01)
        assert child.poll() is None, "the job ended before it could be killed"
        child.send_signal(signal.SIGKILL)
        child.wait()
        held = len(read_groups(cut))
        assert 0 < held < case.prompts, f"{held} of {case.prompts} groups were there at the kill"
        in_a_child(sample_job, vars(case), str(cut), threads=case.threads)
        groups = [{group.problem: group for group in read_groups(path)} for path in (whole, cut)]
        assert groups[0].keys() == groups[1].keys() and len(groups[0]) == case.prompts
        pairs = [
            (a, b) for name in groups[0] for a, b in zip(groups[0][name].samples, groups[1][name].samples, strict=True)
        ]
        differ = [not (torch.equal(a.ids, b.ids) and torch.equal(a.logprobs, b.logprobs)) for a, b in pairs]
        return len(differ), sum(differ)


def sample_job(case: dict[str, Any], folder: str) -> None:
    """Sample the case's completions into a folder, a shard for each problem."""
    of = Case(**case)
    model, words = of.policy()
    policy.SHARD_COMPLETIONS = of.samples  # a shard per group
    sampler = policy.Policy(Path(folder), model, words, Engine(model, words, slots=16), 1)
    sampler.sample(of.problems(), of.params(), Path(folder))


def sample_in_ways(case: dict[str, Any]) -> dict[str, tuple[int, int]]:
    of = Case(**case)
    return compare_ways(*of.policy(), of)


def compare_ways(model: Transformer, words: Words, case: Case) -> dict[str, tuple[int, int]]:
    """way: (completions, those that differ from the ones of 64 slots)."""
    prompts, params = [words.prompt(p.question) for p in case.problems()], case.params()
    expected = Engine(model, words, slots=64).generate(prompts, params)
    found: dict[str, list[list[Completion]]] = {}
    for slots in (8, 96):
        found[f"{slots} slots"] = Engine(model, words, slots=slots).generate(prompts, params)
    engine = Engine(model, words, slots=64)
    found["reversed"] = engine.generate(prompts[::-1], params)[::-1]
    found["alone"] = [engine.generate([prompt], params)[0] for prompt in prompts[:4]]
    flat = {way: [c for group in groups for c in group] for way, groups in found.items()}
    reference = [c for group in expected for c in group]
    return {way: (len(made), sum(a != b for a, b in zip(made, reference))) for way, made in flat.items()}
