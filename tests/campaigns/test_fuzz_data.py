"""A short form of the campaign over problem files and answers."""

import random

import pytest

from .fuzz_data import fuzz_data


@pytest.mark.parametrize("seed", range(40))
def test_hostile_data_is_read_or_refused(tmp_path, seed):
    assert fuzz_data(random.Random(seed), tmp_path) in ("ok", "refused")
