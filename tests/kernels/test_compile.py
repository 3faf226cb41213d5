"""Every Triton kernel in every shipped configuration, compiled for its chips and read as machine code. No GPU is needed.

The compiling is one run of bench/compiled_kernels.py, beside the tests of this folder (conftest.py); these come last.
"""

import json

import pytest

HEAD_PRODUCTS = ("linear.partial_sums", "linear.logit_gradient")
PRODUCTS = (*HEAD_PRODUCTS, "pages.attention")
MATRIX_READERS = ("kept.gradient", "gather.forward", "gather.backward")
MATRIX_WRITERS = ("linear.logit_gradient", "kept.gradient", "gather.backward")

pytestmark = pytest.mark.timeout(600)  # the first test waits for the compiler


@pytest.fixture(scope="module")
def compiled(compiler) -> list[dict]:
    process, folder = compiler
    assert process.wait() == 0, (folder / "log").read_text()[-3000:]
    return json.loads((folder / "records.json").read_text())


def names(records: list[dict]) -> list[str]:
    return [f"{r['target']} {r['name']}" for r in records]


def test_every_kernel_is_compiled_for_both_chips(compiled):
    for target in ("sm_80", "sm_90"):
        for dtype in ("bf16", "fp16", "fp32", "fp64"):
            kernels = {r["kernel"] for r in compiled if (r["target"], r["dtype"]) == (target, dtype)}
            assert set(HEAD_PRODUCTS) <= kernels
        others = {"linear.merge", "surrogate", "advantage", "pages.attention", "pages.merge", "pages.write"}
        assert {*others, *MATRIX_READERS} <= {r["kernel"] for r in compiled if r["target"] == target}


def test_every_kernel_compiles_for_sizes_of_one(compiled):
    """Triton makes a compile-time constant of an integer argument that is 1: one token, one word, one sequence."""
    assert {r["kernel"] for r in compiled if r["ones"]} == {r["kernel"] for r in compiled}


def test_no_register_is_spilled(compiled):
    assert names([r for r in compiled if r["spill_bytes"] or r["spill_instructions"]]) == []


def test_shared_memory_fits_the_chip(compiled):
    limit = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "other": 99 * 1024}
    assert names([r for r in compiled if r["shared_bytes"] > limit[r["target"]]]) == []


def test_products_run_on_tensor_cores(compiled):
    """Chips between the server ones have no tensor cores for float64."""
    products = [r for r in compiled if r["kernel"] in PRODUCTS and (r["target"], r["dtype"]) != ("other", "fp64")]
    assert products and names([r for r in products if not r["tensor_core"]]) == []


def test_products_load_asynchronously_and_the_rest_16_bytes_at_a_time(compiled):
    compiled = [r for r in compiled if not r["ones"]]
    assert names([r for r in compiled if r["kernel"] in HEAD_PRODUCTS and not r["async_copies"]]) == []
    readers = [r for r in compiled if r["kernel"] in MATRIX_READERS]
    assert readers and names([r for r in readers if not r["loads"]["16"]]) == []


def test_matrices_are_stored_16_bytes_at_a_time(compiled):
    writers = [r for r in compiled if (r["kernel"] in MATRIX_WRITERS or ["KEEP", True] in r["flags"]) and not r["ones"]]
    assert writers and names([r for r in writers if not r["stores"]["16"]]) == []


def test_decode_attention_copies_asynchronously_within_48_kb(compiled):
    attention = [r for r in compiled if (r["kernel"], r["dtype"], r["ones"]) == ("pages.attention", "bf16", False)]
    assert {r["target"] for r in attention} >= {"sm_80", "sm_90"}
    assert names([r for r in attention if not r["async_copies"] or r["shared_bytes"] >= 48 * 1024]) == []


def test_the_persistent_forward_loads_by_tma_alone(compiled):
    persistent = [r for r in compiled if r["kernel"] == "linear.partial_sums_tma" and not r["ones"]]
    assert {r["target"] for r in persistent} == {"sm_90", "sm_100"}
    assert names([r for r in persistent if not r["tma_loads"] or r["tma_loads"] != r["async_copies"]]) == []


def test_nothing_is_atomic(compiled):
    """Sums in the order of arrival would differ from run to run. sm_100 is left out: there the compiler emits atomics of its
    own around tensor memory, and what each is for has not been looked into."""
    assert names([r for r in compiled if r["atomics"] and r["target"] != "sm_100"]) == []


def test_scalars_of_float64_kernels_are_float64():
    """A temperature passed as fp32 would be off by 6e-8, which the interpreter, where a float stays a float, cannot see."""
    from bench.kernel_variants import FLOAT_SCALARS, KERNELS

    for name, kernel in KERNELS.items():
        scalars = [(p, str(kernel.fn.__annotations__[p])) for p in kernel.arg_names if p in FLOAT_SCALARS]
        assert all(kind == "fp64" for _, kind in scalars), name
