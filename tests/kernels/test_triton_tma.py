"""The persistent forward with TMA loads: the same numbers as the forward beside it, in Triton's interpreter.

The interpreter reads through descriptors as the accelerator does: blocks at any place, zeros past the edges. Its products
go through numpy's BLAS, which adds up a row in an order that depends on the processor and on how the operands lie. So
where two kernels have to agree to the bit, the inputs are multiples of 1/8, whose sums are exact in any order.
"""

import pytest
import torch

from o1core import kernels
from o1core.kernels import configs, triton_forward
from o1core.kernels.numbers import Softmax
from tests.kernels.triton_cases import BLOCK_N, BLOCK_V, gradients, head, needs_interpreter, normal, with_blocks_of

pytestmark = [
    pytest.mark.usefixtures("on_triton"),
    needs_interpreter,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture
def calls(monkeypatch):
    """How often the persistent kernel was launched."""
    original = triton_forward.descriptors
    count = []

    def counting(*arguments):
        count.append(1)
        return original(*arguments)

    monkeypatch.setattr(triton_forward, "descriptors", counting)
    return count


def exact_head(n, v, h):
    """As head, in bf16: multiples of 1/8 up to 9/8, whose products and sums no order of addition rounds."""
    hidden, weight, targets = head(n, v, h)
    return *((x * 3).round().clamp(-9, 9).div(8).bfloat16() for x in (hidden, weight * h**0.5)), targets


@pytest.mark.parametrize("n, v, h", [(1, 1, 8), (BLOCK_N + 1, 5 * BLOCK_V + 3, 40), (3 * BLOCK_N, BLOCK_V, 32)])
def test_the_persistent_forward_gives_the_same_bits(monkeypatch, calls, n, v, h):
    hidden, weight, targets = exact_head(n, v + 8, h)
    upstream = normal(n, seed=4), normal(n, seed=5)
    options = {"temperature": 0.7, "vocab_size": v}
    targets = targets % v
    expected = gradients(kernels.linear_logprob, hidden, weight, targets, *upstream, **options)
    assert not calls
    monkeypatch.setitem(configs.LINEAR_TMA, "interpreter", configs.LINEAR["interpreter"][2])
    found = gradients(kernels.linear_logprob, hidden, weight, targets, *upstream, **options)
    assert calls
    for a, b in zip(found, expected):
        assert torch.equal(a, b)


def test_the_persistent_forward_keeps_the_same_exponentials(monkeypatch, calls):
    from o1core.kernels.triton_linear import kept_forward

    hidden, weight, targets = exact_head(BLOCK_N + 3, 2 * BLOCK_V + 9, 24)
    expected = kept_forward(hidden, weight, targets, Softmax(1.0, 2 * BLOCK_V + 5))
    monkeypatch.setitem(configs.LINEAR_TMA, "interpreter", configs.LINEAR["interpreter"][2])
    found = kept_forward(hidden, weight, targets, Softmax(1.0, 2 * BLOCK_V + 5))
    assert calls and all(
        torch.equal(a, b) for a, b in zip((*found[:2], *found.state), (*expected[:2], *expected.state))
    )


def test_the_blocks_that_ship_give_the_same_numbers(monkeypatch, calls):
    hidden, weight, targets = head(130, 260, 72, torch.bfloat16)
    expected = kernels.linear_logprob(hidden, weight, targets)
    with_blocks_of(monkeypatch, "sm_90")
    monkeypatch.setitem(configs.LINEAR_TMA, "interpreter", configs.LINEAR_TMA["sm_90"])
    torch.testing.assert_close(kernels.linear_logprob(hidden, weight, targets), expected, rtol=1e-5, atol=1e-5)
    assert calls


def test_addresses_that_the_accelerator_cannot_take_go_the_other_way(monkeypatch, calls):
    monkeypatch.setitem(configs.LINEAR_TMA, "interpreter", configs.LINEAR["interpreter"][2])
    hidden, weight, targets = head(5, 9, 12, torch.bfloat16)  # rows of 24 bytes
    kernels.linear_logprob(hidden, weight, targets)
    late = torch.zeros(9 * 16 + 1, dtype=torch.bfloat16)[1:].view(9, 16)  # begins 2 bytes after a multiple of 16
    wide = torch.zeros(5, 24, dtype=torch.bfloat16)[:, 1:17]
    kernels.linear_logprob(wide[:, :16].contiguous(), late, targets)
    assert not calls
    kernels.linear_logprob(wide, torch.zeros(9, 16, dtype=torch.bfloat16), targets)
    assert calls, "hidden states are copied to where it can"


def test_the_persistent_forward_has_the_tiles_that_the_gradients_expect():
    for target, launch in configs.LINEAR_TMA.items():
        assert launch.constants["BLOCK_V"] == configs.LINEAR[target][2].constants["BLOCK_V"]
