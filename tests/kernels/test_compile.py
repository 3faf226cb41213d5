"""Every Triton kernel as it is launched, compiled for its chips and read as machine code. No GPU is needed.

What was compiled before is in bench/results/compiled_kernels.json, under keys that change with the kernels, the launches and
the release of Triton. One of each kernel is compiled again here, and whatever the record lacks. Another release of Triton than
the record's compiles to other numbers, and everything anew: that takes minutes, and python -m bench.compiled_kernels does it.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
HEAD_PRODUCTS = ("partial_sums", "logit_gradient")
CHUNKS = ("delta_walk", "delta_solve", "delta_solve_backward", "delta_read", "delta_read_backward")
PRODUCTS = (*HEAD_PRODUCTS, "paged_attention", *CHUNKS)
STATES = ("delta_step", *CHUNKS)
ELEMENTWISE = ("rms_norm", "rms_norm_backward", "rotate", "swiglu", "swiglu_backward")
MATRIX_READERS = (
    *ELEMENTWISE,
    *STATES,
    "kept_gradient",
    "gather_forward",
    "gather_backward",
    "sample",
    "sample_candidates",
)
MATRIX_WRITERS = (*ELEMENTWISE, *STATES, "logit_gradient", "kept_gradient", "gather_backward")
SAMPLER_INSTRUCTIONS = 30_000  # a thread, for one row of the largest vocabulary


@pytest.fixture(scope="module")
def page() -> str:
    """Under the release of Triton that it names."""
    page = (ROOT / "bench/results/kernels.md").read_text()
    if f"Triton {version('triton')}," not in page:
        pytest.skip(f"the record is not of Triton {version('triton')}; python -m bench.compiled_kernels compiles anew")
    return page


@pytest.fixture(scope="module")
def command(tmp_path_factory, page):
    """The records and the output of the command, in a process of its own, since this one may be in Triton's interpreter."""
    path = tmp_path_factory.mktemp("compiled") / "records.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    arguments = ["--sample", "--jobs", "1", "--no-roofline", "--table", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.compiled_kernels", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert path.exists(), (done.stdout + done.stderr)[-3000:]
    return SimpleNamespace(records=json.loads(path.read_text()), output=done.stdout)


@pytest.fixture(scope="module")
def compiled(command) -> list[dict]:
    return command.records


def names(records: list[dict]) -> list[str]:
    return [" ".join(map(str, (r["target"], r["kernel"], r["dtype"], r["flags"], "at", r["sizes"]))) for r in records]


def test_every_kernel_is_compiled_for_every_chip(compiled):
    everywhere = {*PRODUCTS, *MATRIX_READERS, "merge", "attention_merge", "write_pages"}
    for target in TARGETS:
        assert everywhere <= {r["kernel"] for r in compiled if r["target"] == target}
    for target in ("sm_80", "sm_90"):
        for dtype in ("bf16", "fp16", "fp32", "fp64"):
            of_dtype = [r["kernel"] for r in compiled if (r["target"], r["dtype"]) == (target, dtype)]
            kernels = {kernel.removesuffix("_tma") for kernel in of_dtype}  # two ways to the same sums
            assert set(HEAD_PRODUCTS) <= kernels
        assert "surrogate" in {r["kernel"] for r in compiled if r["target"] == target}


def test_no_register_is_spilled(compiled):
    assert names([r for r in compiled if r["spill_bytes"] or r["spill_instructions"]]) == []


def test_shared_memory_fits_the_chip(compiled):
    limit = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "sm_86": 99, "sm_89": 99}
    assert names([r for r in compiled if r["shared_bytes"] > limit[r["target"]] * 1024]) == []


def test_products_run_on_tensor_cores(compiled):
    products = [r for r in compiled if r["kernel"] in PRODUCTS]
    assert products and names([r for r in products if not r["tensor_core"]]) == []


def test_products_load_asynchronously_and_the_rest_16_bytes_at_a_time(compiled):
    """But where 16 does not divide the width."""
    compiled = [r for r in compiled if not r["sizes"].endswith(" x 72")]
    assert names([r for r in compiled if r["kernel"] in HEAD_PRODUCTS and not r["async_copies"]]) == []
    readers = [r for r in compiled if r["kernel"] in MATRIX_READERS]
    assert readers and names([r for r in readers if not r["loads"]["16"]]) == []


def test_matrices_are_stored_16_bytes_at_a_time(compiled):
    writers = [r for r in compiled if r["kernel"] in MATRIX_WRITERS or r["flags"].get("KEEP")]
    assert writers and names([r for r in writers if not r["stores"]["16"]]) == []


def test_decode_attention_copies_asynchronously_within_48_kb(compiled):
    attention = [r for r in compiled if (r["kernel"], r["dtype"]) == ("paged_attention", "bf16")]
    assert {r["target"] for r in attention} >= {"sm_80", "sm_90"}
    assert names([r for r in attention if not r["async_copies"] or r["shared_bytes"] >= 48 * 1024]) == []


def test_the_persistent_forward_loads_by_tma_alone(compiled):
    persistent = [r for r in compiled if r["kernel"] == "partial_sums_tma"]
    assert {r["target"] for r in persistent} == {"sm_90", "sm_100"}
    assert names([r for r in persistent if not r["tma_loads"] or r["tma_loads"] != r["async_copies"]]) == []


def test_the_sampler_stays_in_its_budget_of_instructions(compiled):
    """Of one of 512 threads for a row of 151,665 ids, from the loops in the machine code, as if each ran through and every
    block held a candidate: 19 passes of 8,192 columns, 32 steps of a bisection (24 of top-k's first, which bounds its
    candidates), each with two barriers. Without a filter, 256 threads take twice as many passes over half the columns of fp32
    logits. The kernel for whole rows ends at once, but where they are nearly uniform."""

    def executed(record):
        halved = record["kernel"] == "sample" and record["dtype"] == "fp32"
        steps, total = [24] * bool(record["flags"].get("TOP_K")), record["instructions"]
        for length, reads, barriers in record["loops"]:
            if reads:
                times = 38 if halved else 19
            else:
                times = -(-(steps.pop() if steps else 32) // max(barriers // 2, 1))
            total += (times - 1) * length
        return total / 2 if halved else total

    samplers = [r for r in compiled if r["kernel"] in ("sample", "sample_candidates")]
    assert {r["target"] for r in samplers if r["dtype"] == "fp32"} == set(TARGETS)
    assert names([r for r in samplers if executed(r) > SAMPLER_INSTRUCTIONS]) == []


def test_nothing_is_atomic(compiled):
    """Sums in the order of arrival would differ from run to run. sm_100 is left out: there the compiler emits atomics of its
    own around tensor memory, and what each is for has not been looked into."""
    assert names([r for r in compiled if r["atomics"] and r["target"] != "sm_100"]) == []


def test_what_is_compiled_again_comes_out_as_recorded(command):
    assert [line for line in command.output.splitlines() if line.startswith("FAULT")] == []


def test_the_record_holds_what_is_launched_and_nothing_else(compiled, page):
    """If not: python -m bench.compiled_kernels --record."""
    assert compiled == json.loads((ROOT / "bench/results/compiled_kernels.json").read_text())


def test_the_page_has_the_table_that_the_command_prints(command, page):
    table = [line for line in command.output.splitlines() if line.startswith("|")]
    assert table and "\n".join(table) in page
    assert f"{len(command.records)} kernels" in page


def test_scalars_of_float64_kernels_are_float64():
    """A temperature passed as fp32 would be off by 6e-8, which the interpreter, where a float stays a float, cannot see."""
    from o1core.kernels import (
        triton_backward,
        triton_decode,
        triton_forward,
        triton_gather,
        triton_sample,
        triton_surrogate,
    )

    seen = 0
    for module in (triton_backward, triton_decode, triton_forward, triton_gather, triton_sample, triton_surrogate):
        for name, kernel in vars(module).items():
            if name.endswith("_kernel"):
                for scalar in {"inv_temperature", "low", "high", "per_unit", "scale", "top_p", "temperature", "spread"}:
                    kind = kernel.fn.__annotations__.get(scalar)
                    assert kind is None or str(kind) == "fp64", (name, scalar)
                    seen += kind is not None
    assert seen >= 10
