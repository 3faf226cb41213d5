"""The ratio "cispo" (arXiv 2506.13585, Eq. 4) on both backends: by hand, and against autograd of the written formula in
float64, whose clipped ratio is detached."""

import math

import pytest
import torch

from o1core import kernels
from o1core.kernels.numbers import OnePassBudget
from tests.kernels import reference
from tests.kernels.kernel_cases import CLIP, assert_same_metrics, head_case, surrogate_case
from tests.kernels.triton_cases import DEVICE, triton_backend

# Lanes past the end of a row or batch compute on what masked loads put there, and nothing of it is stored.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=["torch", "triton"], autouse=True)
def device(request, monkeypatch):
    """Where the backend's tensors are."""
    if request.param == "triton":
        with triton_backend(monkeypatch):
            yield DEVICE
    else:
        monkeypatch.setenv("O1CORE_KERNELS", "torch")
        yield "cpu"


def test_by_hand(device):
    """Ratios 1.5, 0.5 and 1 under the clip [0.8, 1.3]: weights 1.3, 0.8 and 1. The cut tokens keep a gradient."""
    logp = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, device=device, requires_grad=True)
    reference = logp.detach() - torch.tensor([math.log(1.5), math.log(0.5), 0.0], dtype=torch.float64, device=device)
    advantage = torch.tensor([2.0, -1.0], dtype=torch.float64, device=device)
    ends = torch.tensor([0, 2, 3], device=device)
    loss, metrics = kernels.clipped_surrogate(
        logp, reference, advantage, ends, None, ratio="cispo", **CLIP, normalizer=3
    )
    loss.backward()
    assert loss.item() == pytest.approx(-(1.3 * 2 * -1 + 0.8 * 2 * -2 + 1 * -1 * -3) / 3)
    assert logp.grad.tolist() == pytest.approx([-1.3 * 2 / 3, -0.8 * 2 / 3, 1 / 3])
    found = metrics.finalize()
    assert (found["units"], found["tokens"]) == (3, 3)
    assert found["clip_fraction"] == pytest.approx(2 / 3)
    assert (found["ratio_mean"], found["ratio_max"]) == (pytest.approx(1), pytest.approx(1.5))


@pytest.mark.parametrize("spread", [0.02, 0.4, 12.0])
def test_the_gradient_is_that_of_the_formula_with_its_weight_detached(device, spread):
    """Written once more, without the reference's code; the spread of 12 goes beyond the clamp of the log-ratio."""
    lengths = (5, 0, 7, 4)
    logp = (-torch.rand(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3).to(device)
    reference, advantage, ends, mask = (t.to(device) for t in surrogate_case(logp, lengths, spread=spread))
    ours, exact = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    loss, _ = kernels.clipped_surrogate(ours, reference, advantage, ends, mask, ratio="cispo", **CLIP, normalizer=2.5)
    weight = (exact - reference).clamp(-20, 20).exp().clamp(0.8, 1.3).detach()
    signal = advantage.repeat_interleave(ends.diff().long())
    truth = -(weight * signal * exact)[mask].sum() / 2.5
    truth.backward()
    loss.backward()
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-12, atol=1e-12)


def test_masked_tokens_may_hold_anything(device):
    logp = -torch.rand(9, dtype=torch.float64, device=device)
    reference, advantage, ends, mask = (t.to(device) for t in surrogate_case(logp, (4, 3, 2)))
    logp[~mask], reference[~mask] = torch.nan, torch.inf
    logp.requires_grad_()
    loss, metrics = kernels.clipped_surrogate(
        logp, reference, advantage, ends, mask, ratio="cispo", **CLIP, normalizer=1
    )
    loss.backward()
    assert loss.isfinite() and logp.grad.isfinite().all() and not logp.grad[~mask].any()
    assert metrics.sums.isfinite().all()


@pytest.mark.parametrize("wave", [0, 3, 9])
def test_every_way_to_the_gradients_of_a_linear_head_is_the_reference(device, wave, monkeypatch):
    """Two passes (0), waves of three rows and all rows at once."""
    monkeypatch.setattr(OnePassBudget, "rows_a_wave", lambda self, tokens, weight, ratio: wave)
    hidden, weight, targets = (t.to(device) for t in head_case(9, 11, size=3, known=9))
    logp = reference.linear_logprob(hidden, weight, targets, vocab_size=9)
    rest = [t.to(device) for t in surrogate_case(logp, (3, 4, 2))]
    results = []
    for op in (kernels.linear_surrogate, reference.linear_surrogate):
        x, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        loss, metrics = op(x, w, targets, *rest, ratio="cispo", **CLIP, normalizer=2.5, vocab_size=9)
        (3 * loss).backward()
        results.append((loss.detach(), x.grad, w.grad, metrics))
    (*ours, found), (*truth, expected) = results
    for a, b in zip(ours, truth):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)
    assert_same_metrics(found, expected)


def test_the_budget_lets_it_go_in_waves_as_tokens_do():
    budget = OnePassBudget(limit=1 << 20, wide=True)
    weight = torch.empty(512, 128)
    assert budget.rows_a_wave(4096, weight, "cispo") == budget.rows_a_wave(4096, weight, "token") > 0
