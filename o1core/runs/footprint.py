"""Bytes that a run needs on each rank, by part and phase: arithmetic on shapes, nothing is allocated.

Counted is what the trainer holds, in the order of its code: the trained weights' state lives from the first round on;
sampling adds the KV cache and, with adapters, merged matrices; an update adds what autograd saves of a micro-batch
(or with checkpointing a hidden state a layer and one block's), the head's scratch, CRISP's teacher and gradients on their
way, while the training state before it may still be written.

On more than one rank trained weights are fp32 shards (FSDP2), whole blocks exist two at a time, embedding and head stay
whole from forward to backward, and a plain copy is sampled from. Not counted: Python and torch themselves (0.3 GB), and
fragments of the allocator. Held against measured peaks in tests/runs/test_footprint.py, and against torch's simulation of
FSDP2 in bench.simulate, which agrees within 1 %.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch

from ..distributed import Offload, file_numbers
from ..kernels.torch_linear import SCRATCH_BYTES
from ..model import LORA_TARGETS, ModelConfig, layout
from ..recipe import OptimiserSettings, Recipe
from ..rollout import CacheKind, cache_bytes, cache_kind, page_bytes, pages_of
from .resources import BLOCK_SLOTS, LONG_PROMPT

CUDA_CONTEXT, NCCL = 1 << 30, 1 << 29  # what a process on a GPU takes, and its communication with others
CUDA_SCRATCH = 4 << 30  # bytes, the budget of the Triton kernels' one pass
LOGIT_COPIES = 3  # fp32 [slots, V]: logits in the dtype that computes, and what sampling makes of them


@dataclass(frozen=True)
class Machine:
    """ranks: processes, one for each GPU; tensor_parallel of them hold one copy to sample from; offload: what leaves a GPU
    while it samples."""

    ranks: int = 1
    cuda: bool = False
    tensor_parallel: int = 1
    offload: Offload = "none"


@dataclass(frozen=True)
class Phase:
    """What is held at the phase's peak: bytes by part."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Counts:
    """Numbers of weights: trained ones, frozen ones, and how many of the trained ones are the vocabulary's. vocab: of the
    embedding and the head together; adapters: all trained ones are adapters'."""

    trained: int
    frozen: int
    trained_vocab: int
    vocab: int
    adapters: bool


def count_weights(c: ModelConfig, settings: OptimiserSettings) -> Counts:
    """What the settings train of a model."""
    sizes = {theirs: math.prod(shape) for theirs, _, _, shape in layout(c)}
    total, vocab = sum(sizes.values()), c.vocab_size * c.hidden_size * (1 if c.tied else 2)
    first = c.num_layers - layers_trained(c, settings)
    if settings.lora_rank is not None:
        fused = {name: ours for name, ours, _, _ in layout(c)}
        trained = sum(
            settings.lora_rank * sum(shape)
            for theirs, _, _, shape in layout(c)
            if theirs.endswith("_proj.weight")
            and fused[theirs].split(".")[2] in LORA_TARGETS[settings.lora_targets]
            and layer_of(theirs) >= first
        )
        return Counts(trained, total, 0, vocab, True)
    if settings.train_last_layers is None:
        return Counts(total, 0, vocab, vocab, False)
    trained = sum(size for theirs, size in sizes.items() if layer_of(theirs) >= first)
    return Counts(trained, total - trained, 0, vocab, False)


def layers_trained(c: ModelConfig, settings: OptimiserSettings) -> int:
    return min(c.num_layers, settings.train_last_layers or c.num_layers)


def layer_of(published: str) -> int:
    """The layer of a published tensor, -1 where it is in none."""
    return int(published.split(".")[2]) if published.startswith("model.layers.") else -1


def held_by_training(
    c: ModelConfig, settings: OptimiserSettings, dtype: torch.dtype, machine: Machine
) -> dict[str, int]:
    """Bytes a rank of the trained weights' state, and of the frozen weights, that last for the whole run."""
    counts, size, n = count_weights(c, settings), dtype.itemsize, machine.ranks
    moments = 4 if settings.kind == "adam-mini" else 8  # its second moments are a few thousand numbers a layer
    if n > 1:  # adapters are whole on every rank; other trained weights are fp32 shards, their own masters
        share = 1 if counts.adapters else n
        weights, masters = size * counts.frozen // n, 4 * counts.trained // share
    else:
        share = 1
        weights = (4 if counts.adapters else size) * counts.trained + size * counts.frozen
        masters = 4 * counts.trained if size < 4 and not counts.adapters else 0
    return {
        "weights": weights,
        "fp32 masters": masters,
        "gradients": 4 * counts.trained // share,
        "moments": moments * counts.trained // share,
    }


def phases(
    c: ModelConfig,
    recipe: Recipe,
    dtype: torch.dtype,
    machine: Machine,
    slots: int,
    trains: bool = True,
    pages: int | None = None,
) -> list[Phase]:
    """The run's phases with what each holds at its peak. pages: of a paged KV cache (None: all that the slots may need)."""
    held = held_by_training(c, recipe.optimiser, dtype, machine)
    if not trains:
        held = {"weights": dtype.itemsize * sum(math.prod(shape) for *_, shape in layout(c)) // machine.tensor_parallel}
    if machine.cuda:
        held["CUDA and NCCL"] = CUDA_CONTEXT + (NCCL if machine.ranks > 1 else 0)
    resting = {name: size for name, size in held.items() if name not in absent(machine)}
    if machine.ranks > 1 and trains:
        resting["copy to sample from"] = sampled_copy(c, dtype, machine)
    found = [Phase("sample", resting | sampling(c, recipe, dtype, machine, slots, pages))]
    if trains:
        found.append(Phase("reference", held | reference(c, recipe, dtype, machine)))
        found.append(Phase("update", held | update(c, recipe, dtype, machine) | writing(c, recipe.optimiser, machine)))
    return found


def writing(c: ModelConfig, settings: OptimiserSettings, machine: Machine) -> dict[str, int]:
    """The training state's largest file, which a thread holds twice while the next step makes its gradient: as bytes, and
    as those of the whole file. In the host's memory, so it counts on a CPU alone."""
    if machine.cuda:
        return {}
    counts, sizes, weights = count_weights(c, settings), dict[str, int](), Counter[str]()
    first = c.num_layers - layers_trained(c, settings)
    for theirs, ours, _, shape in layout(c):
        if counts.trained_vocab or layer_of(theirs) >= first:
            weights[ours] += 4 * math.prod(shape)
    if counts.adapters:  # small ones, in a file or a few
        weights = Counter({"adapters": 4 * counts.trained})
    for name, size in weights.items():
        sizes |= {name: size, f"exp_avg.{name}": size, f"exp_avg_sq.{name}": size * (settings.kind == "adamw")}
    of_file = Counter[int]()
    for name, number in file_numbers(sizes).items():
        of_file[number] += sizes[name]
    return {"state being written": 2 * max(of_file.values()) // (1 if counts.adapters else machine.ranks)}


def absent(machine: Machine) -> set[str]:
    """The parts of the trained weights' state that are not there while rollouts are sampled: gradients are dropped, and
    what is offloaded waits in the host's memory."""
    offload = machine.offload if machine.cuda else "none"
    named: dict[Offload, set[str]] = {"none": set(), "moments": {"moments"}, "optimiser": {"moments", "fp32 masters"}}
    return {"gradients"} | named[offload]


def sampled_copy(c: ModelConfig, dtype: torch.dtype, machine: Machine) -> int:
    """The plain weights that a rank samples from: blocks are cut by tensor parallel, embedding and head are not."""
    vocab = c.vocab_size * c.hidden_size * (1 if c.tied else 2)
    blocks = sum(math.prod(shape) for *_, shape in layout(c)) - vocab
    return dtype.itemsize * (blocks // machine.tensor_parallel + vocab)


def sampling(
    c: ModelConfig, recipe: Recipe, dtype: torch.dtype, machine: Machine, slots: int, pages: int | None
) -> dict[str, int]:
    """What sampling adds: the KV cache, logits, merged or packed matrices."""
    matrices = sum(math.prod(shape) for theirs, _, _, shape in layout(c) if theirs.endswith("_proj.weight"))
    own, longest = cache_config(c, machine), longest_row(c, recipe)
    copies = 4 * LOGIT_COPIES
    if kind_of_cache(c, machine) == "pages":
        cache = (slots * pages_of(longest) if pages is None else pages) * page_bytes(own, dtype)
        rows, copies = BLOCK_SLOTS, 0 if machine.cuda else copies  # of one block; the sampling kernel copies nothing
    else:
        cache, rows = slots * cache_bytes(own, longest, dtype), slots
    itemsize = 4 if machine.cuda else dtype.itemsize  # a GPU's logits are fp32
    parts = {"KV cache": cache, "logits": rows * c.vocab_size * (itemsize + copies)}
    if recipe.optimiser.lora_rank is not None and recipe.sampling.rounds > 1 and machine.ranks == 1:
        parts["merged matrices"] = dtype.itemsize * matrices
    return parts


def kind_of_cache(c: ModelConfig, machine: Machine) -> CacheKind:
    """The KV cache that the machine's engine has."""
    return cache_kind(cache_config(c, machine), torch.device("cuda" if machine.cuda else "cpu"))


def cache_config(c: ModelConfig, machine: Machine) -> ModelConfig:
    """The model whose keys and values one rank holds: its heads alone."""
    n = machine.tensor_parallel
    return replace(c, num_heads=max(1, c.num_heads // n), num_kv_heads=max(1, c.num_kv_heads // n))


def longest_row(c: ModelConfig, recipe: Recipe) -> int:
    """Tokens of a long prompt with its longest completion."""
    return min(recipe.sampling.max_new_tokens + LONG_PROMPT, c.max_positions)


def micro_batch(recipe: Recipe, machine: Machine) -> tuple[int, int]:
    """(tokens of the largest micro-batch of a rank, of the longest sequence)."""
    longest = min(recipe.objective.cutoff, recipe.sampling.max_new_tokens + LONG_PROMPT)
    pair = 2 if recipe.objective.kind == "dpo" else 1
    sequences = math.ceil(recipe.optimiser.batch / machine.ranks) * pair
    return max(pair * longest, min(recipe.execution.micro_tokens, sequences * longest)), longest


def saved_by_block(c: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes a token that an update keeps of one block of attention and an MLP: the inputs of its two norms, q, k and v, q and k
    rotated, the attention's output with a float32 a head, gate and up. Everything else is made again in the backward pass."""
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    numbers = 2 * c.hidden_size + (q + 2 * kv) + (q + kv) + q + 2 * c.ffn_size
    return dtype.itemsize * numbers + 4 * c.num_heads


def scratch_of_head(c: ModelConfig, tokens: int, cuda: bool) -> int:
    """Bytes of the loss beside its gradients: the kernels' budget, or all logits where they are fewer."""
    budget = CUDA_SCRATCH if cuda else SCRATCH_BYTES
    return min(budget, 2 * 4 * tokens * c.vocab_size) + 12 * tokens * c.hidden_size


def reference(c: ModelConfig, recipe: Recipe, dtype: torch.dtype, machine: Machine) -> dict[str, int]:
    """A forward without gradient: a few tensors of one block at a time, then the head's scratch."""
    tokens, _ = micro_batch(recipe, machine)
    block = tokens * dtype.itemsize * (3 * c.hidden_size + 4 * c.ffn_size)
    parts = {"activations": block, "loss scratch": scratch_of_head(c, tokens, machine.cuda)}
    if machine.ranks > 1:
        parts["whole units"] = whole_units(c, dtype, trained_vocab=0)[1]
    return parts


def update(c: ModelConfig, recipe: Recipe, dtype: torch.dtype, machine: Machine) -> dict[str, int]:
    """A micro-batch's forward and backward pass."""
    tokens, _ = micro_batch(recipe, machine)
    size, counts = dtype.itemsize, count_weights(c, recipe.optimiser)
    layers = layers_trained(c, recipe.optimiser)
    of_block = tokens * saved_by_block(c, dtype)
    # Gradients inside a block's MLP, with what is made again there. On a CPU its matrix products hold copies, and pieces of the
    # heap that were freed wait for a use; with adapters 12 were measured on AVX512, where 5 were alive.
    wide = 2.7 if machine.cuda else 10 if counts.adapters else 8
    on_the_way = int(tokens * size * wide * c.ffn_size)
    if recipe.execution.checkpointing:
        made = (
            tokens * size * (2 * c.hidden_size + c.ffn_size)
        )  # norms and SwiGLU of the block that is run again are kept
        parts = {"checkpoints": tokens * size * c.hidden_size * layers, "activations": of_block + made + on_the_way}
    else:
        parts = {"activations": layers * of_block + on_the_way}
    last = tokens * (size * 2 + (0 if machine.cuda else 8)) * c.hidden_size  # the last norm, and its gradient
    parts["activations"] += last
    parts["loss scratch"] = scratch_of_head(c, tokens, machine.cuda)
    if machine.ranks > 1:
        in_backward, *at_ends = whole_units(c, dtype, counts.trained_vocab)
        moments = [parts | {"whole units": in_backward}, *({"whole units": size} for size in at_ends)]
        parts = max(moments, key=lambda found: sum(found.values()))
    else:
        largest = 0 if counts.adapters else 2 * c.hidden_size * c.ffn_size
        head = c.vocab_size * c.hidden_size if counts.trained_vocab else 0
        parts["gradients on their way"] = size * (head + largest)
        if c.tied and counts.trained_vocab:
            # Both of the tied weight's gradients are there at the end, when the activations are gone.
            at_end = {"activations": last, "gradients on their way": 2 * size * c.vocab_size * c.hidden_size}
            parts = max(parts, parts | at_end, key=lambda found: sum(found.values()))
    if recipe.objective.kind == "crisp":
        parts["teacher"] = teacher(c, counts, tokens, size)
    return parts


def teacher(c: ModelConfig, counts: Counts, tokens: int, size: int) -> int:
    """Bytes of CRISP's teacher: its hidden states of a micro-batch; where the head is trained, the head as it was, whole
    on every rank, and if that is narrower than fp32, the fp32 sum of the head's gradient."""
    head = c.vocab_size * c.hidden_size if counts.trained_vocab else 0
    return size * (tokens * c.hidden_size + head) + (4 * head if size < 4 else 0)


def whole_units(c: ModelConfig, dtype: torch.dtype, trained_vocab: int) -> tuple[int, int, int]:
    """Bytes that are whole at once under FSDP, as torch's simulation shows them, at three moments of an update.

    In the backward pass: the embedding and the head with the head's gradient, one block that computes, the next one
    gathered ahead, the gradients of the one before in fp32 on their way to their shards, and the first gradient of this
    one (down's). At the start, both copied out of the buffer that they are gathered in, and the first block too. At the
    end, both with their gradients in fp32.
    """
    vocab, size = c.vocab_size * c.hidden_size * (1 if c.tied else 2), dtype.itemsize
    sizes = {theirs: math.prod(shape) for theirs, _, _, shape in layout(c) if layer_of(theirs) == 0}
    block, down = sum(sizes.values()), sizes["model.layers.0.mlp.down_proj.weight"]
    head = c.vocab_size * c.hidden_size if trained_vocab else 0
    in_backward = size * (vocab + head + 2 * block + down) + 4 * block
    return in_backward, 2 * size * (vocab + block), size * vocab + 4 * trained_vocab
