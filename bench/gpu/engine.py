"""Rows about rollouts: the engine on a 7B shape with random weights. Its time is counted from outside, by whole calls."""

import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from typing import cast
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from o1core import Engine, SamplingParams, Tokenizer, Transformer
from o1core.model import ModelConfig
from o1core.recipe import Recipe
from o1core.rollout import pages
from o1core.runs import Machine, Workload, plan_run
from o1core.runs.footprint import CUDA_CONTEXT

from .decode import REAL, SPREAD
from .measure import CARD_BYTES, Bar, Found, Row, Sizes, generator_of, integers, seven_b

SAMPLES = 8  # completions a prompt


def random_model(config: ModelConfig, sizes: Sizes) -> Transformer:
    """Weights drawn on the device. A head of its own makes logits as spread as in the row about sampling: from nearly uniform
    ones the sampler would take its long way, which a real model's are not."""
    with torch.device("meta"):
        model = Transformer(config).to(sizes.dtype)
    model.to_empty(device=sizes.device)
    if sizes.on_gpu:
        torch.cuda.reset_peak_memory_stats()  # a pretended GPU has counted the one before too
    generator = generator_of(sizes, 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                spread = SPREAD / config.hidden_size**0.5 if name == "head" else 0.02
                weight.normal_(0.0, spread, generator=generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


def planned(sizes: Sizes, layers: int, prompt: int, new_tokens: int, engines: int = 1) -> int:
    """Bytes that `o1core plan` says sampling takes, of SAMPLES completions a prompt, with a KV cache for each engine. What CUDA
    itself takes is no tensor's."""
    completions = sizes.prompts * SAMPLES
    workload = Workload(Recipe.of(), False, prompt, new_tokens, completions, sizes.prompts, completions)
    config = replace(seven_b(sizes), num_layers=min(layers, sizes.layers))
    plan = plan_run(config, workload, Machine(cuda=True, memory=CARD_BYTES), slots=completions)
    phase = plan.phases[0]
    return phase.total + (engines - 1) * phase.parts["KV cache"] - CUDA_CONTEXT


def endless_engine(model: Transformer, slots: int, sizes: Sizes) -> Engine:
    """An engine whose completions end at their longest: its tokenizer has no end-of-text."""
    tokenizer = SimpleNamespace(eos_ids=(), size=sizes.ids)
    return Engine(model, cast(Tokenizer, tokenizer), slots=slots)


def prompts(sizes: Sizes, tokens: int) -> list[list[int]]:
    return integers(sizes.ids, sizes.prompts, tokens, sizes=sizes, seed=20).tolist()


def seconds(engine: Engine, asked: list[list[int]], new_tokens: int) -> float:
    """Of one call that makes SAMPLES completions a prompt, prefill included."""
    start = time.perf_counter()
    engine.generate(asked, SamplingParams(n=SAMPLES, max_new_tokens=new_tokens, **REAL))
    return time.perf_counter() - start


def decode_step(sizes: Sizes) -> Found:
    """A step's time is the difference of two calls, of which one makes step_tokens more; their mean context is `length`."""
    engine = endless_engine(random_model(seven_b(sizes), sizes), sizes.prompts * SAMPLES, sizes)
    asked = prompts(sizes, sizes.length - sizes.step_tokens // 2)
    few = max(sizes.step_tokens // 8, 1)
    seconds(engine, asked, few)
    short, long = seconds(engine, asked, few), seconds(engine, asked, few + sizes.step_tokens)
    step = (long - short) / sizes.step_tokens
    return {"ms a step": step * 1e3, "tokens/s": len(asked) * SAMPLES / step}


def idle_gpu(sizes: Sizes) -> Found:
    """The part of a call's second half, which only decodes, in which no kernel runs."""
    engine = endless_engine(random_model(seven_b(sizes), sizes), sizes.prompts * SAMPLES, sizes)
    asked = prompts(sizes, min(64, sizes.length))
    seconds(engine, asked, 2)
    activity = ProfilerActivity.CUDA if sizes.device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as trace:
        seconds(engine, asked, sizes.step_tokens)
    kind = DeviceType.CUDA if sizes.device == "cuda" else DeviceType.CPU
    events = [e for e in trace.events() if e.device_type == kind and not e.is_user_annotation]
    if not events:
        return {"idle": "the profiler saw no kernel"}
    return {"idle": idle((e.time_range.start, e.time_range.end) for e in events)}


def idle(spans: Iterable[tuple[float, float]]) -> float:
    """The part of the second half of the time, from the first span's start to the last one's end, that no span covers."""
    ordered = sorted(spans)
    start, end = ordered[0][0], max(span[1] for span in ordered)
    half = covered = (start + end) / 2
    busy = 0.0
    for first, last in ordered:
        busy += max(last - max(first, covered), 0.0)
        covered = max(covered, last)
    return 1 - busy / (end - half)


def throughput(sizes: Sizes) -> Found:
    """Completions a second of whole calls, prefill included: what a round of rollouts sees."""
    engine = endless_engine(random_model(seven_b(sizes), sizes), sizes.prompts * SAMPLES, sizes)
    asked = prompts(sizes, max(sizes.length - sizes.new_tokens, 1))
    seconds(engine, asked, 4)
    return {"tokens/s": len(asked) * SAMPLES * sizes.new_tokens / seconds(engine, asked, sizes.new_tokens)}


def evaluation(sizes: Sizes) -> Found:
    """One short answer each to more problems than there are slots, whose prompts go through the steps that decode."""
    slots = sizes.prompts * SAMPLES
    engine = endless_engine(random_model(seven_b(sizes), sizes), slots, sizes)
    asked = integers(sizes.ids, 4 * slots, min(100, sizes.length), sizes=sizes, seed=21).tolist()
    params = SamplingParams(n=1, max_new_tokens=min(200, sizes.new_tokens), **REAL)
    engine.generate(asked[: sizes.prompts], params)
    start = time.perf_counter()
    engine.generate(asked, params)
    return {"answers/s": len(asked) / (time.perf_counter() - start)}


def batch_invariance(sizes: Sizes) -> Found:
    """Completions of four layers alone in their batch, and beside others."""
    model = random_model(replace(seven_b(sizes), num_layers=min(4, sizes.layers)), sizes)
    asked = prompts(sizes, min(100, sizes.length))
    params = SamplingParams(n=SAMPLES, max_new_tokens=min(64, sizes.new_tokens), **REAL)
    whole = endless_engine(model, sizes.prompts * SAMPLES, sizes).generate(asked, params)
    alone = endless_engine(model, 3, sizes).generate(asked[-1:], params)
    return {"completions that differ": sum(a != b for a, b in zip(whole[-1], alone[0]))}


def graphs(sizes: Sizes) -> Found:
    """Completions by graphs and by the steps themselves, before and after an update in place, which the graphs outlive."""
    model = random_model(replace(seven_b(sizes), num_layers=min(4, sizes.layers)), sizes)
    asked = prompts(sizes, min(100, sizes.length))
    params = SamplingParams(n=SAMPLES, max_new_tokens=min(64, sizes.new_tokens), **REAL)
    engine, different = endless_engine(model, sizes.prompts * SAMPLES, sizes), 0
    for _ in range(2):
        found = engine.generate(asked, params)
        with mock.patch.object(pages, "Captured", lambda: None):
            expected = endless_engine(model, sizes.prompts * SAMPLES, sizes).generate(asked, params)
        different += sum(a != b for a, b in zip(chain(*found), chain(*expected)))
        with torch.no_grad():
            model.get_parameter("blocks.0.o.weight").mul_(1.5)
    return {"completions that differ": different}


SEVEN_B = "{layers} layers of a 7B model"
ROWS = [
    Row(
        "decode step",
        SEVEN_B + ", {prompts} prompts x 8 samples, {length:,} tokens each on average",
        {"ms a step": Bar("at most", 15.8, "bandwidth"), "tokens/s": Bar("at least", 16200, "bandwidth")},
        decode_step,
        limit=100,
        planned=lambda s: planned(
            s, s.layers, s.length - s.step_tokens // 2, s.step_tokens + max(s.step_tokens // 8, 1)
        ),
    ),
    Row(
        "idle GPU",
        SEVEN_B + ", {prompts} prompts x 8 samples, {step_tokens} new tokens, the second half",
        {"idle": Bar("at most", 0.03)},
        idle_gpu,
        limit=90,
        planned=lambda s: planned(s, s.layers, min(64, s.length), s.step_tokens),
    ),
    Row(
        "rollouts",
        SEVEN_B + ", {prompts} prompts x 8 samples, {new_tokens} new tokens up to {length:,}, prefill included",
        {"tokens/s": Bar("at least", 13000, "bandwidth")},
        throughput,
        limit=100,
        planned=lambda s: planned(s, s.layers, max(s.length - s.new_tokens, 1), s.new_tokens),
    ),
    Row(
        "evaluation",
        SEVEN_B + ", problems of 100 tokens, an answer of 200 each, four times as many as are answered at once",
        {"answers/s": Bar("at least", 90, "bandwidth")},
        evaluation,
        limit=60,
        planned=lambda s: planned(s, s.layers, min(100, s.length), min(200, s.new_tokens)),
    ),
    Row(
        "batch invariance",
        "4 layers of a 7B model, a prompt's 8 completions in 3 slots and beside {prompts} prompts",
        {"completions that differ": Bar("at most", 0)},
        batch_invariance,
        planned=lambda s: planned(s, 4, min(100, s.length), min(64, s.new_tokens), engines=2),
    ),
    Row(
        "graphs",
        "4 layers of a 7B model, {prompts} prompts x 8 samples, graphs against their steps, twice with an update between",
        {"completions that differ": Bar("at most", 0)},
        graphs,
        planned=lambda s: planned(s, 4, min(100, s.length), min(64, s.new_tokens), engines=2),
    ),
]
