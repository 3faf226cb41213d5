"""RMSNorm, the rotary embedding and SwiGLU: torch's twins and the Triton kernels in the interpreter.

Truth is the formula in float64, and gradcheck, which differentiates numerically. The twins have to have the bits of the plain
operations, gradients included, so that who puts them into a model changes no result.
"""

import pytest
import torch
import torch.nn.functional as F

from o1core import kernels
from o1core.kernels import triton_elementwise
from tests.kernels.kernel_cases import assert_as_near_as_torch, upstream
from tests.kernels.triton_cases import leaf, needs_interpreter, normal

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # lanes past the end compute on zeros
EPS = 1e-6
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def plain_rms_norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, EPS)


def plain_rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def plain_swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def angles(*shape):
    angle = normal(*shape, seed=3)
    return angle.cos(), angle.sin()


def cases(dtype):
    """{name: (the op, its plain operations, what is differentiated, what is not)}: rows beyond one block, widths that no power
    of two is, heads that lie inside a wider product, and angles of one sequence for all of a batch."""
    wide = normal(2, 3, 5 * 12, seed=7).unflatten(-1, (5, 12))[..., 1:4, :10]  # [2, 3, 3, 10], heads 12 apart
    return {
        name: (ours, plain, [t.to(dtype) for t in leaves], [t.to(dtype) for t in rest])
        for name, ours, plain, leaves, rest in (
            (
                "rms_norm",
                lambda x, w: kernels.rms_norm(x, w, EPS),
                plain_rms_norm,
                (normal(3, 5, 24), normal(24, seed=1)),
                (),
            ),
            (
                "rms_norm, one wide row",
                lambda x, w: kernels.rms_norm(x, w, EPS),
                plain_rms_norm,
                (normal(1, 130), normal(130, seed=1)),
                (),
            ),
            ("rotate", kernels.rotate, plain_rotate, (wide,), angles(3, 1, 5)),
            ("rotate, an angle a row", kernels.rotate, plain_rotate, (normal(4, 2, 16),), angles(4, 1, 8)),
            ("swiglu", kernels.swiglu, plain_swiglu, (normal(2, 3, 2 * 70, scale=3.0),), ()),
        )
    }


NAMES = list(cases(torch.float64))


def results(op, leaves, rest):
    """The output and the gradients under one that differs from number to number."""
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]
    out = op(*leaves, *rest)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream(out.shape, dtype=torch.float64).to(out))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(backend, name):
    ours, _, leaves, rest = cases(torch.float64)[name]
    assert torch.autograd.gradcheck(lambda *x: ours(*x, *rest), [leaf(t) for t in leaves], fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_as_near_to_float64_as_the_plain_operations(backend, name, dtype):
    ours, plain, leaves, rest = cases(dtype)[name]
    exact = results(plain, [t.double() for t in leaves], [t.double() for t in rest])
    found, of_torch = results(ours, leaves, rest), results(plain, leaves, rest)
    for part, a, b, truth in zip(("out", "gradient", "gradient of the weight"), found, of_torch, exact):
        assert a.dtype == dtype
        assert_as_near_as_torch(a, b, truth, dtype, part)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_the_twins_have_the_bits_of_the_plain_operations(monkeypatch, name, dtype):
    monkeypatch.setenv("O1CORE_KERNELS", "torch")
    ours, plain, leaves, rest = cases(dtype)[name]
    assert all(torch.equal(a, b) for a, b in zip(results(ours, leaves, rest), results(plain, leaves, rest)))


def test_only_inputs_are_kept_between_the_passes(backend):
    """Of the rotary embedding not even those: its gradient needs the angles alone."""
    kept = []

    def pack(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    for name, (ours, _, leaves, rest) in cases(torch.float32).items():
        leaves, before = [leaf(t) for t in leaves], len(kept)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ours(*leaves, *rest)
        inputs = rest if name.startswith("rotate") else leaves
        assert kept[before:] == [t.data_ptr() for t in inputs], name


@needs_interpreter
@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_same_bits_alone(on_triton, name):
    ours, _, (x, *weight), rest = cases(torch.float32)[name]
    last = (slice(-1, None),) * (x.ndim // 2)  # the last row, also of the last sequence
    together, alone = ours(x, *weight, *rest), ours(x[last], *weight, *(t[-1:] for t in rest))
    assert torch.equal(alone, together[last])


@needs_interpreter
def test_the_weights_gradient_is_summed_by_several_programs_alike(on_triton, monkeypatch):
    """With fewer programs each walks over several blocks of rows: another order of the same sum."""
    ours, plain, leaves, _ = cases(torch.float64)["rms_norm"]
    monkeypatch.setattr(triton_elementwise, "NORM_PROGRAMS", 3)
    for a, b in zip(results(ours, leaves, ()), results(plain, leaves, ())):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_no_rows_and_no_gradient(backend):
    assert kernels.rms_norm(normal(0, 8), normal(8), EPS).shape == (0, 8)
    assert kernels.swiglu(normal(2, 0, 8)).shape == (2, 0, 4)
    assert kernels.rotate(normal(0, 2, 8), *angles(0, 1, 4)).shape == (0, 2, 8)
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
