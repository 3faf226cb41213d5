"""What the Triton kernels do to memory: how much they read and write, where, and how much scratch they take."""

from types import SimpleNamespace

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

from o1core import kernels
from o1core.kernels import configs, triton_linear, triton_tiles
from o1core.kernels.triton_backward import Rows, Table, kept_gradient_kernel, logit_gradient_kernel
from o1core.kernels.triton_forward import partial_sums_kernel
from o1core.kernels.triton_gather import gather_backward_kernel, gather_forward_kernel
from o1core.kernels.triton_tiles import Operands, Sums
from tests.kernels import interpreter
from tests.kernels.triton_cases import BLOCK_V, gradients, head, ids, leaf, needs_interpreter, normal, with_blocks_of

# Lanes past the end of a row or batch compute on what masked loads put there, and nothing of it is stored.
pytestmark = [pytest.mark.usefixtures("on_triton"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


@needs_interpreter
def test_gather_logprob_reads_the_logits_once():
    n, v = 5, 200
    logits, targets = leaf(normal(n, v)), ids(n, v)
    with interpreter.accesses() as seen:
        logp, _ = kernels.gather_logprob(logits, targets, entropy=True)
    counted = interpreter.numbers(seen, logits=logits)
    assert counted["load logits"] == n * v + n  # and the target's logit once more
    assert counted["store"] == 4 * n  # log-prob, maximum, log of the sum above it, entropy
    with interpreter.accesses() as seen:
        logp.sum().backward()
    assert interpreter.numbers(seen, logits=logits)["load logits"] == n * v


@needs_interpreter
def test_linear_logprob_writes_sums_of_tiles_and_no_logits():
    n, v = 40, 10 * BLOCK_V - 3
    hidden, weight, targets = head(n, v, 8)
    with interpreter.accesses() as seen:
        kernels.linear_logprob(hidden, weight, targets)
    counted = interpreter.numbers(seen, hidden=hidden, weight=weight)
    tiles = triton.cdiv(v, BLOCK_V)
    # A maximum and a sum a tile, the target's logit, then the log-prob, the maximum and the log of the sum above it.
    assert counted["store"] == n * (2 * tiles + 1 + 3)
    assert counted["store"] < n * v / 10
    assert not counted["store hidden"] + counted["store weight"]


def last_program_of(kernel, program, *arguments, **constants):
    with interpreter.accesses(fake=True, program=program) as seen:
        kernel[(1,)](*arguments, **constants)
    return seen


def offsets(seen, kind, shape, base, itemsize):
    """Offsets in numbers from `base` of the accesses to blocks of one shape."""
    found = [access.addresses for access in seen if access.kind == kind and access.shape == shape]
    return sorted({(int(a) - base) // itemsize for block in found for a in block.ravel()})


N, V, H, STRIDE = 65_537, 152_065, 16, 40_000  # one row and one column past whole tiles; rows lie far apart
X, Z, T = torch.zeros(1, dtype=torch.float16), torch.zeros(1), torch.zeros(1, dtype=torch.int64)  # only addresses


def linear_launch():
    """Block sizes, the last program, the launch's options, and the width of a row of dZ."""
    launch = configs.LINEAR["interpreter"][2]
    block_n, block_v, block_h = (launch.constants[name] for name in ("BLOCK_N", "BLOCK_V", "BLOCK_H"))
    last = triton.cdiv(N, block_n) * triton.cdiv(V, block_v) - 1
    options = dict(ACC=triton.language.float32, ENTROPY=False, **launch.options())
    return block_n, block_v, block_h, last, options, triton_tiles.padded(V)


@needs_interpreter
def test_the_gradient_of_logits_addresses_beyond_two_to_the_31():
    """The last program of N 65,537, V 152,065, H 16 with rows far apart, on memory that is not there."""
    block_n, block_v, block_h, last, options, chunk = linear_launch()
    operands, per_row, d_logits = Operands(X, X, STRIDE, STRIDE, H), Rows(T, Z, Z, Z, Z), Table(X, chunk)
    arguments = operands, per_row, d_logits, N, V, 0, 1.0
    seen = last_program_of(logit_gradient_kernel, last, *arguments, **options)
    row, column, base = N - 1, V - 1, X.data_ptr()
    assert row * STRIDE > 2**31 and column * STRIDE > 2**31 and row * chunk > 2**31
    assert offsets(seen, "load", (block_n, block_h), base, 2) == [row * STRIDE + k for k in range(H)]
    assert offsets(seen, "load", (block_h, block_v), base, 2) == [column * STRIDE + k for k in range(H)]
    assert offsets(seen, "store", (block_n, block_v), base, 2) == [row * chunk + column + k for k in range(block_v)]


@needs_interpreter
@pytest.mark.parametrize("keep", [False, True])
def test_partial_sums_address_beyond_two_to_the_31(keep):
    block_n, block_v, block_h, last, options, chunk = linear_launch()
    arguments = Operands(X, X, STRIDE, STRIDE, H), Sums(T, X, Z, Z, Z, Z, chunk), N, V, 1.0
    seen = last_program_of(partial_sums_kernel, last, *arguments, KEEP=keep, **options)
    row, column, base = N - 1, V - 1, X.data_ptr()
    assert offsets(seen, "load", (block_h, block_v), base, 2) == [column * STRIDE + k for k in range(H)]
    tiles = triton.cdiv(V, block_v)
    assert (tiles - 1) * N + row in offsets(seen, "store", (block_n,), Z.data_ptr(), 4)
    kept = [row * chunk + column + k for k in range(block_v)] if keep else []
    assert offsets(seen, "store", (block_n, block_v), base, 2) == kept


@needs_interpreter
@pytest.mark.parametrize("pick", [False, True])
def test_the_gradient_of_kept_numbers_addresses_beyond_two_to_the_31(pick):
    """The picked row is 0 in memory that is not there."""
    _, block_v, _, _, _, chunk = linear_launch()
    kept_block = configs.KEPT["interpreter"].constants["BLOCK_N"]
    options = dict(BLOCK_V=block_v, PICK=pick, ACC=triton.language.float32, **configs.KEPT["interpreter"].options())
    last = triton.cdiv(N, kept_block) * triton.cdiv(V, block_v) - 1
    table, per_row = Table(X, chunk), Rows(T, Z, Z, Z, Z)
    seen = last_program_of(kept_gradient_kernel, last, table, table, T, Z, per_row, N, V, N, chunk, **options)
    row, column, base = N - 1, V - 1, X.data_ptr()
    numbers = [column + k for k in range(block_v)]
    source = 0 if pick else row * chunk
    assert offsets(seen, "load", (kept_block, block_v), base, 2) == [source + k for k in numbers]
    assert offsets(seen, "store", (kept_block, block_v), base, 2) == [row * chunk + k for k in numbers]


@needs_interpreter
def test_addresses_beyond_two_to_the_31_in_the_gather_kernels():
    n, v = 65_536, 152_064
    block = configs.GATHER["gpu"].constants["BLOCK_V"]
    blocks = triton.cdiv(v, block)
    x, z, t = torch.zeros(1, dtype=torch.float16), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    options = dict(ACC=triton.language.float32, ENTROPY=False, **configs.GATHER["gpu"].options())
    row = (n - 1) * v
    assert row > 2**31
    seen = last_program_of(gather_forward_kernel, n - 1, x, t, (z, z, z, z), v, v, v, 1.0, **options)
    assert offsets(seen, "load", (block,), x.data_ptr(), 2) == [row + k for k in range(v)]
    table, per_row = Table(x, v), Rows(t, z, z, z, z)
    seen = last_program_of(gather_backward_kernel, n * blocks - 1, table, per_row, table, v, v, blocks, 1.0, **options)
    last_block = [row + k for k in range((blocks - 1) * block, v)]
    assert offsets(seen, "load", (block,), x.data_ptr(), 2) == last_block
    assert offsets(seen, "store", (block,), x.data_ptr(), 2) == last_block


def test_cpu_tensors_without_the_interpreter_are_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        configs.target(torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_small_scratch_changes_nothing_but_the_waves(monkeypatch, dtype):
    """A scratch so small that rows come in waves and the vocabulary in chunks, in both passes."""
    n, v, h = 140, 280, 64
    with_blocks_of(monkeypatch, "sm_80")
    hidden, weight, targets = head(n, v, h, dtype)
    upstream = normal(n, seed=4), normal(n, seed=5)
    whole = gradients(kernels.linear_logprob, hidden, weight, targets, *upstream)
    monkeypatch.setattr(triton_linear, "SCRATCH_BYTES", 256 * (128 * dtype.itemsize + h * max(dtype.itemsize, 4)))
    wave, chunk = triton_linear.split(n, v, h, dtype.itemsize, triton_linear.SCRATCH_BYTES)
    assert wave < n and chunk < v
    # The products of two chunks are rounded as one: equal up to the order of a sum.
    tolerance = dict(rtol=1e-10, atol=1e-10) if dtype == torch.float64 else dict(rtol=2e-3, atol=2e-3)
    for a, b in zip(gradients(kernels.linear_logprob, hidden, weight, targets, *upstream), whole):
        torch.testing.assert_close(a, b, **tolerance)


@given(
    rows=st.integers(1, 2**20),
    columns=st.integers(1, 300_000),
    width=st.integers(1, 16_384),
    itemsize=st.sampled_from([2, 4, 8]),
    scratch=st.sampled_from([triton_linear.SCRATCH_BYTES, 4 * triton_linear.SCRATCH_BYTES]),
)
@settings(deadline=None, max_examples=300)
def test_scratch_of_the_backward_pass_is_bounded(rows, columns, width, itemsize, scratch):
    wave, chunk = triton_linear.split(rows, columns, width, itemsize, scratch)
    assert 1 <= wave <= rows and 1 <= chunk <= columns
    sums = chunk * width * max(itemsize, 4) if wave < rows else 0
    assert wave * triton_tiles.padded(chunk) * itemsize + sums <= scratch


def test_a_large_card_takes_fewer_chunks(monkeypatch):
    """64k tokens of a 7B head on 80 GB: 10 chunks of the vocabulary in place of 38."""
    for gigabytes, chunks in ((24, 38), (80, 10)):
        memory = SimpleNamespace(total_memory=gigabytes * 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, memory=memory: memory)
        scratch = triton_linear.scratch_bytes(torch.device("cuda", 0))
        wave, chunk = triton_linear.split(65536, 152064, 3584, 2, scratch)
        assert wave == 65536 and triton.cdiv(152064, chunk) == chunks
