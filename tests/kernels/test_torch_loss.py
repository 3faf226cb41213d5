"""linear_surrogate on its torch path: every way to its gradients, against the two ops that it stands for."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from o1core import kernels
from o1core.kernels import dispatch, numbers, torch_linear
from o1core.kernels.numbers import OnePassBudget
from tests.kernels import reference
from tests.kernels.kernel_cases import CLIP, RATIOS, TEMPERATURES, assert_same_metrics, head_case, surrogate_case


@pytest.fixture(autouse=True)
def torch_backend(monkeypatch):
    monkeypatch.setenv("O1CORE_KERNELS", "torch")


class ProductsCalled(TorchDispatchMode):
    """Notes the products that reach the dispatcher in place of computing them."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "addmm" not in str(function):
            return function(*args, **kwargs)
        self.names.append(str(function))
        return kwargs.get("out", args[0])


@pytest.fixture(params=["waves", "one_wave", "two_passes"])
def passes(request, monkeypatch):
    """Every way to the gradients of linear_surrogate; waves of 3 rows are for ratio "token" alone."""

    def rows_a_wave(self, tokens, weight, ratio):
        if request.param == "two_passes" or tokens == 0:
            return 0
        return 3 if request.param == "waves" and ratio == "token" else tokens

    monkeypatch.setattr(OnePassBudget, "rows_a_wave", rows_a_wave)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_linear_surrogate_gradcheck(ratio, temperature, passes, small_blocks):
    lengths = (3, 4, 2)
    hidden, weight, targets = head_case(sum(lengths), 11, size=3, known=9)
    logp = reference.linear_logprob(hidden, weight, targets, temperature=temperature, vocab_size=9)
    ref_logp, advantage, cu_seqlens, mask = surrogate_case(logp, lengths)
    assert gradcheck(
        lambda h, w: kernels.linear_surrogate(
            h,
            w,
            targets,
            ref_logp,
            advantage,
            cu_seqlens,
            mask,
            ratio=ratio,
            **CLIP,
            normalizer=2.5,
            temperature=temperature,
            vocab_size=9,
        )[0],
        (hidden, weight),
    )


def loss_of(hidden, weight, targets):
    rest = surrogate_case(reference.linear_logprob(hidden, weight, targets).detach(), (3, 4, 2))
    return kernels.linear_surrogate(hidden, weight, targets, *rest, ratio="token", **CLIP, normalizer=2.5)[0]


def test_a_backward_pass_may_be_repeated(passes):
    leaves = head_case(9, 11, size=3)
    expected = torch.autograd.grad(loss_of(*leaves), leaves[:2])
    loss = loss_of(*leaves)
    for factor, last in ((2.0, False), (0.0, False), (1.0, False), (4.0, True)):
        found = torch.autograd.grad(loss, leaves[:2], torch.tensor(factor).double(), retain_graph=not last)
        for a, b in zip(found, expected):
            assert torch.equal(a, factor * b)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, leaves[:2])


def test_one_pass_hands_over_its_gradients_without_a_copy(monkeypatch):
    monkeypatch.setattr(OnePassBudget, "rows_a_wave", lambda self, tokens, weight, ratio: tokens)
    hidden, weight, targets = head_case(9, 11, size=3)
    loss = loss_of(hidden, weight, targets)
    held = [tensor.data_ptr() for tensor in loss.grad_fn.saved_tensors]
    loss.backward()
    assert [hidden.grad.data_ptr(), weight.grad.data_ptr()] == held


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("lengths", [(), (0, 0), (4, 3)])
def test_nothing_to_learn_gives_zero_loss_and_zero_gradients(ratio, lengths, passes):
    """No sequence, empty sequences, every token masked."""
    tokens = sum(lengths)
    hidden, weight, targets = head_case(tokens, 6, known=6)
    ref_logp, advantage, cu_seqlens, _ = surrogate_case(torch.zeros(tokens, dtype=torch.float64), lengths)
    loss, metrics = kernels.linear_surrogate(
        hidden,
        weight,
        targets,
        ref_logp,
        advantage,
        cu_seqlens,
        torch.zeros(tokens, dtype=torch.bool),
        ratio=ratio,
        **CLIP,
        normalizer=1.0,
    )
    assert loss == 0
    assert all(g.eq(0).all() for g in torch.autograd.grad(loss, (hidden, weight)))
    assert set(metrics.finalize().values()) == {0.0}


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_linear_surrogate_is_linear_logprob_then_clipped_surrogate(ratio, dtype, passes, small_blocks):
    lengths = (4, 6, 1, 5, 3)
    hidden, weight, targets = head_case(19, 23, dtype=dtype, known=21)
    options = {"temperature": 0.7, "vocab_size": 21}
    logp = kernels.linear_logprob(hidden, weight, targets, **options)
    ref_logp, advantage, cu_seqlens, mask = surrogate_case(logp, lengths)
    rest = ref_logp, advantage, cu_seqlens, mask
    surrogate = {"ratio": ratio, **CLIP, "normalizer": 3.0}
    loss, metrics = kernels.clipped_surrogate(logp, *rest, **surrogate)
    expected = torch.autograd.grad(2 * loss, (hidden, weight))
    fused_loss, fused_metrics = kernels.linear_surrogate(hidden, weight, targets, *rest, **surrogate, **options)
    fused = torch.autograd.grad(2 * fused_loss, (hidden, weight))
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(fused_loss, loss)
    torch.testing.assert_close(fused, expected, **tolerance)
    assert_same_metrics(fused_metrics, metrics, rtol=1e-7 if dtype == torch.float64 else 1e-5)
    assert 0 < metrics.finalize()["clip_fraction"] < 1, "the case should clip some units and not others"


@pytest.mark.parametrize("ratio", RATIOS)
def test_rows_without_a_gradient_are_dropped_before_the_products(ratio, monkeypatch):
    lengths = (4, 6, 1, 5, 3)
    hidden, weight, targets = head_case(19, 23)
    logp = kernels.linear_logprob(hidden, weight, targets).detach().requires_grad_()
    rest = surrogate_case(logp, lengths)
    surrogate = {"ratio": ratio, **CLIP, "normalizer": 3.0}
    loss, _ = kernels.clipped_surrogate(logp, *rest, **surrogate)
    live = torch.autograd.grad(loss, logp)[0].count_nonzero().item()
    seen = []

    def counting(hidden, *arguments):
        seen.append(len(hidden))
        return torch_linear.backward(hidden, *arguments)

    monkeypatch.setattr(dispatch, "TORCH", dispatch.TORCH._replace(linear_backward=counting))
    monkeypatch.setattr(OnePassBudget, "rows_a_wave", lambda *_: 0)
    kernels.linear_surrogate(hidden, weight, targets, *rest, **surrogate)[0].backward()
    assert seen == [live] and live < 19


def even(tokens: int, most: int) -> int:
    """Rows of the fewest waves of at most `most`, all alike."""
    return math.ceil(tokens / math.ceil(tokens / most))


def test_one_pass_is_taken_where_its_scratch_fits():
    def rows(tokens, vocab, size, dtype, ratio, frozen=False):
        weight = torch.empty(vocab, size, dtype=dtype, requires_grad=not frozen)
        return dispatch.TORCH.one_pass.rows_a_wave(tokens, weight, ratio)

    bound = torch_linear.SCRATCH_BYTES
    whole = bound // (4 * 512)
    assert rows(whole, 512, 128, torch.float32, "sequence") == whole
    assert rows(whole + 2, 512, 128, torch.float32, "sequence") == 0
    assert rows(whole + 2, 512, 128, torch.float32, "token") == whole // 2 + 1, "two waves of the same size"
    wide, row = 4 * 512 * 128, (4 + 2) * 512  # a bf16 weight's copy; log-probs in fp32, their gradient in bf16
    assert rows(bound, 512, 128, torch.bfloat16, "token") == even(bound, (bound - 2 * wide) // row)
    assert rows(bound, 512, 128, torch.bfloat16, "token", frozen=True) == even(bound, (bound - wide) // row)
    assert rows(4096, 151936, 896, torch.bfloat16, "token") == 0
    assert rows(4096, 151936, 896, torch.float32, "token") == even(4096, 220) == 216
    assert rows(4096, 600_000, 896, torch.float32, "token") == 0, "waves of 55 rows"
    assert rows(4096, 600_000, 896, torch.float32, "token", frozen=True) == even(4096, 55), "no d_weight to add up"
    assert rows(4, 512, 128, torch.float16, "token") == 0


@pytest.mark.parametrize("size", [3584, 5120], ids=["Marco-o1", "QwQ"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_gpu_takes_one_pass_at_real_sizes(size, ratio):
    """8,192 tokens of 152,064 logits in bf16 are 2.5 GB; Triton makes no fp32 copy of the weight."""
    budget = dispatch.triton_primitives().one_pass
    with FakeTensorMode():
        weight = torch.empty(152064, size, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        assert budget.rows_a_wave(8192, weight, ratio) == 8192
        more = budget.rows_a_wave(65536, weight, ratio)
    assert (more > 1024) if ratio == "token" else (more == 0)
    kept = 2 * 152064
    assert 8192 * kept < budget.limit
    assert budget.may_copy(8192, 4096, weight) and not budget.may_copy(8192, 8191, weight)
    assert 2 * more * kept + 4 * weight.numel() <= budget.limit, "kept, copied and the sum of the waves"


def test_a_large_card_takes_larger_batches_in_one_pass(monkeypatch):
    """16,384 tokens are 5 GB: on 80 GB at once, where 4 GiB would pay for the products of two passes."""
    budget = dispatch.triton_primitives().one_pass
    with FakeTensorMode():
        weight = torch.empty(152064, 3584, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        assert budget.rows_a_wave(16_384, weight, "sequence") == 0
        for gib, rows in ((24, 0), (80, 16_384), (141, 16_384)):
            monkeypatch.setattr(numbers, "card_memory", lambda device, gib=gib: gib << 30)
            assert budget.rows_a_wave(16_384, weight, "sequence") == rows


@pytest.mark.parametrize("total", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_added_in_the_dtype_of_the_sum_on_a_gpu(total):
    with FakeTensorMode(), ProductsCalled() as called:
        sum_of_products = torch.zeros(5, 7, dtype=total, device="cuda")
        a, b = (torch.ones(shape, dtype=torch.bfloat16, device="cuda") for shape in ((5, 3), (3, 7)))
        numbers.add_product(sum_of_products, a, b)
    assert called.names == (["aten.addmm.dtype_out"] if total == torch.float32 else ["aten.addmm_.default"])
