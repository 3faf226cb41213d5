"""The gated delta rule: its chunked form against the definition, and sequences that must not notice each other."""

import pytest
import torch

from o1core.kernels import delta_step
from o1core.kernels.torch_delta import recurrent_step
from o1core.model import DeltaConfig, DeltaInputs, empty_state, run_sequence
from o1core.model.delta_rule import chunked

C = DeltaConfig(key_heads=2, value_heads=4, key_dim=8, value_dim=6, kernel=4, layers=(0,))


def drawn(length: int, batch: int = 2, dtype=torch.float64, seed: int = 0) -> DeltaInputs:
    g = torch.Generator().manual_seed(seed)
    mixed, kernel = (
        torch.randn(batch, length, sum(C.widths), generator=g),
        torch.randn(sum(C.widths), 1, 4, generator=g),
    )
    decay = -3 * torch.rand(batch, length, 4, generator=g) ** 4  # some forget nearly all, most nearly nothing
    beta = torch.rand(batch, length, 4, generator=g)
    return DeltaInputs(*(t.to(dtype) for t in (mixed, decay, beta, kernel)), C)


def heads(inputs: DeltaInputs) -> list[torch.Tensor]:
    """Random q, k of length 1 and v beside the inputs' decay and beta, and a memory."""
    g = torch.Generator().manual_seed(1)
    shape = inputs.beta.shape
    q, k, v = (torch.randn(*shape, size, dtype=torch.float64, generator=g) for size in (8, 8, 6))
    memory = torch.randn(shape[0], 4, 8, 6, dtype=torch.float64, generator=g)
    k = k / k.norm(dim=-1, keepdim=True)
    return [t.requires_grad_() for t in (q, k, v, inputs.decay, inputs.beta, memory)]


def recurrent(q, k, v, decay, beta, memory):
    """The definition, a token at a time."""
    outputs = []
    for t in range(q.shape[1]):
        out, memory = recurrent_step(q[:, t], k[:, t], v[:, t], decay[:, t], beta[:, t], memory)
        outputs.append(out)
    return torch.stack(outputs, dim=1), memory


@pytest.mark.parametrize("length", [1, 3, 63, 64, 65, 129])
def test_chunks_compute_the_definition_and_its_gradient_in_float64(length):
    found, exact = chunked(*(given := heads(drawn(length)))), recurrent(*given)
    weights = [torch.randn(t.shape, dtype=t.dtype, generator=torch.Generator().manual_seed(2)) for t in exact]
    for mine, twin in zip(found, exact):
        torch.testing.assert_close(mine, twin, rtol=1e-9, atol=1e-9)
    of_chunks, of_twin = (
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(result, weights)), given) for result in (found, exact)
    )
    for mine, twin in zip(of_chunks, of_twin):
        torch.testing.assert_close(mine, twin, rtol=1e-8, atol=1e-9)


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda *given: chunked(*given, 4), heads(drawn(6, batch=1)), fast_mode=True)


def test_a_strong_decay_neither_overflows_nor_underflows_to_nan():
    given = heads(drawn(100))
    given[3] = torch.full_like(given[3], -60.0)  # 64 of them: exp of 3,840 if a sign were wrong
    out, memory = chunked(*given)
    assert out.isfinite().all() and memory.isfinite().all()
    torch.testing.assert_close(out, recurrent(*given)[0])


@pytest.mark.parametrize("cut", [1, 2, 64, 70])
def test_a_sequence_goes_on_from_the_state_that_its_beginning_left(cut):
    inputs = drawn(100)
    whole, end = run_sequence(inputs, empty_state(inputs))
    first, rest = (part(inputs, slice(*ends)) for ends in ((0, cut), (cut, 100)))
    out, state = run_sequence(first, empty_state(first))
    again, last = run_sequence(rest, state)
    torch.testing.assert_close(torch.cat((out, again), dim=1), whole)
    for mine, exact in zip(last, end):
        torch.testing.assert_close(mine, exact)


def part(inputs: DeltaInputs, rows: slice) -> DeltaInputs:
    return inputs._replace(mixed=inputs.mixed[:, rows], decay=inputs.decay[:, rows], beta=inputs.beta[:, rows])


def test_tokens_one_by_one_are_the_sequence_and_do_not_notice_each_other():
    """A decode step's rows are a multiple of 8 (rollout/row_bits.py)."""
    inputs = drawn(70, batch=24, dtype=torch.float32)
    whole, end = run_sequence(inputs, empty_state(inputs))
    states, fewer = ([t.contiguous() for t in empty_state(inputs)] for _ in range(2))
    places = torch.arange(24)
    for t in range(70):
        token = [of[:, t] for of in (inputs.mixed, inputs.decay, inputs.beta)]
        out = delta_step(*token, inputs.kernel[:, 0], *states, places)
        first = delta_step(*(of[:8] for of in token), inputs.kernel[:, 0], *fewer, places[:8])
        assert torch.equal(first, out[:8]) and torch.equal(fewer[1][:8], states[1][:8])
        torch.testing.assert_close(out, whole[:, t], rtol=1e-5, atol=1e-5)
    for mine, exact in zip(states, end):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)
