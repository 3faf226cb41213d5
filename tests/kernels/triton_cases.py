"""What the tests of the Triton kernels share: where they run, and inputs that live there."""

import os
from contextlib import contextmanager

import pytest
import torch

from o1core.kernels import configs
from tests.kernels import interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_BLOCKS = configs.linear(torch.device(DEVICE), torch.float64).constants
BLOCK_N, BLOCK_V = _BLOCKS["BLOCK_N"], _BLOCKS["BLOCK_V"]

needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="looks inside Triton's interpreter")


@contextmanager
def triton_backend(monkeypatch):
    """The ops run the Triton kernels, with bf16 as a GPU computes it."""
    monkeypatch.setenv("O1CORE_KERNELS", "triton")
    with interpreter.exact_bf16():
        yield


def with_blocks_of(monkeypatch, target):
    """In the interpreter, the blocks of a GPU."""
    monkeypatch.setitem(configs.LINEAR, "interpreter", configs.LINEAR[target])
    for table in (configs.MERGE, configs.GATHER):
        monkeypatch.setitem(table, "interpreter", table["gpu"])


def normal(*shape, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(DEVICE, dtype)


def ids(rows, vocabulary, seed=1, dtype=torch.int64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (rows,), generator=generator).to(DEVICE, dtype)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def head(n, v, h, dtype=torch.float64, level=0.0):
    """hidden [N, H] and weight [V, H] whose logits lie around `level`, and one target a row."""
    hidden, weight = normal(n, h, seed=2), normal(v, h, seed=3, scale=h**-0.5)
    if level:
        hidden[:, 0], weight[:, 0] = 8.0, level / 8.0
    return hidden.to(dtype), weight.to(dtype), ids(n, v)


def gradients(op, hidden, weight, targets, upstream, entropy_upstream, **options):
    """logp, entropy and the gradients of both inputs under given upstream gradients."""
    hidden, weight = leaf(hidden), leaf(weight)
    logp, entropy = op(hidden, weight, targets, entropy=True, **options)
    scores = (logp * upstream.to(logp.dtype)).sum() + (entropy * entropy_upstream.to(logp.dtype)).sum()
    scores.backward()
    return logp.detach(), entropy.detach(), hidden.grad, weight.grad
