"""What a run takes: bytes on each rank, by part and phase. Arithmetic on shapes, nothing is allocated. What fits: plan.py.

Counted is what the trainer holds, in the order of its code: the trained weights' state lives from the first round on;
sampling adds the KV cache and, with adapters, merged matrices; an update adds what autograd saves of a micro-batch (or with
checkpointing a hidden state a layer and one layer's activations), the head's scratch, CRISP's teacher and gradients on their
way. A training state is written between rounds, and in a long round while its next update runs; at the end adapters are
merged into a model that is written.

On more than one rank trained weights are fp32 shards (FSDP2), whole layers exist two at a time, embedding and head stay
whole from forward to backward, and a plain copy is sampled from. Not counted: Python and torch themselves (0.3 GB), the
rollouts (8 bytes a token, in the host's memory), and fragments of the allocator. Held against measured peaks in
tests/runs/test_footprint.py, and against torch's simulation of FSDP2 in bench.simulate, which agrees within 1 %.

In what follows c is a model's config, whose dtype is the one that computes, and w the run's Workload.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import Self

import torch

from ..choices import Offload
from ..distributed import file_numbers
from ..kernels.torch_linear import SCRATCH_BYTES
from ..model import ModelConfig, gets_adapters, layer_of, layout
from ..model.checkpoint import SHARD_BYTES
from ..recipe import OptimiserSettings, Recipe
from ..rollout import CacheKind, cache_bytes, cache_kind, page_bytes, pages_of
from ..rollout.row_bits import CPU_ROWS, GPU_ROWS, TESTED_OUTPUTS, worth_packing
from ..rollout.sampling import CHUNK_BYTES
from ..rollout.states import state_bytes
from ..training.optimisers import is_router

LONG_PROMPT = 1024  # tokens of the longest prompt where no problems are known
CUDA_CONTEXT, NCCL = 1 << 30, 1 << 29  # what a process on a GPU takes, and its communication with others
CUDA_SCRATCH = 4 << 30  # bytes, the budget of the Triton kernels' one pass; on a large card a sixteenth of it
LIBRARIES = 96 << 20  # on a CPU: what comes after the plan, of grading, the tokenizer, charts and oneDNN's kernels
SAMPLING_COPIES = 4  # what sampling makes of a chunk of logits


@dataclass(frozen=True)
class Machine:
    """ranks: processes, one for each GPU; tensor_parallel of them hold one copy to sample from; offload: what leaves a GPU
    while it samples; memory: bytes that each rank may take, from which a GPU's one pass takes its budget."""

    ranks: int = 1
    cuda: bool = False
    tensor_parallel: int = 1
    offload: Offload = "none"
    memory: int = 0


@dataclass(frozen=True)
class Workload:
    """The most that a run holds at once, in tokens and numbers. trains: False where something is only sampled or evaluated.

    prompt, completion: tokens of the longest; completions: of the largest call of the sampler; problems, examples: that a
    round trains on (examples of DPO: pairs).
    """

    recipe: Recipe
    trains: bool
    prompt: int
    completion: int
    completions: int
    problems: int
    examples: int

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        trains: bool = True,
        prompt: int = LONG_PROMPT,
        problems: int | None = None,
        tested: int | None = None,
    ) -> Self:
        """prompt: tokens of the longest; problems: to train on; tested: problems of the largest test. None is what the
        recipe asks for, which may be all of files that are not known."""
        trains = trains and recipe.objective.kind != "none"
        unknown, sampling, evaluation = 10**9, recipe.sampling, recipe.evaluation
        problems = (recipe.selection.problems or unknown) if problems is None else problems
        tested = (evaluation.problems or unknown) if tested is None else tested
        pairs = recipe.objective.kind == "dpo"
        return cls(
            recipe,
            trains,
            prompt,
            sampling.max_new_tokens,
            max(1, problems * sampling.samples, tested * evaluation.samples),
            max(1, problems),
            max(1, problems * (1 if pairs else recipe.objective.picked)),
        )

    @property
    def pair(self) -> int:
        """Sequences of an example."""
        return 2 if self.recipe.objective.kind == "dpo" else 1

    @property
    def sequence(self) -> int:
        """Tokens of the longest sequence that is trained on."""
        return min(self.recipe.objective.cutoff, self.prompt + self.completion)

    def row(self, c: ModelConfig) -> int:
        """Tokens of the longest row that is sampled."""
        return min(self.prompt + self.completion, c.max_positions)

    def micro_batch(self, ranks: int, micro_tokens: int, examples: int | None = None) -> tuple[int, int]:
        """(tokens, how many of them are predicted) in a rank's largest micro-batch of so many examples (None: of a batch)."""
        if examples is None:
            examples = min(self.recipe.optimiser.batch, self.examples)
        sequences = math.ceil(examples / ranks) * self.pair
        tokens = max(self.packed(1, self.pair), min(micro_tokens, self.packed(self.problems, sequences)))
        return tokens, min(tokens, sequences * self.completion)

    def packed(self, problems: int, sequences: int) -> int:
        """Tokens of so many of the longest sequences, where those of one problem share its prompt."""
        shared = min(problems, sequences) * self.prompt + sequences * self.completion
        return min(shared, sequences * self.sequence)

    @property
    def saves_while_training(self) -> bool:
        """Whether a state is written while an update runs: those at the ends of rounds are waited for."""
        of = self.recipe.optimiser
        steps = math.ceil(self.examples / of.batch) * of.epochs * self.recipe.sampling.rounds
        return steps > self.recipe.execution.save_every


@dataclass(frozen=True)
class Phase:
    """What is held at the phase's peak: bytes by part."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def footprint(
    c: ModelConfig, w: Workload, machine: Machine, slots: int, micro_tokens: int, pages: int | None = None
) -> tuple[Phase, ...]:
    """The run's phases with what each holds at its peak. pages: of a paged KV cache (None: all that the slots may need)."""
    if not w.trains:
        return (sample_phase(c, w, machine, slots, pages),)
    held = lasting(c, w, machine)
    written = writing(c, w.recipe.optimiser, machine)
    beside = written if w.saves_while_training else {}
    found = [
        sample_phase(c, w, machine, slots, pages),
        Phase("reference", without(held, {"gradients"}) | reference(c, w, machine, micro_tokens)),
        Phase("update", held | update(c, w, machine, micro_tokens) | beside),
    ]
    if written:
        exported = {"merged matrices": min(merged(c), SHARD_BYTES) if w.recipe.optimiser.lora_rank is not None else 0}
        found.append(Phase("save", held | max(written, exported, key=lambda parts: sum(parts.values()))))
    return tuple(found)


def sample_phase(c: ModelConfig, w: Workload, machine: Machine, slots: int, pages: int | None = None) -> Phase:
    """Sampling a round or an evaluation."""
    held = without(lasting(c, w, machine), absent(machine) if w.trains else set())
    if machine.ranks > 1 and w.trains:
        held["copy to sample from"] = sampled_copy(c, machine)
    return Phase("sample", held | sampling(c, w, machine, slots, pages))


def without(parts: dict[str, int], names: set[str]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if name not in names}


def lasting(c: ModelConfig, w: Workload, machine: Machine) -> dict[str, int]:
    """Bytes a rank that are there in all phases."""
    if w.trains:
        held = held_by_training(c, w.recipe.optimiser, machine)
    else:
        held = {"weights": c.dtype.itemsize * sum(sizes(c).values()) // machine.tensor_parallel}
    if machine.cuda:
        return held | {"CUDA and NCCL": CUDA_CONTEXT + (NCCL if machine.ranks > 1 else 0)}
    return held | {"libraries": LIBRARIES}


# Weights and their training state


@dataclass(frozen=True)
class Counts:
    """Numbers of weights: trained ones, frozen ones, and how many of the trained ones are the vocabulary's. adapters: all
    trained ones are adapters'."""

    trained: int
    frozen: int
    trained_vocab: int
    adapters: bool


@cache
def sizes(c: ModelConfig) -> dict[str, int]:
    """Our weight: its numbers."""
    found = Counter[str]()
    for _, ours, _, shape in layout(c):
        found[ours] += math.prod(shape)
    return dict(found)


@cache
def projections(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """Our fused matrix ("blocks.0.qkv"): its numbers, and the sum of its parts' widths and heights, which adapters have."""
    numbers, sides = Counter[str](), Counter[str]()
    for theirs, ours, _, shape in layout(c):
        if theirs.endswith(".weight") and "_proj" in theirs.split(".")[-2]:
            numbers[ours.removesuffix(".weight")] += math.prod(shape)
            sides[ours.removesuffix(".weight")] += sum(shape)
    return {name: (numbers[name], sides[name]) for name in numbers}


def active(c: ModelConfig) -> int:
    """The weights that compute a token: of a mixture's experts those that are chosen."""
    total = sum(sizes(c).values())
    if c.experts is None:
        return total
    routed = sum(n for name, n in sizes(c).items() if name.endswith(("experts.gate_up.weight", "experts.down.weight")))
    return total - routed + routed * c.experts.chosen // c.experts.count


def vocabulary(c: ModelConfig) -> int:
    """Numbers of the embedding and the head together."""
    return c.vocab_size * c.hidden_size * (1 if c.tied else 2)


def matrices(c: ModelConfig) -> int:
    """Numbers of the layers' matrices."""
    return sum(numbers for numbers, _ in projections(c).values())


def merged(c: ModelConfig) -> int:
    """Bytes of what adapters are merged into, to sample; they are exported a file at a time."""
    return c.dtype.itemsize * matrices(c)


@cache
def count_weights(c: ModelConfig, settings: OptimiserSettings) -> Counts:
    """What the settings train of a model."""
    total = sum(sizes(c).values())
    first = c.num_layers - layers_trained(c, settings)
    if settings.lora_rank is not None:
        trained = sum(
            settings.lora_rank * sides
            for name, (_, sides) in projections(c).items()
            if layer_of(name) >= first and gets_adapters(name, settings.lora_targets, settings.lora_experts)
        )
        return Counts(trained, total, 0, adapters=True)
    trained = sum(sizes(c)[name] for name in trained_weights(c, settings))
    whole = settings.train_last_layers is None
    return Counts(trained, total - trained, vocabulary(c) if whole else 0, adapters=False)


def trained_weights(c: ModelConfig, settings: OptimiserSettings) -> list[str]:
    """Our names of the weights that are trained where there are no adapters."""
    first = -1 if settings.train_last_layers is None else c.num_layers - settings.train_last_layers
    return [n for n in sizes(c) if layer_of(n) >= first and (settings.train_router or not is_router(n))]


def layers_trained(c: ModelConfig, settings: OptimiserSettings) -> int:
    return min(c.num_layers, settings.train_last_layers or c.num_layers)


def held_by_training(c: ModelConfig, settings: OptimiserSettings, machine: Machine) -> dict[str, int]:
    """Bytes a rank of the trained weights' state, and of the frozen weights, that last for the whole run."""
    counts, size, n = count_weights(c, settings), c.dtype.itemsize, machine.ranks
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


def writing(c: ModelConfig, settings: OptimiserSettings, machine: Machine) -> dict[str, int]:
    """The training state's largest file, which a thread holds twice: as bytes, and as those of the whole file. In the
    host's memory, so it counts on a CPU alone."""
    if machine.cuda:
        return {}
    counts, of_tensors = count_weights(c, settings), dict[str, int]()
    weights = {"adapters": 4 * counts.trained}  # small ones, in a file or a few
    if not counts.adapters:
        weights = {name: 4 * sizes(c)[name] for name in trained_weights(c, settings)}
    for name, size in weights.items():
        second = size * (settings.kind == "adamw")
        of_tensors |= {name: size, f"exp_avg.{name}": size, f"exp_avg_sq.{name}": second}
    of_file = Counter[int]()
    for name, number in file_numbers(of_tensors).items():
        of_file[number] += of_tensors[name]
    return {"state being written": 2 * max(of_file.values()) // (1 if counts.adapters else machine.ranks)}


# Sampling


def absent(machine: Machine) -> set[str]:
    """The parts of the trained weights' state that are not there while rollouts are sampled: gradients are dropped, and
    what is offloaded waits in the host's memory."""
    offload = machine.offload if machine.cuda else "none"
    named: dict[Offload, set[str]] = {"none": set(), "moments": {"moments"}, "optimiser": {"moments", "fp32 masters"}}
    return {"gradients"} | named[offload]


def sampled_copy(c: ModelConfig, machine: Machine) -> int:
    """The plain weights that a rank samples from: layers are cut by tensor parallel, embedding and head are not."""
    layers = sum(sizes(c).values()) - vocabulary(c)
    return c.dtype.itemsize * (layers // machine.tensor_parallel + vocabulary(c))


def sampling(c: ModelConfig, w: Workload, machine: Machine, slots: int, pages: int | None) -> dict[str, int]:
    """What sampling adds: the KV cache, a step's activations and logits, merged and packed matrices."""
    own, longest, size = cache_config(c, machine), w.row(c), c.dtype.itemsize
    rows, copies = GPU_ROWS if machine.cuda else CPU_ROWS, SAMPLING_COPIES
    if kind_of_cache(c, machine) == "pages":
        cached = (slots * pages_of(longest) if pages is None else pages) * page_bytes(own, c.dtype)
        cached += slots * state_bytes(c, c.dtype)
        copies = 0 if machine.cuda else copies  # the sampling kernel copies nothing
    else:
        cached = slots * cache_bytes(own, longest, c.dtype)
    widest = max(min(math.prod(shape), TESTED_OUTPUTS * shape[-1]) for *_, shape in layout(c))
    logit = 4 if machine.cuda else size  # a GPU's logits are fp32
    parts = {
        "KV cache": cached,
        "activations": max(max(w.prompt, rows) * passing(c), size * widest),  # of a prompt, or a test of row_bits.py
        "logits": rows * c.vocab_size * logit + copies * min(CHUNK_BYTES, 4 * rows * c.vocab_size),
    }
    if w.recipe.optimiser.lora_rank is not None and w.trains and w.recipe.sampling.rounds > 1 and machine.ranks == 1:
        parts["merged matrices"] = merged(c)
    if worth_packing(size * sum(sizes(c).values()), c.dtype, not machine.cuda):
        parts["packed matrices"] = size * (matrices(c) + c.vocab_size * c.hidden_size)
    return parts


def kind_of_cache(c: ModelConfig, machine: Machine) -> CacheKind:
    """The KV cache that the machine's engine has."""
    return cache_kind(cache_config(c, machine), torch.device("cuda" if machine.cuda else "cpu"))


def cache_config(c: ModelConfig, machine: Machine) -> ModelConfig:
    """The model whose keys and values one rank holds: its heads alone."""
    n = machine.tensor_parallel
    return replace(c, num_heads=max(1, c.num_heads // n), num_kv_heads=max(1, c.num_kv_heads // n))


# The update


def mlp_width(c: ModelConfig, layer: int) -> int:
    """Numbers of a token inside a layer's MLP: of a mixture, in its chosen experts and the shared one, with what goes in
    and comes out of each chosen one."""
    if c.experts is None or layer not in c.sparse_layers:
        return c.ffn_size
    shared = c.experts.shared_size and c.experts.shared_size + c.hidden_size // 4
    return c.experts.chosen * (c.experts.ffn_size + c.hidden_size // 2) + shared


def widest_mlp(c: ModelConfig) -> int:
    return max(mlp_width(c, layer) for layer in range(c.num_layers))


def passing(c: ModelConfig) -> int:
    """Bytes a token of a forward pass without gradient: a few tensors of one layer at a time."""
    return made_again(c) // 2 + c.dtype.itemsize * (3 * c.hidden_size + 4 * widest_mlp(c))


def kept_by_layer(c: ModelConfig, layer: int, cuda: bool) -> int:
    """Bytes a row that an update keeps of a layer: the inputs of its two norms, what mixes tokens, and two tensors of the
    MLP's width. What dense products multiply, norms and SwiGLU, is made again in the backward pass; experts and the delta rule
    keep theirs. A hybrid's norm is made of several operations on a CPU, and keeps its input in fp32, plain and normalised."""
    size, sparse = c.dtype.itemsize, layer in c.sparse_layers
    norms = 2 * c.hidden_size * size
    if c.family.hybrid:
        norms = 2 * c.hidden_size * (4 if cuda else 8)
    norms += size * c.hidden_size * (sparse + (layer in c.delta_layers))
    if layer in c.delta_layers:
        assert c.delta is not None
        mixed, values = sum(c.delta.widths), c.delta.widths[2]
        # What the rule takes; what it gives, the gate and its SiLU in fp32; and three times what goes to the last product. In
        # fp32 the gate is a part of the first product's output, which it keeps.
        mixer = size * (mixed * (1 if size < 4 else 2) + 3 * values) + 4 * 3 * values
    else:
        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        mixer = size * (q + 2 * kv + q + kv + q) + 4 * c.num_heads  # the last: a row's log-sum-exps
        if c.family.hybrid:  # a gate for each number of the output, and norms of q and k
            mixer += size * 3 * q + (q + kv) * (size if cuda else 4 if size == 4 else 8)
    return norms + mixer + kept_by_mlp(c, layer)


def kept_by_mlp(c: ModelConfig, layer: int) -> int:
    """Bytes a row of it: two tensors of its width, four of experts'."""
    return c.dtype.itemsize * (4 if layer in c.sparse_layers else 2) * mlp_width(c, layer)


def made_again(c: ModelConfig) -> int:
    """Bytes a token of the delta rule's steps, in fp32, while their gradients are made: 28 tensors of the heads' width."""
    d = c.delta
    return 0 if d is None else 4 * 28 * d.value_heads * max(d.key_dim, d.value_dim)


def scratch_of_head(c: ModelConfig, predicted: int, machine: Machine) -> int:
    """Bytes of the loss beside its gradients: the kernels' budget, or all logits where they are fewer."""
    budget = max(CUDA_SCRATCH, machine.memory // 16) if machine.cuda else SCRATCH_BYTES
    return min(budget, 2 * 4 * predicted * c.vocab_size) + 12 * predicted * c.hidden_size


def reference(c: ModelConfig, w: Workload, machine: Machine, micro_tokens: int) -> dict[str, int]:
    """A forward without gradient, then the head's scratch."""
    tokens, predicted = w.micro_batch(machine.ranks, micro_tokens, w.examples)
    parts = {"activations": tokens * passing(c), "loss scratch": scratch_of_head(c, predicted, machine)}
    if machine.ranks > 1:
        parts["whole units"] = whole_units(c, 0, frozen=True)[1]
    return parts


def update(c: ModelConfig, w: Workload, machine: Machine, micro_tokens: int) -> dict[str, int]:
    """A micro-batch's forward and backward pass."""
    tokens, predicted = w.micro_batch(machine.ranks, micro_tokens)
    size, counts = c.dtype.itemsize, count_weights(c, w.recipe.optimiser)
    layers = range(c.num_layers - layers_trained(c, w.recipe.optimiser), c.num_layers)
    of_layers = [tokens * kept_by_layer(c, layer, machine.cuda) for layer in layers]
    # Gradients inside a layer's MLP, with what is made again there. On a CPU its matrix products hold copies, and pieces of
    # the heap that were freed wait for a use; with adapters 12 were measured on AVX512, where 5 were alive.
    wide = 2.7 if machine.cuda else 10 if counts.adapters else 7
    in_mlp = int(tokens * size * wide * widest_mlp(c))
    in_delta = max(
        (tokens * (made_again(c) - kept_by_mlp(c, layer)) for layer in c.delta_layers), default=0
    )  # it is over
    if w.recipe.execution.checkpointing:
        inputs = tokens * size * c.hidden_size * len(layers)
        # Norms and SwiGLU of the layer that is run again; experts keep theirs.
        made = (
            tokens
            * size
            * (2 * c.hidden_size + max((c.ffn_size for i in layers if i not in c.sparse_layers), default=0))
        )
        parts = {"checkpoints": inputs, "activations": max(of_layers) + max(made + in_mlp, in_delta)}
    else:
        parts = {"activations": sum(of_layers) + max(in_mlp, in_delta)}
    last = tokens * size * 2 * c.hidden_size  # the last norm's input, and its gradient
    parts["activations"] += last
    parts["loss scratch"] = scratch_of_head(c, predicted, machine)
    if machine.ranks > 1:
        in_backward, *at_ends = whole_units(c, counts.trained_vocab, bool(counts.adapters))
        moments = [parts | {"whole units": in_backward}, *({"whole units": size} for size in at_ends)]
        parts = max(moments, key=lambda found: sum(found.values()))
    else:
        largest = 0 if counts.adapters else max(n for name, n in sizes(c).items() if layer_of(name) >= 0)
        head = c.vocab_size * c.hidden_size if counts.trained_vocab else 0
        parts["gradients on their way"] = size * (head + largest)
        if c.tied and counts.trained_vocab:
            # Both of the tied weight's gradients are there at the end, when the activations are gone.
            at_end = {"activations": last, "gradients on their way": 2 * size * c.vocab_size * c.hidden_size}
            parts = max(parts, parts | at_end, key=lambda found: sum(found.values()))
    if w.recipe.objective.kind == "crisp":
        parts["teacher"] = teacher(c, counts, tokens)
    return parts


def teacher(c: ModelConfig, counts: Counts, tokens: int) -> int:
    """Bytes of CRISP's teacher: its hidden states of a micro-batch; where the head is trained, the head as it was, whole
    on every rank, and if that is narrower than fp32, the fp32 sum of the head's gradient."""
    size, head = c.dtype.itemsize, c.vocab_size * c.hidden_size if counts.trained_vocab else 0
    return size * (tokens * c.hidden_size + head) + (4 * head if size < 4 else 0)


def whole_units(c: ModelConfig, trained_vocab: int, frozen: bool) -> tuple[int, int, int]:
    """Bytes that are whole at once under FSDP, as torch's simulation shows them, at three moments of an update.

    In the backward pass: the embedding and the head with the head's gradient, one layer that computes, the next one
    gathered ahead, the gradients of the one before in fp32 on their way to their shards, and the first gradient of this
    one (down's); none of a layer that is frozen, beside adapters. At the start, both copied out of the buffer that they are
    gathered in, and the first layer too. At the end, both with their gradients in fp32.
    """
    vocab, size = vocabulary(c), c.dtype.itemsize
    first = {name: count for name, count in sizes(c).items() if layer_of(name) == 0}
    layer, down = sum(first.values()), max(count for name, count in first.items() if name.endswith("down.weight"))
    head = c.vocab_size * c.hidden_size if trained_vocab else 0
    in_backward = size * (vocab + head + 2 * layer) + (0 if frozen else size * down + 4 * layer)
    return in_backward, 2 * size * (vocab + layer), size * vocab + 4 * trained_vocab
