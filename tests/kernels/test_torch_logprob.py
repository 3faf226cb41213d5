"""Log-probs on their torch path, beyond what holds for every kernel (test_every_kernel.py).

Small blocks are set so that a few rows and columns cross every block edge that 150,000 columns would.
"""

import subprocess
import sys

import pytest
import torch

from o1core import kernels
from o1core.kernels import torch_linear
from o1core.kernels.numbers import Softmax
from tests.kernels import reference
from tests.kernels.kernel_cases import assert_as_near_as_torch, gradients, head_case, in_float64, upstream

LOW = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def torch_backend(monkeypatch):
    monkeypatch.setenv("O1CORE_KERNELS", "torch")


@pytest.mark.parametrize("dtype", LOW)
def test_log_probs_of_a_half_precision_head_have_float32_quality(dtype):
    """Rounding logits of 20 to bf16 would put 0.06 into log p; the products are exact, so fp32 is all that is lost."""
    hidden, weight, targets = head_case(50, 5000, size=256, dtype=dtype, logit_scale=8.0)
    truth = reference.linear_logprob(*in_float64(hidden, weight), targets)
    assert (kernels.linear_logprob(hidden, weight, targets).double() - truth).abs().max() < 5e-5


@pytest.mark.parametrize("dtype", [torch.float64, *LOW])
@pytest.mark.parametrize("extreme", [90.0, -120.0])
def test_extreme_logits(dtype, extreme, small_blocks):
    """One row whose target stands at the extreme and one whose other logits do."""
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    weight = torch.zeros(12, 2, dtype=dtype)
    weight[7, 0] = extreme
    weight[:7, 1] = extreme
    weight.requires_grad_()
    targets = torch.tensor([7, 11])
    results = []
    for ops, leaves in (
        (kernels, (hidden, weight)),
        (reference, (hidden, weight)),
        (reference, in_float64(hidden, weight)),
    ):
        out = ops.linear_logprob(*leaves, targets, entropy=True)
        results.append((*out, *gradients(out, leaves, (torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])))))
    for name, *values in zip(("logp", "entropy", "d_hidden", "d_weight"), *results):
        assert_as_near_as_torch(*values, dtype, name)


# Shapes and options


def test_every_id_from_vocab_size_on_has_probability_zero(small_blocks):
    hidden, weight, targets = head_case(6, 14, known=9)
    whole = kernels.linear_logprob(hidden, weight, targets, vocab_size=9)
    cut = kernels.linear_logprob(hidden, weight[:9].contiguous(), targets)
    torch.testing.assert_close(whole, cut)
    d_weight = gradients(whole, weight, (upstream((6,)),))[0]
    assert d_weight[9:].eq(0).all() and d_weight[:9].ne(0).any(1).all()


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_three_dimensional_and_non_contiguous_hidden(index, small_blocks):
    hidden, weight, targets = head_case(12, 17)
    flat = kernels.linear_logprob(hidden, weight, targets)
    expected = gradients(flat, hidden, (upstream((12,)),))
    batched = hidden.view(3, 4, 16)
    strided = torch.stack((batched, batched), 2)[:, :, 1]
    assert not strided.is_contiguous()
    for value in (batched, strided, batched.transpose(0, 1).contiguous().transpose(0, 1)):
        logp, entropy = kernels.linear_logprob(value, weight, targets.view(3, 4).to(index), entropy=True)
        assert logp.shape == entropy.shape == (3, 4)
        torch.testing.assert_close(logp.view(-1), flat)
        torch.testing.assert_close(gradients(logp, hidden, (upstream((3, 4)),)), expected)


def test_logits_with_a_row_stride_and_gradient_in_place():
    wide = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    logits, targets = wide[:, 5:25], torch.arange(9)
    truth = reference.gather_logprob(logits.double(), targets)
    torch.testing.assert_close(kernels.gather_logprob(logits, targets).double(), truth, atol=1e-5, rtol=0)

    leaf = logits.clone().requires_grad_()
    z = leaf * 1
    expected = gradients(kernels.gather_logprob(z, targets), z, (upstream((9,)),))[0]
    before = z.detach().clone()
    kept = gradients(kernels.gather_logprob(z, targets), z, (upstream((9,)),))[0]
    assert torch.equal(z, before) and kept.data_ptr() != z.data_ptr()
    written = gradients(kernels.gather_logprob(z, targets, inplace_gradient=True), z, (upstream((9,)),))[0]
    assert torch.equal(written, expected) and written.data_ptr() == z.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, *LOW])
def test_no_tokens(dtype):
    hidden, weight, targets = head_case(0, 5, dtype=dtype, known=5)
    logp, entropy = kernels.linear_logprob(hidden, weight, targets, entropy=True)
    assert logp.shape == entropy.shape == (0,)
    assert all(g.eq(0).all() for g in gradients(logp, (hidden, weight), (logp,)))
    assert kernels.gather_logprob(torch.empty(0, 5, dtype=dtype), targets).shape == (0,)


def test_frozen_head_gets_no_gradient_and_hidden_the_same(small_blocks):
    hidden, weight, targets = head_case(7, 13)
    d_hidden = gradients(kernels.linear_logprob(hidden, weight, targets), hidden, (upstream((7,)),))[0]
    frozen = kernels.linear_logprob(hidden, weight.detach(), targets)
    torch.testing.assert_close(gradients(frozen, hidden, (upstream((7,)),))[0], d_hidden, rtol=0, atol=0)


def test_tied_head_adds_up():
    """The embedding and the head are one tensor: its gradient is the sum of both uses."""
    _, table, targets = head_case(8, 11)
    ids = torch.arange(8)
    total = [
        torch.autograd.grad(ops.linear_logprob(table[ids], table, targets).sum(), table)[0]
        for ops in (kernels, reference)
    ]
    torch.testing.assert_close(*total)


def test_the_precision_switch_of_the_process_is_put_back():
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "ieee"
    try:
        hidden, weight, targets = head_case(3, 7, dtype=torch.bfloat16)
        kernels.linear_logprob(hidden, weight, targets)
        assert switch.fp32_precision == "ieee"
        with pytest.raises(RuntimeError):
            torch_linear.forward(hidden, weight[:, :-1], targets, Softmax(1.0, 7), False)
        assert switch.fp32_precision == "ieee"
    finally:
        switch.fp32_precision = before


# Memory

PEAK = """
import resource, sys, torch
from o1core import kernels
torch.set_num_threads(1)
tokens, vocab = int(sys.argv[1]), 32768
weight = torch.zeros(vocab, 64, dtype=torch.bfloat16, requires_grad=True)
hidden = torch.zeros(tokens, 64, dtype=torch.bfloat16, requires_grad=True)
kernels.linear_logprob(hidden[:2], weight, torch.zeros(2, dtype=torch.long)).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kernels.linear_logprob(hidden, weight, torch.zeros(tokens, dtype=torch.long)).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_scratch_stays_within_its_bound():
    """8192 tokens of 32768 logits would be 1 GiB in float32; the process grows by the scratch bound at most."""
    env = {"OMP_NUM_THREADS": "1", "O1CORE_KERNELS": "torch"}
    grown = subprocess.run([sys.executable, "-c", PEAK, "8192"], env=env, capture_output=True, text=True, check=True)
    assert int(grown.stdout) * 1024 < torch_linear.SCRATCH_BYTES
