"""How many rows a product is given, so that a row has the same bits in any company.

A library adds up the terms of a product in an order that it picks by the shape: the same row can come out with other last
bits among 8 rows than among 64. So the products of a decode step have a fixed number of rows, `base`: fewer rows are
padded, more are cut into several blocks. That holds whatever the library does, as long as a block's rows are treated
alike, but it wastes work where few rows are left. Another number of rows is therefore taken where it was seen to give the
same bits as `base` rows on this machine, for these widths, dtype and number of threads, before it is used first.

The test: operands whose exact product is zero. What is left is the rounding error, and any other order of addition changes
it, even where bfloat16 would round the difference away. All rows of the test are equal and must come out equal, so it
covers the place of a row in its block too. If the rows of a `base` block differ, the promise cannot be kept: `holds` says
so. Nothing is promised between different numbers of threads.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from ..model import Transformer
from .packing import product, worth_packing

CPU_ROWS, GPU_ROWS = 64, 256  # of a block: a GPU reads its weights as fast for 256 rows as for one
ROW_STEP = 8  # a product with a weight has a multiple of so many rows
ATTENTION_ROWS = 8  # of a block of attention, each with all its heads
TILE = 256  # rows of a test's weight that are drawn; the others repeat them

Test = Callable[[int], Tensor]  # a number of equal rows -> the product, [rows, ...]


class Blocks:
    """The blocks that rows are cut into for some products, which `tests` run on equal rows.

    A block has `base` rows, or another multiple of `step` where that gives the same bits.
    """

    def __init__(self, tests: Sequence[Test], base: int, step: int = 1) -> None:
        self.tests, self.base, self.step = tests, base, step
        self.rows = [self._row(test, base) for test in tests]
        self.holds = all(row is not None for row in self.rows)
        self._known = {base: True}

    def cut(self, rows: int) -> list[int]:
        """Sizes of blocks that hold `rows` rows together; the last may hold some more."""
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
def product_blocks(
    shapes: tuple[tuple[int, int, bool], ...], dtype: torch.dtype, device: torch.device, packed: bool, threads: int
) -> Blocks:
    """Blocks for products with weights of these shapes (outputs, inputs, whether there is a bias)."""

    def test_of(outputs: int, inputs: int, has_bias: bool) -> Test:
        def test(rows: int) -> Tensor:
            row, weight = cancelling(outputs, inputs, dtype, device)
            bias = weight[:, 0] * 1e-6 if has_bias else None
            return product(weight, bias, packed)(row.repeat(rows, 1))

        return test

    return Blocks([test_of(*shape) for shape in shapes], CPU_ROWS if device.type == "cpu" else GPU_ROWS, ROW_STEP)


@cache
def attention_blocks(
    span: int, kv_heads: int, group: int, head_dim: int, dtype: torch.dtype, device: torch.device, threads: int
) -> Blocks:
    """Blocks for the two products of attention, q [R, Hkv, G, D] over k and v [R, Hkv, T, D], with T = span."""

    q, k = cancelling(span, head_dim, dtype, device)
    weights, values = cancelling(head_dim, span, dtype, device)

    def scores(rows: int) -> Tensor:
        return torch.matmul(q.repeat(rows, kv_heads, group, 1), k.repeat(rows, kv_heads, 1, 1).transpose(-1, -2))

    def mixture(rows: int) -> Tensor:
        return torch.matmul(weights.repeat(rows, kv_heads, group, 1), values.T.repeat(rows, kv_heads, 1, 1))

    return Blocks([scores, mixture], ATTENTION_ROWS)


def model_blocks(model: Transformer, vocab: int) -> Blocks:
    """Blocks for one decode step of a model whose head scores `vocab` tokens."""
    weight = model.embed
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    shapes = {(m.out_features, m.in_features, m.bias is not None) for m in linears} | {(vocab, weight.shape[1], False)}
    ordered, threads = tuple(sorted(shapes)), torch.get_num_threads()
    return product_blocks(ordered, weight.dtype, weight.device, worth_packing(model), threads)


def cancelling(outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """x [1, I] and a weight [O, I] with x weight^T = 0: each term has its negative at some other place."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(inputs, generator=generator)
    x = torch.randn(1, inputs // 2, generator=generator).to(dtype)
    weight = torch.randn(min(outputs, TILE), inputs // 2, generator=generator).to(dtype)
    odd = inputs % 2
    x = torch.cat((x, x, x.new_zeros(1, odd)), 1)[:, order]
    weight = torch.cat((weight, -weight, weight.new_zeros(len(weight), odd)), 1)[:, order]
    return x.to(device), weight.to(device).repeat(-(-outputs // len(weight)), 1)[:outputs]
