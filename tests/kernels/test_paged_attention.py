"""Decode attention over pages, in both backends: against float64 attention, and the same bits whatever is beside a row."""

import warnings

import pytest
import torch

from o1core import kernels
from o1core.kernels import dispatch, pages, torch_reference
from tests.kernels.interpreter import dot_by_rows
from tests.kernels.triton_cases import DEVICE, INTERPRETED, normal, triton_backend
from tests.machine import skip_where_a_batch_is_rounded_by_its_size

PAGE = kernels.PAGE_TOKENS
LENGTHS = (1, 63, 64, 65, 511, 512, 513, 1200)


@pytest.fixture(params=["torch", "triton"], autouse=True)
def backend(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("O1CORE_KERNELS", "torch")
        yield request.param
    elif INTERPRETED or DEVICE == "cuda":
        with triton_backend(monkeypatch):
            yield request.param
    else:
        pytest.skip("needs Triton's interpreter or a GPU")


class Case:
    """Rows of the given lengths on pages in any order. Slots that no row uses hold NaN, and so do the pages of table
    entries past a row's end."""

    def __init__(self, lengths=LENGTHS, heads=4, kv_heads=2, size=16, dtype=torch.float32, seed=0, spare=3, width=None):
        generator = torch.Generator().manual_seed(seed)
        needed = [-(-n // PAGE) for n in lengths]
        order = torch.randperm(sum(needed) + spare, generator=generator).to(torch.int32)
        width = width or max(needed)
        self.table = torch.full((len(lengths), width), int(order[-1]), dtype=torch.int32)
        self.keys, self.values = (
            torch.full((len(order), kv_heads, PAGE, size), torch.nan, dtype=torch.float64) for _ in range(2)
        )
        free = iter(order.tolist())
        for row, n in enumerate(lengths):
            # A row's numbers depend on its length alone, so that it can be found again in another batch.
            k, v = (normal(kv_heads, n, size, seed=2 * n + i).cpu() for i in range(2))
            for p in range(needed[row]):
                page = self.table[row, p] = next(free)
                part = slice(p * PAGE, min((p + 1) * PAGE, n))
                self.keys[page, :, : part.stop - part.start] = k[:, part]
                self.values[page, :, : part.stop - part.start] = v[:, part]
        self.queries = torch.stack([normal(heads, size, seed=7 * n).cpu() for n in lengths])
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.dtype = dtype

    def arguments(self, dtype=None):
        floats = (t.to(DEVICE, dtype or self.dtype) for t in (self.queries, self.keys, self.values))
        return (*floats, self.table.to(DEVICE), self.lengths.to(DEVICE))

    def run(self):
        return kernels.paged_attention(*self.arguments(), max(int(self.lengths.max()), 1))


@pytest.mark.parametrize("heads, kv_heads, size", [(4, 2, 16), (7, 1, 32)])
def test_attention_is_float64_attention(heads, kv_heads, size):
    case = Case(heads=heads, kv_heads=kv_heads, size=size)
    truth = torch_reference.paged_attention(*case.arguments(torch.float64))
    found = case.run()
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert (found.double() - truth).abs().max() <= 1e-6


def test_attention_in_float64_is_exact():
    case = Case(lengths=(65, 513), dtype=torch.float64)
    torch.testing.assert_close(case.run(), torch_reference.paged_attention(*case.arguments()), rtol=1e-12, atol=1e-14)


def test_attention_in_bf16_is_as_near_as_its_numbers():
    case = Case(lengths=(65, 600), dtype=torch.bfloat16)
    truth = torch_reference.paged_attention(*(t.double() if t.is_floating_point() else t for t in case.arguments()))
    assert (case.run().double() - truth).abs().max() < 2e-2


@pytest.fixture
def even_products(backend):
    """Products whose bits the processor has no say in: those of a tensor core in Triton's interpreter; in torch a library's,
    where it multiplies each matrix of a batch alike."""
    if backend == "torch":
        for kv_heads, group in ((1, 2), (1, 3)):
            skip_where_a_batch_is_rounded_by_its_size((64, 128, 256, 1024, 2048), kv_heads, group, 16)
        yield
    else:
        with dot_by_rows():
            yield


def test_a_row_has_the_same_bits_alone_in_a_batch_on_other_pages_and_under_a_wider_table(even_products):
    lengths = (1, 64, 65, 513, 1200)
    shape = {"heads": 3, "kv_heads": 1}
    batch = dict(zip(lengths, Case(lengths, **shape).run()))
    others = (
        Case(lengths, seed=5, spare=9, **shape),
        Case(lengths, width=40, **shape),
        Case(lengths[::-1], **shape),
        *(Case((n,), **shape) for n in lengths),
    )
    for other in others:
        for n, row in zip(other.lengths.tolist(), other.run()):
            assert torch.equal(row, batch[n])


def test_a_row_has_the_same_bits_in_batches_of_1_to_64_rows(even_products):
    lengths = [3 * i + 1 for i in range(64)]
    shape = {"heads": 2, "kv_heads": 1}
    whole = dict(zip(lengths, Case(lengths, **shape).run()))
    for rows in (1, 2, 3, 16, 17, 33, 63):
        some = Case(lengths[-rows:], seed=rows, **shape)
        for n, row in zip(some.lengths.tolist(), some.run()):
            assert torch.equal(row, whole[n])


def test_a_row_of_no_tokens_fills_the_batch():
    case = Case(lengths=(70, 3))
    case.lengths[1] = 0
    found = case.run()
    assert not found[1].any() and torch.equal(found[0], Case(lengths=(70,)).run()[0])
    assert (
        kernels.paged_attention(*(t[:0] if i in (0, 3, 4) else t for i, t in enumerate(case.arguments())), 1).shape[0]
        == 0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_keys_are_turned_and_written_to_the_slot_of_the_new_token(dtype):
    case = Case(lengths=(1, 64, 65, 130), size=16)
    case.lengths[1] = 0
    packed = normal(4, 4 + 2 + 2, 16, seed=9).to(DEVICE, dtype)
    queries, new_keys, new_values = packed.split([4, 2, 2], 1)
    angle = normal(4, 8, seed=10).to(DEVICE)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    _, keys, values, table, lengths = case.arguments(dtype)
    exact = [t.double().clone() for t in (queries, new_keys, new_values, cos, sin, keys, values)]
    before = keys.clone()
    turned = kernels.write_pages(queries, new_keys, new_values, cos, sin, keys, values, table, lengths)
    truth = torch_reference.write_pages(*exact, table, lengths)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    close = dict(rtol=tolerance, atol=tolerance, equal_nan=True)
    torch.testing.assert_close(turned.double(), truth, **close)
    torch.testing.assert_close(keys.double(), exact[5], **close)
    assert torch.equal(values.double().nan_to_num(), exact[6].nan_to_num())
    changed = (keys.nan_to_num() != before.nan_to_num()).any(-1).any(1)  # [pages, slots]
    assert changed.nonzero().tolist() == sorted(
        [int(table[r, (n - 1) // PAGE]), (n - 1) % PAGE] for r, n in ((0, 1), (2, 65), (3, 130))
    )


def test_what_the_kernel_does_not_take_runs_in_torch_with_one_line(backend):
    pages._warn_once.cache_clear()
    for shape, reason in ((dict(size=24), "head size 24"), (dict(heads=17, kv_heads=1), "17 query heads")):
        case = Case(lengths=(65,), **shape)
        truth = torch_reference.paged_attention(*case.arguments(torch.float64))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = [case.run(), case.run()]
        lines = [str(w.message) for w in caught if "decode attention" in str(w.message)]
        assert len(lines) == (backend == "triton")
        assert all(reason in line and "torch runs instead" in line and "\n" not in line for line in lines)
        torch.testing.assert_close(found[0].double(), truth, rtol=1e-6, atol=1e-6)


def test_an_old_gpu_runs_torch_with_one_line(monkeypatch):
    monkeypatch.delenv("O1CORE_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    dispatch._new_enough.cache_clear()
    with pytest.warns(UserWarning, match=r"^GPU of compute capability 7.5: .* torch runs instead$"):
        assert dispatch.primitives(torch.device("cuda", 0)) is dispatch.TORCH
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    dispatch._new_enough.cache_clear()
    assert dispatch.primitives(torch.device("cuda", 0)) is not dispatch.TORCH
    dispatch._new_enough.cache_clear()


WRONG = [
    ("queries", 0, lambda t: t[0]),
    ("keys", 1, lambda t: t[:, :, :32].contiguous()),
    ("keys", 1, lambda t: t.double()),
    ("values", 2, lambda t: t[:-1]),
    ("page_table", 3, lambda t: t.long()),
    ("page_table", 3, lambda t: t[0]),
    ("lengths", 4, lambda t: t[:1]),
    ("max_length", 5, lambda n: n + 1),
]


@pytest.mark.parametrize("name, index, change", WRONG)
def test_a_wrong_argument_is_named(name, index, change):
    arguments = [*Case(lengths=(64, 128)).arguments(), 128]
    kernels.paged_attention(*arguments)
    arguments[index] = change(arguments[index])
    with pytest.raises(ValueError, match=f"^{name}: "):
        kernels.paged_attention(*arguments)
