"""Fixtures of the torch kernels' tests."""

import pytest

from o1core.kernels import torch_linear


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
