"""clipped_surrogate and length_harmonizing_advantage on their torch path: by hand, at every edge, and against the plain
reference on drawn batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from o1core import kernels
from tests.kernels import reference
from tests.kernels.kernel_cases import CLIP, EDGES, RATIOS, assert_same_metrics, edge_case, surrogate_case

both = pytest.mark.parametrize("ops", [kernels, reference], ids=["chunked", "reference"])


@pytest.fixture(autouse=True)
def torch_backend(monkeypatch):
    monkeypatch.setenv("O1CORE_KERNELS", "torch")


@both
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("lengths", [(3, 5, 2, 4), (1, 1, 1), (6, 0, 3)])
@pytest.mark.parametrize("use_mask", [True, False])
def test_clipped_surrogate_gradcheck(ops, ratio, lengths, use_mask):
    logp = -torch.rand(sum(lengths), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    logp.requires_grad_()
    ref_logp, advantage, cu_seqlens, mask = surrogate_case(logp, lengths)
    mask = mask if use_mask else None
    assert gradcheck(
        lambda x: ops.clipped_surrogate(x, ref_logp, advantage, cu_seqlens, mask, ratio=ratio, **CLIP, normalizer=2.5)[
            0
        ],
        logp,
    )


@both
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_on_both_sides_of_every_edge(ops, ratio, dtype):
    logp, ref_logp, advantage, cu_seqlens, passes = edge_case(dtype)
    loss, metrics = ops.clipped_surrogate(
        logp, ref_logp, advantage, cu_seqlens, None, ratio=ratio, **CLIP, normalizer=1.0
    )
    (gradient,) = torch.autograd.grad(loss, logp)
    expected = torch.where(torch.tensor(passes), -advantage * logp.exp(), 0)
    torch.testing.assert_close(gradient, expected.detach())
    clipped = [r for r, a, _ in EDGES if (a > 0 and r > 0.263) or (a < 0 and r < -0.2232)]
    assert metrics.finalize()["clip_fraction"] == pytest.approx(len(clipped) / len(EDGES))


@both
@pytest.mark.parametrize("ratio", RATIOS)
def test_gradient_is_kept_exactly_on_the_edge(ops, ratio):
    """Ratio 1 with eps 0 stands on both edges at once; log-ratio 20 stands on the clamp."""
    logp = torch.tensor([0.0, 0.0, 20.0], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    loss, metrics = ops.clipped_surrogate(
        logp,
        torch.zeros(3).double(),
        advantage,
        torch.arange(4),
        None,
        ratio=ratio,
        eps_low=0.0,
        eps_high=0.0,
        normalizer=1.0,
    )
    (gradient,) = torch.autograd.grad(loss, logp)
    assert gradient.tolist() == [-1.0, 1.0, pytest.approx(torch.tensor(20.0).double().exp().item())]
    assert metrics.finalize()["clip_fraction"] == 0


def test_the_ratio_of_gspo_by_hand():
    """Two tokens of +0.2 and -0.1: ratio e^0.05, and each token has half of its gradient."""
    logp = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    loss, metrics = kernels.clipped_surrogate(
        logp,
        torch.tensor([-1.2, -1.9, -2.5]),
        torch.tensor([2.0, -1.0]),
        torch.tensor([0, 2, 3]),
        None,
        ratio="sequence_mean",
        eps_low=0.2,
        eps_high=0.2,
        normalizer=2,
    )
    r = 2.718281828459045**0.05
    assert loss.item() == pytest.approx(-(2 * r - 0.8) / 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert gradient.tolist() == pytest.approx([-r / 2, -r / 2, 0], rel=1e-5)
    assert metrics.finalize()["ratio_max"] == pytest.approx(r, rel=1e-5)


def test_surrogate_by_hand():
    """Two sequences, ratio e^0.1 and e^-0.5 by sequence; one token is masked and its log-probs are NaN."""
    logp = torch.tensor([-1.0, -2.0, float("nan"), -3.0], requires_grad=True)
    ref_logp = torch.tensor([-1.2, -1.9, float("nan"), -2.5])
    mask = torch.tensor([True, True, False, True])
    advantage = torch.tensor([2.0, -1.0])
    loss, metrics = kernels.clipped_surrogate(
        logp,
        ref_logp,
        advantage,
        torch.tensor([0, 3, 4]),
        mask,
        ratio="sequence",
        eps_low=0.2,
        eps_high=0.2,
        normalizer=2,
    )
    r = 2.718281828459045**0.1
    assert loss.item() == pytest.approx(-(2 * r - 0.8) / 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert gradient.tolist() == pytest.approx([-r, -r, 0, 0], rel=1e-5)
    e = 2.718281828459045
    kl = (e**0.2 - 1.2) + (e**-0.1 - 0.9) + (e**-0.5 - 0.5)
    assert metrics.finalize() == pytest.approx(
        {
            "units": 2,
            "tokens": 3,
            "clip_fraction": 0.5,
            "ratio_mean": (r + e**-0.5) / 2,
            "ratio_max": r,
            "approx_kl": kl / 3,
            "loss": -(2 * r - 0.8) / 2,
        },
        rel=1e-5,
    )


@st.composite
def batches(draw):
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    tokens = sum(lengths)
    number = st.floats(-3, 3, width=32)
    column = st.lists(number, min_size=tokens, max_size=tokens)
    logp, delta = (torch.tensor(draw(column), dtype=torch.float64) for _ in range(2))
    advantage = torch.tensor(draw(st.lists(number, min_size=len(lengths), max_size=len(lengths))), dtype=torch.float64)
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)), dtype=torch.bool)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    return logp.requires_grad_(), logp.detach() + delta, advantage, cu_seqlens, mask


def run_surrogate(ops, batch, ratio):
    loss, metrics = ops.clipped_surrogate(*batch, ratio=ratio, **CLIP, normalizer=7.0)
    return loss, torch.autograd.grad(loss, batch[0], allow_unused=True)[0], metrics


@given(batches(), st.sampled_from(RATIOS))
@settings(max_examples=150, deadline=None)
def test_surrogate_agrees_with_the_reference(batch, ratio):
    ours, truth = run_surrogate(kernels, batch, ratio), run_surrogate(reference, batch, ratio)
    torch.testing.assert_close(ours[0], truth[0])
    torch.testing.assert_close(ours[1], torch.zeros_like(batch[0]) if truth[1] is None else truth[1])
    assert_same_metrics(ours[2], truth[2])


@given(batches(), batches(), st.sampled_from(RATIOS))
@settings(max_examples=100, deadline=None)
def test_two_batches_merged_give_the_sum(first, second, ratio):
    cu_seqlens = torch.cat((first[3], second[3][1:] + first[3][-1]))
    logp, ref_logp, advantage, mask = (torch.cat((first[i].detach(), second[i].detach())) for i in (0, 1, 2, 4))
    merged = run_surrogate(kernels, (logp.requires_grad_(), ref_logp, advantage, cu_seqlens, mask), ratio)
    a, b = run_surrogate(kernels, first, ratio), run_surrogate(kernels, second, ratio)
    torch.testing.assert_close(merged[0], a[0] + b[0])
    torch.testing.assert_close(merged[1], torch.cat((a[1], b[1])))
    assert_same_metrics(merged[2], a[2].merge(b[2]))


@pytest.mark.parametrize(
    "lengths, correct, group, expected",
    [
        (
            [10, 50, 30],
            [1, 1, 0],
            [3, 0, 3],
            [20 / 10 - 1 + 2 * 0.5, 0, 20 / 30 - 1 - 2 * 0.5],
        ),  # mean 20, one of two right
        ([100, 50, 300], [1, 1, 0], [7, 3, 7], [2.0, 0.0, -4 / 3]),  # mean 200
    ],
)
def test_length_harmonizing_advantage_by_hand(lengths, correct, group, expected):
    result = kernels.length_harmonizing_advantage(*map(torch.tensor, (lengths, correct, group)), 2.0)
    assert result.dtype == torch.float32
    assert result.tolist() == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(1, 8192), st.booleans(), st.integers(0, 5)), max_size=40), st.floats(0, 10))
@settings(max_examples=100, deadline=None)
def test_length_harmonizing_advantage_agrees_with_the_reference(samples, lam):
    lengths, correct, group = (torch.tensor([s[i] for s in samples], dtype=torch.int64) for i in range(3))
    ours = kernels.length_harmonizing_advantage(lengths.int(), correct.float(), group.int(), lam)
    truth = reference.length_harmonizing_advantage(lengths, correct, group, lam)
    torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=1e-6)
