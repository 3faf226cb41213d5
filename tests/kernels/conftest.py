"""Fixtures of the torch kernels' tests."""

import pytest

from o1core.kernels import torch_linear


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 5 columns and at most 4 rows, 2 of float64."""
    for name, value in {"FORWARD_BLOCK": 80, "FORWARD_COLUMNS": 5, "BACKWARD_BLOCK": 80, "BACKWARD_COLUMNS": 5}.items():
        monkeypatch.setattr(torch_linear, name, value)
