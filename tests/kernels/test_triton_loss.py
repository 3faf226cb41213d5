"""The clipped surrogate in Triton, alone and behind a linear head.

In Triton's interpreter on a CPU, compiled where there is a GPU. Truth is float64 torch, gradcheck and numbers by hand.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o1core import kernels
from o1core.kernels.numbers import OnePassBudget
from tests.kernels import reference
from tests.kernels.kernel_cases import CLIP, RATIOS, edge_case
from tests.kernels.triton_cases import BLOCK_V, DEVICE, head, leaf, normal

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SETTINGS = {**CLIP, "normalizer": 5.0}
# Lanes past the end of a row or batch compute on what masked loads put there, and nothing of it is stored.
pytestmark = [pytest.mark.usefixtures("on_triton"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


# the clipped surrogate


def batch(n=23, seed=0, dtype=torch.float64, spread=0.3):
    """Four sequences, one of them empty and one of a single token; log-ratios on both sides of every edge."""
    cu_seqlens = torch.tensor([0, 9, 9, n - 1, n], device=DEVICE)
    ref_logp = -normal(n, seed=seed).abs().to(dtype)
    logp = ref_logp + normal(n, seed=seed + 1, scale=spread).to(dtype)
    advantage = torch.tensor([1.3, 2.0, -0.8, 0.6], dtype=dtype, device=DEVICE)
    mask = normal(n, seed=seed + 2) > -0.8
    return logp, ref_logp, advantage, cu_seqlens, mask


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
    truth, expected = reference.clipped_surrogate(exact, ref_logp, advantage, cu_seqlens, mask, ratio=ratio, **SETTINGS)
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
    truth, expected = reference.clipped_surrogate(
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


def test_the_gradient_stops_at_the_edges_of_clip_and_clamp_and_not_before():
    logp, ref_logp, advantage, cu_seqlens, passes = (x.to(DEVICE) if torch.is_tensor(x) else x for x in edge_case())
    logp = leaf(logp)
    loss, _ = kernels.clipped_surrogate(
        logp, ref_logp, advantage, cu_seqlens, None, ratio="token", **CLIP, normalizer=1.0
    )
    loss.backward()
    expected = torch.where(torch.tensor(passes, device=DEVICE), -advantage * logp.detach().exp(), 0)
    torch.testing.assert_close(logp.grad, expected)


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


# behind a linear head


def case_behind_a_head(temperature):
    n, v, h = 8, BLOCK_V + 3, 2
    hidden, weight, targets = head(n, v, h)
    cu_seqlens = torch.tensor([0, 3, 3, n], device=DEVICE)
    mask = torch.tensor([True, True, False, True, True, True, False, True], device=DEVICE)
    advantage = torch.tensor([1.1, 3.0, -0.7], dtype=torch.float64, device=DEVICE)
    at_start = reference.linear_logprob(hidden, weight, targets, temperature=temperature)
    ref_logp = at_start + normal(n, seed=6, scale=0.25)
    return hidden, weight, (targets, ref_logp, advantage, cu_seqlens, mask)


@pytest.mark.parametrize("wave", [0, 3, 8])
@pytest.mark.parametrize("ratio", RATIOS)
def test_every_way_to_the_gradients_is_the_reference(monkeypatch, ratio, wave):
    """Two passes (0), waves of three rows (for ratio "token" alone) and all rows at once."""
    monkeypatch.setattr(
        OnePassBudget, "rows_a_wave", lambda self, tokens, weight, ratio: wave if ratio == "token" or wave != 3 else 0
    )
    hidden, weight, rest = case_behind_a_head(0.7)
    results = []
    for op in (kernels.linear_surrogate, reference.linear_surrogate):
        x, w = leaf(hidden), leaf(weight)
        loss, metrics = op(x, w, *rest, ratio=ratio, temperature=0.7, **SETTINGS)
        (3 * loss).backward()
        results.append((loss.detach(), metrics.sums, x.grad, w.grad))
    for ours, truth in zip(*results):
        torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-10)
