"""The row about training: one optimiser step of a 1.5B shape."""

import argparse
import math
import time

import torch

from bench.update import random_examples
from o1core.model import ModelConfig, Transformer, layout
from o1core.recipe import Recipe
from o1core.runs import Machine, Workload, plan_run
from o1core.runs.footprint import CUDA_CONTEXT, NCCL
from o1core.training import Updater, reference_logprobs, with_reference

from .engine import random_model
from .measure import CARD_BYTES, Found, Row, Sizes, card_of


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


def recipe_of(sizes: Sizes) -> Recipe:
    return Recipe.of(ratio="token", micro_tokens=sizes.micro_tokens, batch=sizes.batch)


def planned(sizes: Sizes, ranks: int = 1) -> int:
    """Bytes that `o1core plan` says an update takes; CUDA's own memory is no tensor's."""
    workload, machine = Workload.of(recipe_of(sizes)), Machine(ranks, cuda=True, memory=CARD_BYTES)
    plan = plan_run(one_and_a_half_b(sizes), workload, machine, slots=1)
    return next(phase for phase in plan.phases if phase.name == "update").total - CUDA_CONTEXT - (ranks > 1) * NCCL


def timed_step(model: Transformer, sizes: Sizes) -> tuple[float, float]:
    """Seconds of the second step, and the gradient's norm in it. The reference is the policy itself, so that no token is
    clipped, and none is left out of the products."""
    recipe, vocab = recipe_of(sizes), model.config.vocab_size
    updater = Updater(model, vocab, recipe.objective, recipe.optimiser, recipe.execution)
    prompt = sizes.sequence // 4
    shape = argparse.Namespace(problems=sizes.batch, samples=1, prompt=prompt, completion=sizes.sequence - prompt)
    examples = random_examples(shape, vocab)
    reference = reference_logprobs(model, vocab, examples, sizes.micro_tokens)
    for _ in range(2):
        if sizes.on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        norm = updater.step(with_reference(examples, reference), 1e-6)["grad_norm"]
        if sizes.on_gpu:
            torch.cuda.synchronize()
        taken = time.perf_counter() - start
    return taken, norm


def training_step(sizes: Sizes) -> Found:
    config = one_and_a_half_b(sizes)
    taken, _ = timed_step(random_model(config, sizes), sizes)
    fed = sizes.batch * (sizes.sequence - 1)
    found: Found = {"tokens/s": fed / taken}
    if not sizes.on_gpu:
        return found | {"MFU": "no GPU"}
    if (card := card_of(torch.cuda.get_device_name())) is not None:
        found["MFU"] = flops(config, fed, sizes.sequence - 1) / taken / card[0]
    return found


ROWS = [
    Row(
        "training step",
        "{small_layers} layers of a 1.5B model, {batch} sequences x {sequence} tokens, {micro_tokens} a micro-batch",
        {},
        training_step,
        planned=planned,
    )
]
