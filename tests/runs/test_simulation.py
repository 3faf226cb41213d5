"""The plan against torch's own simulation of FSDP: a few layers at the real widths here, all of them in bench.simulate."""

from dataclasses import replace

import pytest

from bench.simulate import CONFIGS, planned, simulated, trained_of
from o1core.model import read_config


@pytest.mark.filterwarnings("ignore:Expected a tensor or a traceable wrapper-subclass")
@pytest.mark.parametrize(
    "name, ranks, layers, trained, tokens",
    [
        ("marco-o1", 1, 2, "", 4096),
        ("marco-o1", 2, 2, "", 16384),
        ("qwq-32b", 8, 3, "2", 16384),
        ("marco-o1", 2, 2, "r32", 16384),
    ],
)
def test_an_update_takes_what_torch_simulates(name, ranks, layers, trained, tokens):
    config, settings = replace(read_config(CONFIGS / name), num_layers=layers), trained_of(trained)
    found = simulated(config, ranks, settings, tokens)
    assert planned(config, ranks, settings, tokens) == pytest.approx(found, rel=0.05)
