"""Fixtures of the kernels' tests. Triton is imported inside them: it looks at TRITON_INTERPRET when it is."""

import pytest

from o1core.kernels import linear_kl, torch_linear


@pytest.fixture
def on_triton(monkeypatch):
    """The ops run the Triton kernels, with bf16 as a GPU computes it."""
    from tests.kernels.triton_cases import triton_backend

    with triton_backend(monkeypatch):
        yield


@pytest.fixture(params=["torch", "triton"])
def backend(request, monkeypatch):
    """Each backend in turn; Triton's in its interpreter."""
    from tests.kernels.triton_cases import INTERPRETED

    if request.param == "triton":
        if not INTERPRETED:
            pytest.skip("looks inside Triton's interpreter")
        request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("O1CORE_KERNELS", "torch")
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 or 5 columns and at most 5 rows, 2 of float64; rows that are kept are padded."""
    sizes = {
        "FORWARD_BLOCK": 80,
        "FORWARD_COLUMNS": 5,
        "BACKWARD_BLOCK": 80,
        "BACKWARD_COLUMNS": 5,
        "ALIGNED": 4,
        "KEPT_COLUMNS": 5,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(torch_linear, name, value)
    monkeypatch.setattr(linear_kl, "SCRATCH_BYTES", 2 * 4 * 11 * 8)  # two rows and three ids at a time
    monkeypatch.setattr(linear_kl, "WIDENED_BYTES", 3 * 5 * 4)
