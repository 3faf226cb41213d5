"""The Triton kernels: in Triton's interpreter on a CPU, compiled where there is a GPU (then the counting tests skip).

Truth is float64 torch. gradcheck differentiates numerically, so it knows nothing of the equations in the kernels.
"""

import os

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from o1core.kernels import configs, torch_reference, triton_gather, triton_kept, triton_linear

from o1core import kernels
from tests import interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RATIOS = ("sequence", "sequence_mean", "token")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# How much further from float64 than torch in the same dtype a kernel may be.
SLACK = {torch.float32: 5e-4, torch.float16: 5e-3, torch.bfloat16: 1e-2}
BLOCK_V = configs.linear(torch.device(DEVICE), torch.float64).constants["BLOCK_V"]
BLOCK_N = configs.linear(torch.device(DEVICE), torch.float64).constants["BLOCK_N"]

# Lanes past the end of a row or batch compute on what masked loads put there, and nothing of it is stored.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="looks inside Triton's interpreter")


@pytest.fixture(autouse=True)
def choose_triton(monkeypatch):
    monkeypatch.setenv("O1CORE_KERNELS", "triton")
    with interpreter.exact_bf16():
        yield


def normal(*shape, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(DEVICE, dtype)


def ids(rows, vocabulary, seed=1, dtype=torch.int64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (rows,), generator=generator).to(DEVICE, dtype)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def head(n, v, h, dtype=torch.float64, level=0.0):
    """hidden [N, H] and weight [V, H] whose logits lie around `level`, and one target a row."""
    hidden, weight = normal(n, h, seed=2), normal(v, h, seed=3, scale=h**-0.5)
    if level:
        hidden[:, 0], weight[:, 0] = 8.0, level / 8.0
    return hidden.to(dtype), weight.to(dtype), ids(n, v)


def gradients(op, hidden, weight, targets, upstream, entropy_upstream, **options):
    """logp, entropy and the gradients of both inputs under given upstream gradients."""
    hidden, weight = leaf(hidden), leaf(weight)
    logp, entropy = op(hidden, weight, targets, entropy=True, **options)
    scores = (logp * upstream.to(logp.dtype)).sum() + (entropy * entropy_upstream.to(logp.dtype)).sum()
    scores.backward()
    return logp.detach(), entropy.detach(), hidden.grad, weight.grad


# log-prob of a linear head


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("n", "v", "h", "vocab_size"),
    [(3, 5, 2, 4), (3, BLOCK_V + 5, 3, None), (BLOCK_N + 1, BLOCK_V + 7, 19, BLOCK_V + 6)],
)
def test_linear_logprob_gradcheck(n, v, h, vocab_size, temperature):
    hidden, weight, _ = head(n, v, h)
    targets = ids(n, vocab_size or v)
    assert torch.autograd.gradcheck(
        lambda x, w: kernels.linear_logprob(
            x, w, targets, temperature=temperature, vocab_size=vocab_size, entropy=True
        ),
        (leaf(hidden), leaf(weight)),
        fast_mode=n * v > 20,  # a random direction of the Jacobian instead of each of its entries
    )


@pytest.mark.parametrize("n", [1, BLOCK_N - 1, BLOCK_N, 2 * BLOCK_N + 1])
@pytest.mark.parametrize("v", [1, BLOCK_V - 1, BLOCK_V, BLOCK_V + 1, 5 * BLOCK_V + 3])
def test_linear_logprob_at_the_edges_of_blocks(n, v):
    hidden, weight, targets = head(n, v, 19)
    upstream, entropy_upstream = normal(n, seed=4), normal(n, seed=5)
    ours = gradients(kernels.linear_logprob, hidden, weight, targets, upstream, entropy_upstream, temperature=0.7)
    truth = gradients(
        torch_reference.linear_logprob, hidden, weight, targets, upstream, entropy_upstream, temperature=0.7
    )
    for a, b in zip(ours, truth):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("level", [0.0, 90.0, -120.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_linear_logprob_is_as_near_to_float64_as_torch(dtype, level):
    n, v, h = 21, 3 * BLOCK_V - 5, 24
    hidden, weight, targets = head(n, v, h, dtype, level)
    upstream, entropy_upstream = normal(n, seed=4), normal(n, seed=5)
    upstream[3:6] = entropy_upstream[3:6] = 0  # masked rows
    arguments = (targets, upstream, entropy_upstream)
    truth = gradients(torch_reference.linear_logprob, hidden.double(), weight.double(), *arguments)
    torchs = gradients(torch_reference.linear_logprob, hidden, weight, *arguments)
    ours = gradients(kernels.linear_logprob, hidden, weight, *arguments)
    assert ours[2].dtype == ours[3].dtype == dtype and ours[0].dtype == torch.float32
    for name, exact, of_torch, of_ours in zip(("logp", "entropy", "d_hidden", "d_weight"), truth, torchs, ours):
        error, allowed = (of_ours.double() - exact).abs().max(), (of_torch.double() - exact).abs().max()
        assert error <= allowed + SLACK[dtype], f"{name}: error {error:.2e}, torch's {allowed:.2e}"
    assert not ours[2][3:6].any()


def test_log_probs_of_bf16_inputs_come_from_float32_logits():
    hidden, weight, targets = head(21, 3 * BLOCK_V - 5, 24, torch.bfloat16, level=25.0)
    truth = torch_reference.linear_logprob(hidden.double(), weight.double(), targets)
    torch.testing.assert_close(kernels.linear_logprob(hidden, weight, targets).double(), truth, rtol=0, atol=2e-5)


def test_linear_logprob_of_no_rows():
    hidden, weight, targets = head(0, 9, 4)
    hidden, weight = leaf(hidden), leaf(weight)
    logp, entropy = kernels.linear_logprob(hidden, weight, targets, entropy=True)
    (logp.sum() + entropy.sum()).backward()
    assert logp.shape == entropy.shape == (0,)
    assert hidden.grad.shape == (0, 4) and not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_linear_logprob_of_three_dimensions_and_strides(dtype):
    b, t, v, h = 3, 7, BLOCK_V + 3, 6
    wide = normal(t, b, 2 * h)
    hidden = wide.transpose(0, 1)[..., ::2]  # neither rows nor the numbers of a row are neighbours
    weight = normal(v, h, seed=3)
    targets = ids(2 * b * t, v, dtype=dtype).view(b, t, 2)[..., 0]
    truth = torch_reference.linear_logprob(hidden, weight, targets)
    ours = kernels.linear_logprob(hidden, weight, targets)
    assert ours.shape == (b, t)
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-10)


def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient():
    n, v, vocab_size = 9, 2 * BLOCK_V + 9, BLOCK_V + 2
    hidden, weight, _ = head(n, v, 5)
    weight[vocab_size:] += 100
    targets = ids(n, vocab_size)
    upstream = normal(n, seed=4), normal(n, seed=5)
    ours = gradients(kernels.linear_logprob, hidden, weight, targets, *upstream, vocab_size=vocab_size)
    truth = gradients(torch_reference.linear_logprob, hidden, weight[:vocab_size], targets, *upstream)
    for a, b in zip(ours[:3], truth[:3]):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(ours[3][:vocab_size], truth[3], rtol=1e-6, atol=1e-10)
    assert not ours[3][vocab_size:].any()


def test_a_frozen_side_gets_no_gradient_and_a_tied_head_adds_up():
    hidden, weight, targets = head(5, 11, 4)
    frozen = leaf(hidden)
    kernels.linear_logprob(frozen, weight, targets).sum().backward()
    assert weight.grad is None
    tied = leaf(weight)
    kernels.linear_logprob(tied[:5] * 2, tied, targets).sum().backward()
    exact = leaf(weight)
    torch_reference.linear_logprob(exact[:5] * 2, exact, targets).sum().backward()
    torch.testing.assert_close(tied.grad, exact.grad, rtol=1e-6, atol=1e-10)


def with_blocks_of(monkeypatch, target):
    """In the interpreter, the blocks of a GPU."""
    monkeypatch.setitem(configs.LINEAR, "interpreter", configs.LINEAR[target])
    for table in (configs.MERGE, configs.GATHER):
        monkeypatch.setitem(table, "interpreter", table["gpu"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_small_scratch_changes_nothing_but_the_waves(monkeypatch, dtype):
    """A scratch so small that rows come in waves and the vocabulary in chunks, in both passes."""
    n, v, h = 140, 280, 64
    with_blocks_of(monkeypatch, "sm_80")
    hidden, weight, targets = head(n, v, h, dtype)
    upstream = normal(n, seed=4), normal(n, seed=5)
    whole = gradients(kernels.linear_logprob, hidden, weight, targets, *upstream)
    monkeypatch.setattr(triton_linear, "SCRATCH_BYTES", 256 * (128 * dtype.itemsize + h * max(dtype.itemsize, 4)))
    wave, chunk = triton_linear.split(n, v, h, dtype.itemsize)
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
)
@settings(deadline=None, max_examples=300)
def test_scratch_of_the_backward_pass_is_bounded(rows, columns, width, itemsize):
    wave, chunk = triton_linear.split(rows, columns, width, itemsize)
    assert 1 <= wave <= rows and 1 <= chunk <= columns
    sums = chunk * width * max(itemsize, 4) if wave < rows else 0
    assert wave * triton_linear.padded(chunk) * itemsize + sums <= triton_linear.SCRATCH_BYTES


@needs_interpreter
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "other"])
def test_the_shipped_blocks_compute_the_same(monkeypatch, target):
    hidden, weight, targets = head(130, 260, 70, torch.bfloat16)
    upstream = normal(130, seed=4), normal(130, seed=5)
    small = gradients(kernels.linear_logprob, hidden, weight, targets, *upstream)
    with_blocks_of(monkeypatch, target)
    for a, b in zip(gradients(kernels.linear_logprob, hidden, weight, targets, *upstream), small):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2 if a.dtype == torch.bfloat16 else 1e-5)


# the form that keeps exponentials


@pytest.mark.parametrize("dtype", (torch.float64, *FLOATS), ids=str)
def test_kept_exponentials_give_the_recomputed_gradient(dtype):
    n, v, h, vocab_size, inv_temperature = BLOCK_N + 5, 2 * BLOCK_V + 9, 12, 2 * BLOCK_V + 3, 1 / 0.7
    hidden, weight, _ = head(n, v, h, dtype)
    targets = ids(n, vocab_size, dtype=torch.int32)
    weight[targets[0]] = 40 * hidden[0] / hidden[0].norm() ** 2  # so likely that 1 - p is lost in 16 bits
    upstream = normal(n, seed=4)
    logp, lse, kept, maxima = triton_kept.forward(hidden, weight, targets, inv_temperature, vocab_size)
    assert kept.dtype == dtype and kept.shape == (n, vocab_size)
    picked = torch.tensor([5, 0, n - 1], device=DEVICE)
    arguments = (kept, maxima, targets, logp, lse, upstream.to(lse.dtype), inv_temperature)
    some = triton_kept.logit_gradient(*arguments, picked)
    d_logits = triton_kept.logit_gradient(*arguments)
    assert d_logits.data_ptr() == kept.data_ptr()
    assert torch.equal(some, d_logits[picked])
    logits = leaf(hidden.double() @ weight.double().T)
    exact = torch_reference.gather_logprob(logits, targets, temperature=0.7, vocab_size=vocab_size)
    exact.backward(upstream)
    close = dict(rtol=1e-5, atol=1e-6) if dtype.itemsize > 2 else dict(rtol=2e-2, atol=1e-6)
    torch.testing.assert_close(logp.double(), exact.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d_logits.double(), logits.grad[:, :vocab_size], **close)
    expected = upstream[0] * -torch.expm1(exact[0].detach()) * inv_temperature
    torch.testing.assert_close(d_logits[0, targets[0]].double(), expected, rtol=1e-2, atol=1e-9)


def test_a_wave_of_kept_rows_fits_the_scratch():
    for v in (1, 32_000, 152_064):
        rows = triton_kept.rows_a_wave(v, 2)
        assert rows % 128 == 0 and rows * triton_linear.padded(v) * 2 <= triton_linear.SCRATCH_BYTES


# log-prob of stored logits


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("v", "vocab_size"), [(7, None), (67, 65)])
def test_gather_logprob_gradcheck(v, vocab_size, temperature):
    targets = ids(3, vocab_size or v)
    assert torch.autograd.gradcheck(
        lambda z: kernels.gather_logprob(z, targets, temperature=temperature, vocab_size=vocab_size, entropy=True),
        (leaf(normal(3, v)),),
        fast_mode=v > 20,
    )


@pytest.mark.parametrize("level", [0.0, 90.0, -120.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gather_logprob_is_as_near_to_float64_as_torch(dtype, level):
    n, v = 9, 2 * 64 + 3
    logits, targets = (normal(n, v) + level).to(dtype), ids(n, v)
    upstream, entropy_upstream = normal(n, seed=4), normal(n, seed=5)
    upstream[2], entropy_upstream[2] = 0, 0

    def run(op, z):
        z = leaf(z)
        logp, entropy = op(z, targets, temperature=0.7, entropy=True)
        ((logp * upstream.to(logp.dtype)).sum() + (entropy * entropy_upstream.to(logp.dtype)).sum()).backward()
        return logp.detach(), entropy.detach(), z.grad

    truth = run(torch_reference.gather_logprob, logits.double())
    for exact, of_torch, of_ours in zip(
        truth, run(torch_reference.gather_logprob, logits), run(kernels.gather_logprob, logits)
    ):
        error, allowed = (of_ours.double() - exact).abs().max(), (of_torch.double() - exact).abs().max()
        assert error <= allowed + SLACK[dtype]


@pytest.mark.parametrize("v", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gather_logprob_of_any_row_stride(v, dtype):
    wide = normal(5, 3, v + 7)
    logits, targets = wide[:, 1, 2 : v + 2], ids(5, v, dtype=dtype)
    logp, entropy = kernels.gather_logprob(leaf(logits), targets, entropy=True)
    exact, exact_entropy = torch_reference.gather_logprob(logits, targets, entropy=True)
    torch.testing.assert_close(logp, exact, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(entropy, exact_entropy, rtol=1e-6, atol=1e-10)


def test_logits_of_minus_infinity_are_impossible_ids():
    logits, targets = normal(4, 70), torch.tensor([1, 69, 30, 2], device=DEVICE)
    logits[:, 3:20] = -torch.inf
    logits = leaf(logits)
    logp, entropy = kernels.gather_logprob(logits, targets, entropy=True)
    (logp.sum() + entropy.sum()).backward()
    kept = torch.cat([logits[:, :3], logits[:, 20:]], 1).detach()
    moved = torch.where(targets >= 20, targets - 17, targets)
    exact, exact_entropy = torch_reference.gather_logprob(kept, moved, entropy=True)
    torch.testing.assert_close(logp.detach(), exact, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(entropy.detach(), exact_entropy, rtol=1e-6, atol=1e-10)
    assert not logits.grad[:, 3:20].any() and logits.grad.isfinite().all()


def test_logits_are_overwritten_only_where_asked_for():
    base, targets = normal(4, 70), ids(4, 70)
    for inplace in (False, True):
        stored = base.clone()
        logits = leaf(base)
        logits.data = stored
        kernels.gather_logprob(logits, targets, inplace_gradient=inplace).sum().backward()
        assert torch.equal(stored, base) != inplace
        assert torch.equal(stored, logits.grad) == inplace


# the clipped surrogate


def batch(n=23, seed=0, dtype=torch.float64, spread=0.3):
    """Four sequences, one of them empty and one of a single token; log-ratios on both sides of every edge."""
    cu_seqlens = torch.tensor([0, 9, 9, n - 1, n], device=DEVICE)
    ref_logp = -normal(n, seed=seed).abs().to(dtype)
    logp = ref_logp + normal(n, seed=seed + 1, scale=spread).to(dtype)
    advantage = torch.tensor([1.3, 2.0, -0.8, 0.6], dtype=dtype, device=DEVICE)
    mask = normal(n, seed=seed + 2) > -0.8
    return logp, ref_logp, advantage, cu_seqlens, mask


SETTINGS = dict(eps_low=0.2, eps_high=0.28, normalizer=5.0)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("spread", [0.02, 0.3, 2.0])
def test_clipped_surrogate_gradcheck(ratio, spread):
    logp, ref_logp, advantage, cu_seqlens, mask = batch(13, spread=spread)
    logp[-1] = ref_logp[-1] - 25  # beyond the clamp, a sequence of its own
    mask[-1] = True
    assert torch.autograd.gradcheck(
        lambda x: kernels.clipped_surrogate(x, ref_logp, advantage, cu_seqlens, mask, ratio=ratio, **SETTINGS)[0],
        (leaf(logp),),
    )


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    ratio=st.sampled_from(RATIOS),
    spread=st.sampled_from([0.0, 0.1, 1.0, 12.0]),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=40)
def test_clipped_surrogate_is_the_reference(lengths, ratio, spread, masked, seed):
    n = sum(lengths)
    cu_seqlens = torch.tensor([0, *lengths], device=DEVICE).cumsum(0)
    ref_logp, mask = -normal(n, seed=seed).abs(), torch.rand(n, device=DEVICE) >= masked
    logp = leaf(ref_logp + normal(n, seed=seed + 1, scale=spread))
    exact = leaf(logp)
    advantage = normal(len(lengths), seed=seed + 2)
    loss, metrics = kernels.clipped_surrogate(logp, ref_logp, advantage, cu_seqlens, mask, ratio=ratio, **SETTINGS)
    truth, expected = torch_reference.clipped_surrogate(
        exact, ref_logp, advantage, cu_seqlens, mask, ratio=ratio, **SETTINGS
    )
    loss.backward()
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(metrics.sums, expected.sums, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(metrics.ratio_max.cpu(), expected.ratio_max.cpu(), rtol=1e-6, atol=1e-10)
    if truth.requires_grad:
        truth.backward()
        torch.testing.assert_close(logp.grad, exact.grad, rtol=1e-6, atol=1e-10)
    else:
        assert not logp.grad.any()


@pytest.mark.parametrize("ratio", RATIOS)
def test_merged_batches_give_the_sum(ratio):
    a, b = batch(seed=0), batch(n=31, seed=9)
    both = [torch.cat([x, y]) for x, y in zip(a, b)]
    both[3] = torch.cat([a[3], b[3][1:] + a[3][-1]])
    (loss_a, part_a), (loss_b, part_b), (loss, whole) = (
        kernels.clipped_surrogate(*x, ratio=ratio, **SETTINGS) for x in (a, b, both)
    )
    merged = part_a.merge(part_b)
    torch.testing.assert_close(loss_a + loss_b, loss)
    torch.testing.assert_close(merged.sums, whole.sums)
    torch.testing.assert_close(merged.ratio_max, whole.ratio_max)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_clipped_surrogate_of_lesser_dtypes(ratio, dtype):
    logp, ref_logp, advantage, cu_seqlens, mask = batch(dtype=dtype)
    loss, metrics = kernels.clipped_surrogate(
        leaf(logp), ref_logp, advantage, cu_seqlens, mask, ratio=ratio, **SETTINGS
    )
    truth, expected = torch_reference.clipped_surrogate(
        logp.double(), ref_logp.double(), advantage.double(), cu_seqlens, mask, ratio=ratio, **SETTINGS
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics.sums, expected.sums, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ratio", RATIOS)
def test_masked_tokens_may_hold_anything_and_all_may_be_masked(ratio):
    logp, ref_logp, advantage, cu_seqlens, mask = batch()
    clean = kernels.clipped_surrogate(leaf(logp), ref_logp, advantage, cu_seqlens, mask, ratio=ratio, **SETTINGS)
    logp[~mask], ref_logp[~mask] = torch.nan, torch.inf
    dirty = leaf(logp)
    loss, metrics = kernels.clipped_surrogate(dirty, ref_logp, advantage, cu_seqlens, mask, ratio=ratio, **SETTINGS)
    loss.backward()
    assert loss == clean[0] and torch.equal(metrics.sums, clean[1].sums)
    assert not dirty.grad[~mask].any() and dirty.grad.isfinite().all()
    nothing = torch.zeros_like(mask)
    loss, metrics = kernels.clipped_surrogate(dirty, ref_logp, advantage, cu_seqlens, nothing, ratio=ratio, **SETTINGS)
    assert loss == 0 and not metrics.sums.any() and metrics.ratio_max == 0


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_nan_log_prob_is_seen_in_the_loss(ratio):
    logp, ref_logp, advantage, cu_seqlens, _ = batch()
    logp[3] = torch.nan
    loss, _ = kernels.clipped_surrogate(logp, ref_logp, advantage, cu_seqlens, None, ratio=ratio, **SETTINGS)
    assert loss.isnan()


def test_the_edges_of_clip_and_clamp_count_as_inside():
    cu_seqlens, zero = torch.tensor([0, 1, 2, 3, 4], device=DEVICE), torch.zeros(4, dtype=torch.float64, device=DEVICE)
    logp = leaf(torch.tensor([0.0, 0.0, -20.0, -20.1], dtype=torch.float64, device=DEVICE))
    advantage = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64, device=DEVICE)
    loss, _ = kernels.clipped_surrogate(
        logp, zero, advantage, cu_seqlens, None, ratio="token", eps_low=0.0, eps_high=0.0, normalizer=1.0
    )
    loss.backward()
    edge = torch.tensor([-1.0, 1.0, -(torch.e**-20.0), 0.0], dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(logp.grad, edge)


# reward and the whole of it


@given(
    samples=st.integers(1, 40), groups=st.integers(1, 6), seed=st.integers(0, 99), lam=st.sampled_from([0.0, 2.0, 5.0])
)
@settings(deadline=None, max_examples=25)
def test_advantage_is_the_reference(samples, groups, seed, lam):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9000, (samples,), generator=generator).to(DEVICE)
    correct = (torch.rand(samples, generator=generator) < 0.5).to(DEVICE)
    group = torch.randint(groups, (samples,), generator=generator).to(DEVICE, torch.int32)
    ours = kernels.length_harmonizing_advantage(lengths, correct, group, lam)
    truth = torch_reference.length_harmonizing_advantage(lengths, correct, group, lam)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=1e-6)


def test_advantage_by_hand():
    """Lengths 100 and 300, mean 200; one of two is right: 200/100 - 1 + 2 (1 - 1/2) and 200/300 - 1 + 2 (0 - 1/2)."""
    lengths, correct = torch.tensor([100, 50, 300], device=DEVICE), torch.tensor([1, 1, 0], device=DEVICE)
    group = torch.tensor([7, 3, 7], device=DEVICE)
    ours = kernels.length_harmonizing_advantage(lengths, correct, group, 2.0)
    torch.testing.assert_close(ours.cpu(), torch.tensor([2.0, 0.0, -4 / 3]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("ratio", RATIOS)
def test_linear_surrogate_gradcheck(ratio, temperature):
    n, v, h = 8, BLOCK_V + 3, 2
    hidden, weight, targets = head(n, v, h)
    cu_seqlens = torch.tensor([0, 3, 3, n], device=DEVICE)
    mask = torch.tensor([True, True, False, True, True, True, False, True], device=DEVICE)
    advantage = torch.tensor([1.1, 3.0, -0.7], dtype=torch.float64, device=DEVICE)
    at_start = torch_reference.linear_logprob(hidden, weight, targets, temperature=temperature)
    ref_logp = at_start + normal(n, seed=6, scale=0.25)
    assert torch.autograd.gradcheck(
        lambda x, w: kernels.linear_surrogate(
            x, w, targets, ref_logp, advantage, cu_seqlens, mask, ratio=ratio, temperature=temperature, **SETTINGS
        )[0],
        (leaf(hidden), leaf(weight)),
        fast_mode=True,
    )


# what goes over memory


@needs_interpreter
def test_gather_logprob_reads_the_logits_once():
    n, v = 5, 200
    logits, targets = leaf(normal(n, v)), ids(n, v)
    with interpreter.accesses() as seen:
        logp, _ = kernels.gather_logprob(logits, targets, entropy=True)
    counted = interpreter.numbers(seen, logits=logits)
    assert counted["load logits"] == n * v + n  # and the target's logit once more
    assert counted["store"] == 3 * n
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
    # A maximum and a sum a tile, the target's logit, then logp and lse.
    assert counted["store"] == n * (2 * tiles + 1 + 2)
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


@needs_interpreter
def test_addresses_beyond_two_to_the_31_in_the_linear_kernels():
    """The last program of N 65,537, V 152,065 (one past whole tiles), H 16 with rows far apart, on memory that is not there."""
    n, v, h, stride = 65_537, 152_065, 16, 40_000
    launch = configs.LINEAR["interpreter"][2]
    block_n, block_v, block_h = (launch.constants[name] for name in ("BLOCK_N", "BLOCK_V", "BLOCK_H"))
    last = triton.cdiv(n, block_n) * triton.cdiv(v, block_v) - 1
    x, z = torch.zeros(1, dtype=torch.float16), torch.zeros(1)
    t = torch.zeros(1, dtype=torch.int64)
    base, options = x.data_ptr(), dict(ACC=triton.language.float32, ENTROPY=False, **launch.options())
    chunk = triton_linear.padded(v)

    seen = last_program_of(
        triton_linear.logit_gradient_kernel, last, x, x, t, z, z, z, z, x,
        n, v, h, 0, stride, stride, chunk, 1.0, **options,
    )  # fmt: skip
    row, column = (n - 1), (v - 1)
    assert row * stride > 2**31 and column * stride > 2**31 and row * chunk > 2**31
    assert offsets(seen, "load", (block_n, block_h), base, 2) == [row * stride + k for k in range(h)]
    assert offsets(seen, "load", (block_h, block_v), base, 2) == [column * stride + k for k in range(h)]
    assert offsets(seen, "store", (block_n, block_v), base, 2) == [row * chunk + column + k for k in range(block_v)]

    seen = last_program_of(
        triton_linear.partial_sums_kernel, last, x, x, t, z, z, z, z, n, v, h, stride, stride, 1.0, **options
    )
    assert offsets(seen, "load", (block_h, block_v), base, 2) == [column * stride + k for k in range(h)]
    tiles = triton.cdiv(v, block_v)
    assert (tiles - 1) * n + row in offsets(seen, "store", (block_n,), z.data_ptr(), 4)

    options.pop("ENTROPY")
    seen = last_program_of(
        triton_kept.keep_kernel, last, x, x, t, x, z, z, z, n, v, h, stride, stride, chunk, 1.0, **options
    )
    assert offsets(seen, "store", (block_n, block_v), base, 2) == [row * chunk + column + k for k in range(block_v)]


@needs_interpreter
def test_addresses_beyond_two_to_the_31_in_the_gather_kernels():
    n, v = 65_536, 152_064
    block = configs.GATHER["gpu"].constants["BLOCK_V"]
    blocks = triton.cdiv(v, block)
    x, z, t = torch.zeros(1, dtype=torch.float16), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    options = dict(ACC=triton.language.float32, ENTROPY=False, **configs.GATHER["gpu"].options())
    row = (n - 1) * v
    assert row > 2**31
    seen = last_program_of(triton_gather.forward_kernel, n - 1, x, t, z, z, z, v, v, v, 1.0, **options)
    assert offsets(seen, "load", (block,), x.data_ptr(), 2) == [row + k for k in range(v)]
    seen = last_program_of(
        triton_gather.backward_kernel, n * blocks - 1, x, t, z, z, z, z, x, v, v, blocks, v, v, 1.0, **options
    )
    last_block = [row + k for k in range((blocks - 1) * block, v)]
    assert offsets(seen, "load", (block,), x.data_ptr(), 2) == last_block
    assert offsets(seen, "store", (block,), x.data_ptr(), 2) == last_block


def test_cpu_tensors_without_the_interpreter_are_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        configs.target(torch.device("cpu"))
