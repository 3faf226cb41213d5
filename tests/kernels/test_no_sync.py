"""With no_sync nothing waits for the device between a loss and the end of its backward, and the results are the same."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from o1core import kernels
from o1core.kernels.numbers import OnePassBudget
from tests.kernels.kernel_cases import CLIP, head_case, surrogate_case
from tests.kernels.triton_cases import needs_interpreter, triton_backend

LENGTHS = (4, 6, 1, 5, 3)
SETTINGS = {**CLIP, "normalizer": 3.0}
# Operators that read a value back, or whose result's shape depends on values.
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal.default", "item")


@contextmanager
def nothing_waits():
    """Refuses what reads a value back, also where the CPU would not ask the dispatcher (tolist)."""

    def refuse(tensor):
        raise AssertionError("tolist")

    with NothingWaits(), mock.patch.object(torch.Tensor, "tolist", refuse):
        yield


class NothingWaits(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(function)
        assert not any(word in name for word in WAITING), name
        if "repeat_interleave" in name:
            assert kwargs.get("output_size") is not None, name
        if "index" in name:
            masks = [a for a in args[1] if a is not None] if isinstance(args[1], (list, tuple)) else []
            assert not any(mask.dtype == torch.bool for mask in masks), name
        return function(*args, **kwargs)


@pytest.fixture(params=["torch", pytest.param("triton", marks=needs_interpreter)])
def backend(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("O1CORE_KERNELS", "torch")
        yield request.param
    else:
        with triton_backend(monkeypatch):
            yield request.param


def losses(hidden, weight, targets, rest, ratio, no_sync):
    """The two losses and the log-probs from logits, each with its gradients."""
    results = []
    logp = kernels.linear_logprob(hidden, weight, targets, no_sync=no_sync)
    two_ops, _ = kernels.clipped_surrogate(logp, *rest, ratio=ratio, **SETTINGS, no_sync=no_sync)
    fused, metrics = kernels.linear_surrogate(hidden, weight, targets, *rest, ratio=ratio, **SETTINGS, no_sync=no_sync)
    gathered = kernels.gather_logprob(hidden @ weight.T, targets, no_sync=no_sync).sum()
    for loss in (two_ops, fused, gathered):
        results += [loss, *torch.autograd.grad(loss, (hidden, weight))]
    return [*results, metrics.sums, metrics.ratio_max]


@pytest.mark.parametrize("ratio, wave", [("sequence", 0), ("sequence_mean", 19), ("token", 7)])
def test_nothing_waits_for_the_device(backend, ratio, wave, monkeypatch):
    """Two passes, one pass and waves."""
    monkeypatch.setattr(OnePassBudget, "rows_a_wave", lambda *_: wave)
    hidden, weight, targets = head_case(19, 23)
    logp = kernels.linear_logprob(hidden, weight, targets).detach()
    rest = surrogate_case(logp, LENGTHS)
    expected = losses(hidden, weight, targets, rest, ratio, no_sync=False)
    with nothing_waits():
        found = losses(hidden, weight, targets, rest, ratio, no_sync=True)
    torch.testing.assert_close(found, expected)
    with nothing_waits(), pytest.raises(AssertionError):
        losses(hidden, weight, targets, rest, ratio, no_sync=False)


@pytest.mark.parametrize("ratio, wave", [("sequence", 0), ("token", 19)])
def test_a_whole_graph_is_compiled(ratio, wave, monkeypatch):
    monkeypatch.setenv("O1CORE_KERNELS", "torch")
    monkeypatch.setattr(OnePassBudget, "rows_a_wave", lambda *_: wave)
    hidden, weight, targets = head_case(19, 23)
    rest = surrogate_case(kernels.linear_logprob(hidden, weight, targets).detach(), LENGTHS)

    def loss(hidden, weight):
        return kernels.linear_surrogate(hidden * 2, weight, targets, *rest, ratio=ratio, **SETTINGS, no_sync=True)[0]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(hidden, weight)
    expected = loss(hidden, weight)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(
        torch.autograd.grad(compiled, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))
    )
