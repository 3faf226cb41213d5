"""The row about training: one optimiser step of a 1.5B shape, its peak memory beside what `o1core plan` says."""

import argparse
import math
import time

import torch

from bench.update import random_examples
from o1core.model import ModelConfig, layout
from o1core.recipe import Recipe
from o1core.runs import Machine, Workload, plan_run
from o1core.training import Updater, with_reference

from .engine import random_model
from .measure import Bar, Found, Row, Sizes, card_of

CONTEXT = "CUDA and NCCL"  # the plan's part that torch's allocator does not see


def one_and_a_half_b(sizes: Sizes) -> ModelConfig:
    """The shape of Qwen2.5-1.5B."""
    head_size = sizes.small_hidden // sizes.small_heads
    return ModelConfig(
        "Qwen2ForCausalLM",
        sizes.small_vocab,
        sizes.small_hidden,
        sizes.small_ffn,
        sizes.small_layers,
        sizes.small_heads,
        sizes.small_kv_heads,
        head_size,
        norm_eps=1e-6,
        rope_theta=1e6,
        max_positions=32768,
        tied=True,
        dtype=sizes.dtype,
    )


def flops(config: ModelConfig, tokens: int, length: int) -> float:
    """Of a step's products, forward and backward, for so many tokens in sequences of a length: six for each weight and token,
    and attention's, of which a causal one needs half. The embedding multiplies nothing; recomputed logits do not count."""
    weights = sum(
        math.prod(shape) for theirs, _, _, shape in layout(config) if len(shape) == 2 and "embed" not in theirs
    )
    weights += config.vocab_size * config.hidden_size * config.tied
    attention = config.num_layers * config.num_heads * config.head_dim * 2 * length / 2
    return 6.0 * tokens * (weights + attention)


def training_step(sizes: Sizes) -> Found:
    """The second step's time; the peak is that of both."""
    config, on_gpu = one_and_a_half_b(sizes), sizes.device == "cuda"
    recipe = Recipe.of(ratio="token", micro_tokens=sizes.micro_tokens, batch=sizes.batch)
    plan = plan_run(config, Workload.of(recipe), Machine(cuda=on_gpu, memory=80 << 30), slots=1)
    update = next(phase for phase in plan.phases if phase.name == "update")
    planned = update.total - update.parts.get(CONTEXT, 0)
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    model = random_model(config, sizes)
    updater = Updater(model, config.vocab_size, recipe.objective, recipe.optimiser, recipe.execution)
    prompt = sizes.sequence // 4
    shape = argparse.Namespace(problems=sizes.batch, samples=1, prompt=prompt, completion=sizes.sequence - prompt)
    examples = random_examples(shape, config.vocab_size)
    reference = [example.logprobs for example in examples]
    for _ in range(2):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        updater.step(with_reference(examples, reference), 1e-6)
        if on_gpu:
            torch.cuda.synchronize()
        taken = time.perf_counter() - start
    fed = sizes.batch * (sizes.sequence - 1)
    found: Found = {"planned GiB": planned / 2**30, "tokens/s": fed / taken}
    if not on_gpu:
        return found | {"peak / plan": "no GPU", "MFU": "no GPU"}
    if (card := card_of(torch.cuda.get_device_name())) is not None:
        found["MFU"] = flops(config, fed, sizes.sequence - 1) / taken / card[0]
    peak = torch.cuda.max_memory_allocated() - before
    return found | {"peak / plan": peak / planned, "peak GiB": peak / 2**30}


ROWS = [
    Row(
        "training step",
        "{small_layers} layers of a 1.5B model, {batch} sequences x {sequence} tokens, {micro_tokens} a micro-batch",
        {"peak / plan": Bar("at most", 1.0)},
        training_step,
        limit=60,
    )
]
