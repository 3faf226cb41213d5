"""Logits of minus infinity, as a padded vocabulary or a mask leaves them: log-probs, entropy and gradients by hand."""

import pytest
import torch

from o1core import kernels
from tests.kernels import reference
from tests.kernels.kernel_cases import upstream
from tests.kernels.triton_cases import DEVICE, needs_interpreter, normal, triton_backend

TEMPERATURE = 0.7
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
# Rows whose ids are impossible at the end (padding), at the beginning, in a whole block of the kernel, everywhere but in
# one place, and where the target itself is.
IMPOSSIBLE = [slice(140, 150), slice(0, 70), slice(64, 128), slice(1, 150), slice(90, 150)]
TARGETS = [3, 149, 140, 0, 99]


@pytest.fixture(params=["reference", "torch", pytest.param("triton", marks=needs_interpreter)])
def ops(request, monkeypatch):
    monkeypatch.setenv("O1CORE_KERNELS", "torch")
    if request.param == "triton":
        with triton_backend(monkeypatch):
            yield kernels
    else:
        yield reference if request.param == "reference" else kernels


def case(dtype):
    logits = normal(len(IMPOSSIBLE), 150, scale=3.0).to(dtype)
    for row, part in enumerate(IMPOSSIBLE):
        logits[row, part] = float("-inf")
    return logits, torch.tensor(TARGETS, device=DEVICE)


def by_hand(logits, targets, of_logp, of_entropy):
    """logp, entropy and the gradient, from the sums over the ids that are possible alone."""
    z = logits.double() / TEMPERATURE
    p, log_p = torch.zeros_like(z), torch.zeros_like(z)
    for row, possible in enumerate(z > float("-inf")):
        log_p[row, possible] = z[row, possible] - z[row, possible].logsumexp(0)
        p[row, possible] = log_p[row, possible].exp()
    entropy = -(p * log_p).sum(1)
    is_target = torch.zeros_like(z).scatter_(1, targets[:, None], 1.0)
    gradient = of_logp[:, None] * (is_target - p) - of_entropy[:, None] * p * (log_p + entropy[:, None])
    logp = z.gather(1, targets[:, None])[:, 0] - z.logsumexp(1)
    return logp, entropy, gradient / TEMPERATURE


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_impossible_ids_add_nothing(ops, dtype, inplace):
    if ops is reference and (inplace or dtype == torch.bfloat16):
        pytest.skip("the reference has neither")
    logits, targets = case(dtype)
    weights = [upstream((len(targets),), seed, torch.float64).to(DEVICE) for seed in (1, 2)]
    truth = by_hand(logits, targets, *weights)
    z = logits.clone().requires_grad_()
    options = {} if ops is reference else {"inplace_gradient": inplace}
    logp, entropy = ops.gather_logprob(z, targets, temperature=TEMPERATURE, entropy=True, **options)
    possible = truth[0] > float("-inf")
    assert torch.equal(logp > float("-inf"), possible)
    (gradient,) = torch.autograd.grad((logp, entropy), z, [w.to(logp.dtype) for w in weights])
    close = dict(rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    per_row = TOLERANCE[logp.dtype]  # log-probs of bf16 logits are fp32, under a temperature too
    torch.testing.assert_close(logp.double()[possible], truth[0][possible], rtol=per_row, atol=per_row)
    torch.testing.assert_close(entropy.double(), truth[1], rtol=per_row, atol=per_row)
    torch.testing.assert_close(gradient.double(), truth[2], **close)
    assert not gradient[(logits == float("-inf")).scatter(1, targets[:, None], False)].any()


def test_log_probs_alone_have_a_gradient_too(ops):
    logits, targets = case(torch.float64)
    weight = upstream((len(targets),), dtype=torch.float64).to(DEVICE)
    truth = by_hand(logits, targets, weight, torch.zeros_like(weight))
    z = logits.requires_grad_()
    logp = ops.gather_logprob(z, targets, temperature=TEMPERATURE)
    torch.testing.assert_close(torch.autograd.grad(logp, z, weight)[0], truth[2], rtol=1e-12, atol=1e-12)
