"""A row's log-prob has the same bits alone and in any batch, in Triton: tiles and splits have fixed sizes."""

import pytest
import torch

from o1core import kernels
from o1core.kernels import configs
from tests.kernels.interpreter import dot_by_rows
from tests.kernels.triton_cases import BLOCK_V, DEVICE, head, needs_interpreter, normal, triton_backend

pytestmark = [needs_interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
ROWS = 64


@pytest.fixture(autouse=True)
def choose_triton(monkeypatch):
    with triton_backend(monkeypatch), dot_by_rows():
        yield


def batches(numbers):
    """Rows in each number, each time others and in another order."""
    generator = torch.Generator().manual_seed(0)
    for rows in numbers:
        yield torch.randperm(ROWS, generator=generator)[:rows].to(DEVICE)


@pytest.mark.parametrize("tma", [False, True])
def test_log_probs_of_a_linear_head_do_not_depend_on_the_batch(monkeypatch, tma):
    if tma:
        monkeypatch.setitem(configs.LINEAR_TMA, "interpreter", configs.LINEAR["interpreter"][2])
    hidden, weight, targets = head(ROWS, BLOCK_V + 7, 24, torch.bfloat16)
    whole = kernels.linear_logprob(hidden, weight, targets, temperature=0.7, entropy=True)
    for rows in batches((*range(1, 18), 31, 32, 33, 48, 63, 64) if not tma else (1, 16, 17, 33, 64)):
        some = kernels.linear_logprob(hidden[rows], weight, targets[rows], temperature=0.7, entropy=True)
        assert all(torch.equal(a, b[rows]) for a, b in zip(some, whole))


def test_log_probs_from_stored_logits_do_not_depend_on_the_batch():
    logits = normal(ROWS, 130, dtype=torch.float32)
    targets = torch.arange(ROWS, device=DEVICE)
    whole = kernels.gather_logprob(logits, targets, entropy=True)
    for rows in batches((1, 2, 7, 33, 64)):
        some = kernels.gather_logprob(logits[rows], targets[rows], entropy=True)
        assert all(torch.equal(a, b[rows]) for a, b in zip(some, whole))
