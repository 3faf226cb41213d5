"""RMSNorm, the rotary embedding and SwiGLU, beyond what holds for every kernel (test_every_kernel.py).

The torch twins have to have the bits of the plain operations, gradients included, so that who puts them into a model changes
no result.
"""

import pytest
import torch

from o1core import kernels
from o1core.kernels import triton_elementwise
from tests.kernels.table import EPS, TABLE, results
from tests.kernels.triton_cases import leaf, needs_interpreter, normal

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # lanes past the end compute on zeros


CASES = [case for case in TABLE.values() if case.name.startswith(("rms_norm", "rotate", "swiglu"))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_the_twins_have_the_bits_of_the_plain_operations(monkeypatch, case, dtype):
    monkeypatch.setenv("O1CORE_KERNELS", "torch")
    found, plain = (results(op, *case.inputs(dtype)) for op in (case.ours, case.plain))
    assert all(torch.equal(a, b) for a, b in zip(found, plain))


def test_only_inputs_are_kept_between_the_passes(backend):
    """Of the rotary embedding not even those: its gradient needs the angles alone."""
    kept = []

    def pack(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    for case in CASES:
        leaves, rest = case.inputs(torch.float32)
        leaves, before = [leaf(t) for t in leaves], len(kept)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            case.ours(*leaves, *rest)
        inputs = rest if case.name.startswith("rotate") else leaves
        assert kept[before:] == [t.data_ptr() for t in inputs], case.name


@needs_interpreter
def test_the_weights_gradient_is_summed_by_several_programs_alike(on_triton, monkeypatch):
    """With fewer programs each walks over several blocks of rows: another order of the same sum."""
    case = TABLE["rms_norm"]
    monkeypatch.setattr(triton_elementwise, "NORM_PROGRAMS", 3)
    for a, b in zip(*(results(op, *case.inputs(torch.float64)) for op in (case.ours, case.plain))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rows_of_nothing_and_no_gradient(backend):
    assert kernels.swiglu(normal(2, 0, 8)).shape == (2, 0, 4)
    x = normal(3, 8).requires_grad_()
    with torch.no_grad():
        assert not kernels.rms_norm(x, normal(8), EPS).requires_grad
    kernels.rms_norm(x, normal(8), EPS).sum().backward()  # a frozen weight
    assert x.grad.isfinite().all()


def test_wrong_arguments_are_named(backend):
    x = normal(3, 8)
    with pytest.raises(ValueError, match=r"^weight: shape \(7,\), expected \(8,\)"):
        kernels.rms_norm(x, normal(7), EPS)
    with pytest.raises(ValueError, match=r"^weight: dtype"):
        kernels.rms_norm(x, normal(8, dtype=torch.float32), EPS)
    with pytest.raises(ValueError, match=r"^sin: shape"):
        kernels.rotate(normal(3, 2, 8), normal(3, 1, 4), normal(2, 1, 4))
    with pytest.raises(ValueError, match=r"^gate_up: 7 numbers"):
        kernels.swiglu(normal(3, 7))
