"""Log-probs in Triton, from a linear head and from logits: in Triton's interpreter on a CPU, compiled where there is a GPU.

Edges, strides, padding and the like; what holds for every kernel is in test_every_kernel.py. Truth is float64 torch.
"""

import pytest
import torch

from o1core import kernels
from o1core.kernels.numbers import Softmax
from o1core.kernels.triton_linear import kept_forward, kept_gradient
from tests.kernels import reference
from tests.kernels.triton_cases import (
    BLOCK_N,
    BLOCK_V,
    DEVICE,
    gradients,
    head,
    ids,
    leaf,
    needs_interpreter,
    normal,
    with_blocks_of,
)

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Lanes past the end of a row or batch compute on what masked loads put there, and nothing of it is stored.
pytestmark = [pytest.mark.usefixtures("on_triton"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


# log-prob of a linear head


@pytest.mark.parametrize("n", [1, BLOCK_N - 1, BLOCK_N, 2 * BLOCK_N + 1])
@pytest.mark.parametrize("v", [1, BLOCK_V - 1, BLOCK_V, BLOCK_V + 1, 5 * BLOCK_V + 3])
def test_linear_logprob_at_the_edges_of_blocks(n, v):
    hidden, weight, targets = head(n, v, 19)
    upstream, entropy_upstream = normal(n, seed=4), normal(n, seed=5)
    ours = gradients(kernels.linear_logprob, hidden, weight, targets, upstream, entropy_upstream, temperature=0.7)
    truth = gradients(reference.linear_logprob, hidden, weight, targets, upstream, entropy_upstream, temperature=0.7)
    for a, b in zip(ours, truth):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


def test_log_probs_of_bf16_inputs_come_from_float32_logits():
    hidden, weight, targets = head(21, 3 * BLOCK_V - 5, 24, torch.bfloat16, level=25.0)
    truth = reference.linear_logprob(hidden.double(), weight.double(), targets)
    torch.testing.assert_close(kernels.linear_logprob(hidden, weight, targets).double(), truth, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_linear_logprob_of_three_dimensions_and_strides(dtype):
    b, t, v, h = 3, 7, BLOCK_V + 3, 6
    wide = normal(t, b, 2 * h)
    hidden = wide.transpose(0, 1)[..., ::2]  # neither rows nor the numbers of a row are neighbours
    weight = normal(v, h, seed=3)
    targets = ids(2 * b * t, v, dtype=dtype).view(b, t, 2)[..., 0]
    truth = reference.linear_logprob(hidden, weight, targets)
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
    truth = gradients(reference.linear_logprob, hidden, weight[:vocab_size], targets, *upstream)
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
    reference.linear_logprob(exact[:5] * 2, exact, targets).sum().backward()
    torch.testing.assert_close(tied.grad, exact.grad, rtol=1e-6, atol=1e-10)


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
    kept = kept_forward(hidden, weight, targets, Softmax(inv_temperature, vocab_size))
    assert kept.numbers.dtype == dtype and kept.numbers.shape == (n, vocab_size)
    picked = torch.tensor([5, 0, n - 1], device=DEVICE)
    arguments = (kept, targets, upstream.to(kept.logp.dtype), inv_temperature)
    some = kept_gradient(*arguments, picked)
    d_logits = kept_gradient(*arguments)
    assert d_logits.data_ptr() == kept.numbers.data_ptr()
    assert torch.equal(some, d_logits[picked])
    logits = leaf(hidden.double() @ weight.double().T)
    exact = reference.gather_logprob(logits, targets, temperature=0.7, vocab_size=vocab_size)
    exact.backward(upstream)
    close = dict(rtol=1e-5, atol=1e-6) if dtype.itemsize > 2 else dict(rtol=2e-2, atol=1e-6)
    torch.testing.assert_close(kept.logp.double(), exact.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d_logits.double(), logits.grad[:, :vocab_size], **close)
    expected = upstream[0] * -torch.expm1(exact[0].detach()) * inv_temperature
    torch.testing.assert_close(d_logits[0, targets[0]].double(), expected, rtol=1e-2, atol=1e-9)


# log-prob of stored logits


@pytest.mark.parametrize("v", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gather_logprob_of_any_row_stride(v, dtype):
    wide = normal(5, 3, v + 7)
    logits, targets = wide[:, 1, 2 : v + 2], ids(5, v, dtype=dtype)
    logp, entropy = kernels.gather_logprob(leaf(logits), targets, entropy=True)
    exact, exact_entropy = reference.gather_logprob(logits, targets, entropy=True)
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
    exact, exact_entropy = reference.gather_logprob(kept, moved, entropy=True)
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
