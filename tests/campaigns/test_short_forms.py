"""Short forms of the campaigns (python -m tests.campaigns): a few cases of each, so that none rots."""

import random

import pytest

from .attacks import ATTACKS
from .fuzz_cli import fuzz_cli
from .fuzz_data import fuzz_data
from .fuzz_model import fuzz_model
from .fuzz_report import fuzz_report
from .fuzz_rollouts import fuzz_rollouts
from .kill import KINDS, run_kill
from .memory import run_memory


def test_runs_that_are_killed_end_with_the_same_bits(tmp_path):
    counts = run_kill(len(KINDS), 0, tmp_path)
    assert counts == {f"{kind}: ok": 1 for kind in KINDS}


@pytest.mark.parametrize("fuzz", [fuzz_model, fuzz_rollouts, fuzz_report, fuzz_cli])
@pytest.mark.parametrize("seed", range(4))
def test_hostile_files_are_read_or_refused(tmp_path, fuzz, seed):
    assert fuzz(random.Random(seed), tmp_path) in ("ok", "refused")


@pytest.mark.parametrize("seed", range(40))
def test_hostile_data_is_read_or_refused(tmp_path, seed):
    assert fuzz_data(random.Random(seed), tmp_path) in ("ok", "refused")


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_that_succeeded_once_fails(tmp_path, attack):
    assert attack(tmp_path) == "ok"


def test_memory_of_updates_between_samplings_does_not_creep():
    assert run_memory(steps=4, layers=1, vocab=65536, batch=2, tokens=256) == 0
