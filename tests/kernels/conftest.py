"""Fixtures of the torch kernels' tests, and the compiler at work beside all of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from o1core.kernels import torch_linear

ROOT = Path(__file__).parents[2]
COMPILED = "test_compile.py"  # its tests look at machine code, which takes minutes to make


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name == COMPILED)


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    """(process, folder): bench.compiled_kernels with its log and records.json, beside the other tests.
    In a process of its own, since this one may be in Triton's interpreter."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # Triton's own cache, so that only what changed is compiled
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "bench.compiled_kernels", "--jobs", "2", "--no-roofline", "--table"]
    with open(folder / "log", "w") as log:
        command += ["--json", str(folder / "records.json")]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    yield process, folder
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)  # with the processes that it started
        process.wait()


@pytest.fixture(scope="session", autouse=True)
def early_compiler(request):
    """The compiler starts with the first test of this folder. With several workers it does not: each of them collects
    test_compile.py, and one runs it, while the others keep the cores busy."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    if alone and any(item.path.name == COMPILED for item in request.session.items):
        request.getfixturevalue("compiler")


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
