"""linear_reverse_kl, beyond what holds for every kernel (test_every_kernel.py): by hand, and what it holds in memory."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from o1core import kernels
from tests.kernels.kernel_cases import head_case


def case(rows=7, vocab=13, size=5, dtype=torch.float64, known=11):
    """A student's leaves and a teacher of another width."""
    hidden, weight, _ = head_case(rows, vocab, size, dtype, known=known)
    teacher_hidden, teacher_weight, _ = head_case(rows, vocab + 2, size + 1, dtype, seed=5, known=known)
    return hidden, weight, teacher_hidden.detach(), teacher_weight.detach()


def test_by_hand():
    """Logits (log 3, 0) against (0, 0): p = 3/4, 1/4 and q = 1/2, 1/2."""
    hidden, weight = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[math.log(3)], [0]], dtype=torch.float64)
    kl = kernels.linear_reverse_kl(hidden, weight, hidden, torch.zeros(2, 1, dtype=torch.float64))
    assert kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_gradcheck_in_one_block():
    hidden, weight, *teacher = case()
    assert gradcheck(lambda h, w: kernels.linear_reverse_kl(h, w, *teacher, vocab_size=11), (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_padding_of_the_weight_has_no_gradient(dtype, small_blocks):
    hidden, weight, *teacher = case(dtype=dtype)
    kernels.linear_reverse_kl(hidden, weight, *teacher, vocab_size=11).sum().backward()
    assert not weight.grad[11:].any() and weight.grad[:11].any()


def test_it_is_zero_between_a_head_and_itself():
    hidden, weight, *_ = case(dtype=torch.float32)
    kl = kernels.linear_reverse_kl(hidden, weight, hidden.detach(), weight.detach())
    gradient = torch.autograd.grad(kl.sum(), hidden)[0]
    assert kl.abs().max() < 1e-6 and gradient.abs().max() < 1e-6


def test_a_frozen_weight_gets_no_gradient_and_no_rows_are_fine():
    hidden, weight, *teacher = case()
    kernels.linear_reverse_kl(hidden, weight.detach(), *teacher, vocab_size=11).sum().backward()
    assert hidden.grad is not None and weight.grad is None
    empty = kernels.linear_reverse_kl(hidden[:0], weight, teacher[0][:0], teacher[1], vocab_size=11)
    empty.sum().backward()
    assert empty.shape == (0,) and not weight.grad.any()


class Largest(TorchDispatchMode):
    """Notes the most elements of a tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if torch.is_tensor(tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


def test_no_logits_of_all_rows_exist():
    """At the vocabulary of Qwen2.5: blocks of 55 rows in 128 MiB, whatever the number of rows."""
    hidden, weight, _ = head_case(128, 151936, 8, torch.float32)
    with Largest() as mode:
        kernels.linear_reverse_kl(hidden, weight, hidden.detach(), weight.detach()).sum().backward()
    assert mode.elements <= 128 * 2**20 // 16


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(7, 4)}, "weight: shape"),
        ({2: torch.zeros(6, 6)}, "teacher_hidden: shape"),
        ({3: torch.zeros(15, 6).double()}, "teacher_weight: dtype"),
        ({3: torch.zeros(9, 6)}, "vocab_size: 13"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    inputs = list(case(dtype=torch.float32))
    for place, tensor in change.items():
        inputs[place] = tensor
    with pytest.raises(ValueError, match=message):
        kernels.linear_reverse_kl(*inputs)
