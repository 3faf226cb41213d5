"""Batch-invariant products: a decoded row gets the same bits whatever rows are computed beside it.

A library picks the order in which it adds up a product's terms by the product's shape, so the same row can come out with
other last bits in a batch of 8 rows than in one of 64. The products of a decode step therefore run on batches of a fixed
size, `base`: fewer rows are padded, more are cut into several batches. That holds whatever the library does, as long as it
treats the rows of a batch alike, but it wastes work where few rows are left. So another size is used where it was seen to
give the same bits as `base` on this machine, for these widths, dtype and number of threads. Every size is tested once,
before its first use.

The test multiplies operands whose exact product is zero. What is left is rounding error, which changes with any other order
of addition, even where bfloat16 would round the difference away. All rows of a test are equal and must come out equal, so
it also covers a row's place in its batch. Of a weight with very many outputs a part is tested: more outputs are more turns of
the same loop, and each is added up as before. If the rows of a `base` batch differ, the promise cannot be kept: `holds` says
so. Nothing is promised between different numbers of threads.

Experts multiply as many rows as were sent to each, so there each expert's rows are cut into such batches. On a GPU one grouped
product does all experts, and that it treats a row alike however many there are is believed, not tested.

The products come in two kinds. On a CPU whose oneDNN computes in bf16, the engine packs the weights once per call in the
layout that oneDNN multiplies fastest: a plain product of a few rows with a large matrix copies parts of the matrix into that
layout every time. That made decoding a 0.5B model a quarter faster, for a second copy of its matrices in memory. Elsewhere
(a GPU, other dtypes, a model that is large for the machine) nothing is packed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import AdaptedLinear, GroupedLinear, Transformer
from .memory import total_memory

CPU_ROWS, GPU_ROWS = 64, 256  # base sizes: a GPU reads its weights as fast for 256 rows as for one
HEAD_STEP = 64
ROW_STEP = 8  # a product with a weight gets a multiple of so many rows
ATTENTION_ROWS = 8  # base size of attention, whose rows have all their heads
DRAWN_ROWS = 256  # of a test's weight; the others repeat them
TESTED_OUTPUTS = 8192  # most rows of a test's weight: a vocabulary's head would be held twice for the sake of its test
PACKED_ROWS = 64  # a typical number of rows, for oneDNN to choose the layout by

Product = Callable[[Tensor], Tensor]
Test = Callable[[int], Tensor]  # a number of equal rows -> the product, [rows, ...]


class BatchSizes:
    """The sizes of the batches that some products may have; `tests` run those products on equal rows.

    A size is `base`, or another multiple of `step` that gives the same bits.
    """

    def __init__(self, tests: Sequence[Test], base: int, step: int = 1) -> None:
        self.tests, self.base, self.step = tests, base, step
        self.rows = [self._row(test, base) for test in tests]
        self.holds = all(row is not None for row in self.rows)
        self._known = {base: True}

    def cut(self, rows: int) -> list[int]:
        """Sizes of batches that hold `rows` rows together; the last may hold a few more, which are padding."""
        size = -(-rows // self.step) * self.step
        if self._same(size):
            return [size]
        return [self.base, *self.cut(rows - self.base)] if size > self.base else self.cut(size + self.step)

    def _same(self, size: int) -> bool:
        """Whether `size` rows come out as `base` rows do."""
        if size not in self._known:
            self._known[size] = self.holds and all(
                same_bits(self._row(test, size), row) for test, row in zip(self.tests, self.rows)
            )
        return self._known[size]

    @torch.inference_mode()
    def _row(self, test: Test, size: int) -> Tensor | None:
        """What each row of a product of `size` rows is; None where they differ."""
        out = test(size)
        return out[0].clone() if torch.equal(out, out[:1].expand_as(out)) else None


def same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


@cache
def product_sizes(
    shapes: tuple[tuple[int, int, bool], ...], dtype: torch.dtype, device: torch.device, packed: bool, threads: int
) -> BatchSizes:
    """For products with weights of these shapes (outputs, inputs, whether there is a bias)."""
    tested = {(min(outputs, TESTED_OUTPUTS), inputs, has_bias) for outputs, inputs, has_bias in shapes}

    def test_of(outputs: int, inputs: int, has_bias: bool) -> Test:
        def test(rows: int) -> Tensor:
            row, weight = cancelling(outputs, inputs, dtype, device)
            bias = weight[:, 0] * 1e-6 if has_bias else None
            return product(weight, bias, packed)(row.repeat(rows, 1))

        return test

    return BatchSizes(
        [test_of(*shape) for shape in sorted(tested)], CPU_ROWS if device.type == "cpu" else GPU_ROWS, ROW_STEP
    )


@cache
def attention_sizes(
    span: int, kv_heads: int, group: int, head_dim: int, dtype: torch.dtype, device: torch.device, threads: int
) -> BatchSizes:
    """For the two products of attention, q [R, Hkv, G, D] over k and v [R, Hkv, T, D], with T = span."""

    q, k = cancelling(span, head_dim, dtype, device)
    weights, values = cancelling(head_dim, span, dtype, device)

    def scores(rows: int) -> Tensor:
        return torch.matmul(q.repeat(rows, kv_heads, group, 1), k.repeat(rows, kv_heads, 1, 1).transpose(-1, -2))

    def mixture(rows: int) -> Tensor:
        return torch.matmul(weights.repeat(rows, kv_heads, group, 1), values.T.repeat(rows, kv_heads, 1, 1))

    return BatchSizes([scores, mixture], ATTENTION_ROWS)


def head_columns(rows: int, vocab: int, on_gpu: bool) -> int:
    """Tokens that a head of `rows` rows scores so that the first `vocab` are known: on a GPU a multiple of 64 where there are
    as many, since products of other sizes leave its fast paths, and the sampler reads such rows 16 bytes at a time."""
    return min(-(-vocab // HEAD_STEP) * HEAD_STEP, rows) if on_gpu else vocab


def model_sizes(model: Transformer, vocab: int) -> BatchSizes:
    """For one decode step of a model whose head scores `vocab` tokens."""
    weight = model.embed
    vocab = head_columns(len(weight), vocab, weight.is_cuda)
    linears = [module for module in linear_modules(model) if groups_of(module) == 1]
    shapes = {(m.out_features, m.in_features, m.bias is not None) for m in linears} | {(vocab, weight.shape[1], False)}
    ordered, threads = tuple(sorted(shapes)), torch.get_num_threads()
    return product_sizes(ordered, weight.dtype, weight.device, packs(model), threads)


def expert_sizes(model: Transformer) -> BatchSizes | None:
    """For the rows of one expert; None where the model has no experts."""
    grouped = [module for module in linear_modules(model) if groups_of(module) > 1]
    shapes = tuple(sorted({(m.out_features // groups_of(m), m.in_features, False) for m in grouped}))
    if not shapes:
        return None
    return product_sizes(shapes, model.embed.dtype, model.embed.device, False, torch.get_num_threads())


def linear_modules(model: Transformer) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def groups_of(module: nn.Linear) -> int:
    """How many matrices a linear module holds: one, or one for each expert."""
    return module.groups if isinstance(module, GroupedLinear | AdaptedLinear) else 1


def grouped_rows(weight: Tensor, batches: BatchSizes) -> Callable[[Tensor, Tensor], Tensor]:
    """What grouped_product computes, each group's rows in batches of fixed sizes."""

    def multiply(x: Tensor, counts: Tensor) -> Tensor:
        found = []
        for rows, matrix in zip(x.split(counts.tolist()), weight.view(len(counts), -1, weight.shape[1])):
            for size in batches.cut(len(rows)) if len(rows) else ():
                part, rows = rows[:size], rows[size:]
                found.append(F.linear(F.pad(part, (0, 0, 0, size - len(part))), matrix)[: len(part)])
        return torch.cat(found)

    return multiply


def cancelling(outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """x [1, I] and a weight [O, I] with x weight^T = 0: each term has its negative at some other place."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(inputs, generator=generator)
    x = torch.randn(1, inputs // 2, generator=generator).to(dtype)
    weight = torch.randn(min(outputs, DRAWN_ROWS), inputs // 2, generator=generator).to(dtype)
    odd = inputs % 2
    x = torch.cat((x, x, x.new_zeros(1, odd)), 1)[:, order]
    weight = torch.cat((weight, -weight, weight.new_zeros(len(weight), odd)), 1)[:, order]
    return x.to(device), weight.to(device).repeat(-(-outputs // len(weight)), 1)[:outputs]


def product(weight: Tensor, bias: Tensor | None, packed: bool) -> Product:
    """x [..., H] -> x weight^T + bias [..., O], with the weight as it is now."""
    if not packed:
        return lambda x: F.linear(x, weight, bias)
    layout = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACKED_ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, layout, bias, "none", [], "")


def head_product(weight: Tensor, packed: bool) -> Product:
    """x [R, H] -> logits x weight^T [R, V] of a head. On a GPU they are the product's own fp32 sums: rounded to bf16, a logit
    of 25 would be off by up to .06, and a sampled token's log-prob with it."""
    if weight.device.type == "cpu" or weight.dtype.itemsize > 2:
        return product(weight, None, packed)
    return lambda x: torch.mm(x, weight.T, out_dtype=torch.float32)


def worth_packing(weights: int, dtype: torch.dtype, on_cpu: bool) -> bool:
    """Whether a model of so many bytes computes in bf16 on a CPU whose oneDNN does, and takes at most an eighth of the
    machine's memory.

    What is free at the moment does not count: a packed product may round differently, and a run that resumes must not.
    """
    can = on_cpu and dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return can and 8 * weights <= total_memory()


def packs(model: Transformer) -> bool:
    """Whether the model's matrices are packed while it samples."""
    weight = model.embed
    return worth_packing(sum(p.nbytes for p in model.parameters()), weight.dtype, weight.device.type == "cpu")


@contextmanager
def packed_model(model: Transformer, vocab: int) -> Iterator[Product]:
    """Inside, the model's matrices are packed, and experts multiply batches of fixed sizes; yields the head's product,
    logits [..., vocab] of hidden states [..., H].

    No gradient flows through packed matrices, and they do not follow an update: train after the rollouts, not between.
    """
    packed, batches = packs(model), expert_sizes(model)
    linears = linear_modules(model)
    try:
        with torch.inference_mode():
            for module in linears:
                if groups_of(module) > 1 and not module.weight.is_cuda:
                    assert batches is not None
                    vars(module)["forward"] = grouped_rows(module.weight, batches)
                elif packed:
                    vars(module)["forward"] = product(module.weight, module.bias, packed)
            columns = head_columns(len(model.lm_head), vocab, model.lm_head.is_cuda)
            whole = head_product(model.lm_head[:columns], packed)
        yield lambda x: whole(x)[..., :vocab]
    finally:
        for module in linears:
            vars(module).pop("forward", None)
