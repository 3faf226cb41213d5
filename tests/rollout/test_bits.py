"""A row has the same bits in any company, whatever a library makes of a product's shape."""

import logging

import pytest
import torch
import torch.nn.functional as F

import o1core.model
from o1core import Engine, SamplingParams
from o1core.model.elementwise import silu
from o1core.rollout.row_bits import BatchSizes, attention_sizes, cancelling, model_sizes, product_sizes
from tests.campaigns.bits import WIDTHS, Words, real_widths
from tests.machine import skip_where_a_row_is_rounded_by_its_place


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, build_checkpoint):
    folder = tmp_path_factory.mktemp("bits")
    build_checkpoint(folder, "qwen2", seed=4, num_attention_heads=6, num_key_value_heads=2)
    return o1core.model.load(folder)


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture
def library(monkeypatch):
    """library(order): from now on products add up their terms in order(K, rows), an order of K indices."""
    linear, matmul = F.linear, torch.matmul

    def install(order) -> None:
        def ordered_linear(x, weight, bias=None):
            index = order(x.shape[-1], x.numel() // x.shape[-1])
            return linear(x[..., index], weight[:, index], bias)

        def ordered_matmul(a, b):
            index = order(a.shape[-1], len(a))
            return matmul(a[..., index], b[..., index, :])

        monkeypatch.setattr(F, "linear", ordered_linear)
        monkeypatch.setattr(torch, "matmul", ordered_matmul)

    for known in (product_sizes, attention_sizes):
        known.cache_clear()
    yield install
    for known in (product_sizes, attention_sizes):
        known.cache_clear()


def another_order_for_every_shape(size: int, rows: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(rows))


def test_a_library_that_rounds_otherwise_for_every_number_of_rows(loaded, library):
    library(another_order_for_every_shape)
    x, weight = torch.randn(2, 64, 96, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(F.linear(x[:8], weight), F.linear(x, weight)[:8])
    batches = model_sizes(loaded[0], loaded[1].size)
    assert batches.holds and batches.cut(5) == batches.cut(64) == [64] and batches.cut(70) == [64, 64]
    assert attention_sizes(64, 2, 3, 16, torch.float32, torch.device("cpu"), 1).cut(11) == [8, 8]
    prompts, params = prompts_of([63, 1, 130, 5, 62, 220]), SamplingParams(n=14, max_new_tokens=24, seed=5)
    expected = Engine(*loaded, slots=8).generate(prompts, params)
    for slots in (3, 70):
        assert Engine(*loaded, slots).generate(prompts, params) == expected
    assert Engine(*loaded, slots=17).generate(prompts[::-1], params) == expected[::-1]


def test_a_library_that_rounds_by_the_place_of_a_row_is_warned_of_once(loaded, library, caplog, monkeypatch):
    linear = F.linear

    def by_place(x, weight, bias=None):
        y = linear(x, weight, bias)
        return torch.cat((y[:-1], linear(x[-1:].flip(-1), weight.flip(-1), bias)))

    monkeypatch.setattr(F, "linear", by_place)
    product_sizes.cache_clear()
    engine = Engine(*loaded)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            engine.generate(prompts_of([5]), SamplingParams(max_new_tokens=2))
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "matrix products on this machine (torch.float32, 1 threads) round a row by its place in the batch"
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_test_sees_any_other_order_of_addition(dtype):
    """A product of the test's operands in another order has other bits, in bfloat16 too, where others rarely show it."""
    x, weight = cancelling(100, 897, dtype, torch.device("cpu"))
    assert (x.double() @ weight.double().T).abs().max() < 1e-12
    whole = F.linear(x, weight)
    for parts in (2, 3):  # as if so many threads had added up a part of the terms each
        cut = [F.linear(a, b) for a, b in zip(x.float().chunk(parts, 1), weight.float().chunk(parts, 1))]
        assert not torch.equal(sum(cut).to(dtype), whole)


def test_batches_hold_all_rows():
    batches = BatchSizes([lambda rows: torch.full((rows, 1), float(rows in (16, 24, 64)))], base=64, step=8)
    assert [batches.cut(rows) for rows in (1, 17, 25, 64)] == [[16], [24], [64], [64]]
    assert batches.cut(130) == [64, 64, 16]


@torch.inference_mode()  # as the engine decodes
def test_silu_of_a_decoded_row_does_not_depend_on_seams_between_threads():
    x = torch.randn(64, 4864, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)  # 64 x 4864 numbers in three pieces: two seams inside rows
    many = silu(x)
    torch.set_num_threads(threads)
    assert torch.equal(many, torch.cat([F.silu(row) for row in x.split(1)]))


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_real_widths(two_threads):
    """One layer of 896 x 4864 with 151,936 tokens, 2 threads: alone, with others, more and fewer slots."""
    model, words = real_widths(torch.float32, layers=1), Words(WIDTHS["vocab_size"])
    skip_where_a_row_is_rounded_by_its_place(model, words.size)
    prompts, params = [words.prompt(str(i)) for i in range(3)], SamplingParams(n=3, max_new_tokens=3)
    expected = Engine(model, words, slots=64).generate(prompts, params)
    assert len({tuple(c.ids) for group in expected for c in group}) == 9
    assert Engine(model, words, slots=3).generate(prompts[::-1], params) == expected[::-1]
    assert Engine(model, words, slots=64).generate(prompts[2:], params) == expected[2:]
