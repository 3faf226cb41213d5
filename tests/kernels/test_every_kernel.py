"""What holds for every differentiable kernel of table.py, in torch and in Triton's interpreter (compiled where there is a GPU).

Truth is plain torch in float64, and gradcheck, which differentiates numerically and knows nothing of a kernel's equations.
"""

import pytest
import torch

from o1core.kernels.numbers import accumulator
from tests.kernels.kernel_cases import assert_as_near_as_torch
from tests.kernels.table import TABLE, outputs, results
from tests.kernels.triton_cases import leaf, needs_interpreter

# Lanes past the end of a row or batch compute on what masked loads put there, and nothing of it is stored.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Numbers of the leaves, up to which every entry of the Jacobian is compared, not a random direction of it.
SMALL = {"torch": 100, "triton": 16}


@pytest.fixture
def case(request, backend, small_blocks):
    """A row of the table, on a backend that has it; torch works in blocks of a few rows and columns."""
    found = TABLE[request.param]
    if backend not in found.on:
        pytest.skip("has no kernel in Triton")
    return found


ROWS = [name for name, case in TABLE.items() if case.rows]
each = pytest.mark.parametrize("case", TABLE, indirect=True)


@pytest.mark.parametrize("case", [name for name in TABLE if "around" not in name], indirect=True)
def test_gradcheck(case, backend):
    leaves, rest = case.inputs(torch.float64)
    few = sum(t.numel() for t in leaves) <= SMALL[backend]
    assert torch.autograd.gradcheck(lambda *x: case.ours(*x, *rest), [leaf(t) for t in leaves], fast_mode=not few)


@each
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_as_near_to_float64_as_torch(case, dtype):
    leaves, rest = case.inputs(dtype)
    widened = ([t.double() if t.is_floating_point() else t for t in part] for part in (leaves, rest))
    exact, of_torch, ours = (
        results(case.plain, *widened),
        results(case.plain, leaves, rest),
        results(case.ours, leaves, rest),
    )
    for place, (found, own, truth) in enumerate(zip(ours, of_torch, exact)):
        assert found.shape == truth.shape
        assert_as_near_as_torch(found, own, truth, dtype, f"result {place}")
    values, gradients = ours[: -len(leaves)], ours[-len(leaves) :]
    assert all(value.dtype == (accumulator(dtype) if case.wide else dtype) for value in values)
    assert all(gradient.dtype == dtype for gradient in gradients)
    if case.wide and case.rows and len(leaves[0]) > 2:  # upstream has a zero there
        assert not gradients[0][1].any()


@needs_interpreter
@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_the_same_bits_alone_in_triton(on_triton, name):
    case = TABLE[name]
    (x, *weights), rest = case.inputs(torch.float32)
    last = (slice(-1, None),) * (x.ndim // 2)  # the last row, also of the last sequence
    together = outputs(case.ours(x, *weights, *rest))
    alone = outputs(case.ours(x[last], *weights, *(t[-1:] for t in rest)))
    assert all(torch.equal(one, many[last[: many.ndim]]) for one, many in zip(alone, together))


@pytest.mark.parametrize("case", ROWS, indirect=True)
def test_no_rows(case):
    (x, *weights), rest = case.inputs(torch.float32)
    x, weights = leaf(x[:0]), [leaf(w) for w in weights]
    found = outputs(case.ours(x, *weights, *(t[:0] if len(t) == len(case.leaves[0]) else t for t in rest)))
    sum(o.sum() for o in found).backward()
    assert all(o.shape[0] == 0 for o in found) and x.grad.shape == x.shape and not any(w.grad.any() for w in weights)
