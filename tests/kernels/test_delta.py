"""The delta rule's kernels, in torch and in Triton's interpreter, against the definition in float64."""

import pytest
import torch
from torch import Tensor

from o1core.kernels import delta_read, delta_solve, delta_step, delta_walk
from o1core.kernels.torch_delta import recurrent_step
from o1core.model.delta_rule import chunked
from tests.kernels import interpreter
from tests.kernels.triton_cases import DEVICE, leaf, needs_interpreter, normal

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # lanes past the end compute on zeros
HEADS = {
    "one value head each": (2, 2, 16, 16),
    "two, of odd sizes": (2, 4, 12, 37),
    "three": (1, 3, 16, 40),
}  # Hk, Hv, K, V


def token(heads: tuple[int, ...], rows: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """mixed, decay, beta and the convolution, as a layer's one product makes them: rows lie apart."""
    key_heads, value_heads, size, width = heads
    channels = 2 * key_heads * size + value_heads * width
    mixed = normal(rows, channels + 8, seed=seed)[:, :channels].to(dtype)
    decay, beta = -3 * normal(rows, value_heads, seed=seed + 1).abs() ** 3, normal(rows, value_heads, seed=2).sigmoid()
    return mixed, decay.float(), beta.float(), normal(channels, 4, seed=3).to(dtype)


def states(heads: tuple[int, ...], slots: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key_heads, value_heads, size, width = heads
    channels = 2 * key_heads * size + value_heads * width
    return normal(slots, channels, 3, seed=4).to(dtype), normal(slots, value_heads, size, width, seed=5).float()


def by_hand(mixed, decay, beta, kernel, tail, memory, key_heads) -> tuple[Tensor, Tensor, Tensor]:
    """One row in float64, a head at a time, as the rule is written down."""
    mixed, decay, beta, kernel, tail, memory = (t.double() for t in (mixed, decay, beta, kernel, tail, memory))
    fed = torch.cat((tail, mixed[:, None]), 1)
    x = (fed * kernel).sum(1)
    x = x / (1 + (-x).exp())
    heads, size, width = memory.shape
    outputs, moved = [], []
    for head in range(heads):
        of_key = head // (heads // key_heads) * size
        q, k = x[of_key : of_key + size], x[key_heads * size + of_key :][:size]
        q, k = (part / (part.square().sum() + 1e-6).sqrt() for part in (q, k))
        v = x[2 * key_heads * size + head * width :][:width]
        m = memory[head] * decay[head].exp()
        m = m + beta[head] * torch.outer(k, v - m.T @ k)
        outputs.append(m.T @ q / size**0.5)
        moved.append(m)
    return torch.stack(outputs), fed[:, 1:], torch.stack(moved)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_is_the_rule_and_moves_the_states_of_its_rows_alone(backend, heads, dtype):
    """Rows at places 4, 1 and 2; nobody's states are 0, 3 and 5."""
    given, (tails, memories) = token(heads, 3, dtype), states(heads, 6, dtype)
    places = torch.tensor([4, 1, 2], device=DEVICE)
    before = tails.clone(), memories.clone()
    out = delta_step(*given, tails, memories, places)
    for row, place in enumerate(places.tolist()):
        mixed, decay, beta, kernel = given
        exact = by_hand(mixed[row], decay[row], beta[row], kernel, *(t[place] for t in before), heads[0])
        for found, truth in zip((out[row], tails[place], memories[place]), exact):
            torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
    untouched = torch.tensor([0, 3, 5], device=DEVICE)
    assert all(torch.equal(now[untouched], then[untouched]) for now, then in zip((tails, memories), before))


def test_a_row_of_a_step_has_the_same_bits_alone(backend):
    heads = HEADS["three"]
    rows = 9 if backend == "triton" else 16
    given = token(heads, rows, torch.float32)
    places = torch.arange(rows, device=DEVICE)
    together = states(heads, rows, torch.float32)
    out = delta_step(*given, *together, places)
    few = slice(0, 8) if backend == "torch" else slice(5, 6)
    alone = states(heads, rows, torch.float32)
    some = delta_step(*(t[few] for t in given[:3]), given[3], *alone, places[few])
    assert torch.equal(some, out[few]) and all(torch.equal(a[few], b[few]) for a, b in zip(alone, together))


def test_rows_that_fill_a_batch_share_the_place_of_nobody(backend):
    heads = HEADS["one value head each"]
    given, held = token(heads, 4, torch.float32), states(heads, 2, torch.float32)
    out = delta_step(*given, *held, torch.tensor([1, 0, 0, 0], device=DEVICE))
    alone = states(heads, 2, torch.float32)
    first = delta_step(*(t[:1] for t in given[:3]), given[3], *alone, torch.tensor([1], device=DEVICE))
    assert torch.equal(first, out[:1]) and all(torch.equal(a[1], b[1]) for a, b in zip(alone, held))


@needs_interpreter
def test_every_warp_has_read_a_tail_before_it_moves_up(on_triton):
    """Warps that hold the same channels each load them, and one stores them; the interpreter, which has no warps, would not
    notice if that one came first."""
    heads, read, moved = HEADS["two, of odd sizes"], set(), 0
    held = states(heads, 3, torch.bfloat16)
    first, end = held[0].data_ptr(), held[0].data_ptr() + held[0].nbytes
    with interpreter.accesses() as seen:
        delta_step(*token(heads, 2, torch.bfloat16), *held, torch.tensor([2, 1], device=DEVICE))
    for access in seen:
        of_tails = {int(at) for at in access.addresses if first <= at < end}
        if access.kind == "load":
            read |= of_tails
        elif access.kind == "store":
            assert not read & of_tails
            moved += len(of_tails)
        else:
            read.clear()
    assert moved == 2 * held[0][0].numel()


def walk_inputs(sizes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    batch, chunks, heads, tokens, size, width = sizes
    shape = batch, chunks, heads, tokens
    drawn = [
        normal(*shape, width, seed=1),
        normal(*shape, size, seed=2, scale=0.2),
        normal(*shape, size, seed=3, scale=0.2),
    ]
    return [
        t.to(dtype) for t in (*drawn, normal(*shape[:3], seed=4).sigmoid(), normal(batch, heads, size, width, seed=5))
    ]


def walk_by_hand(values, keys, kept, fade, memory):
    corrections, memories = [], []
    for n in range(values.shape[1]):
        memories.append(memory)
        corrections.append(values[:, n] - keys[:, n] @ memory)
        memory = memory * fade[:, n, :, None, None] + kept[:, n].mT @ corrections[-1]
    return torch.stack(corrections, 1), torch.stack(memories, 1), memory


def gradients(op, inputs):
    leaves = [leaf(t) for t in inputs]
    found = op(*leaves)
    above = [normal(*o.shape, seed=7 + i).to(o.dtype) for i, o in enumerate(found)]
    return [o.detach() for o in found], torch.autograd.grad(found, leaves, above)


SIZES = {
    "a chunk": (1, 1, 1, 16, 16, 16),
    "two sequences": (2, 3, 2, 16, 16, 37),
    "odd keys, chunks of two blocks": (1, 2, 2, 64, 24, 40),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_a_walk_and_its_gradients_are_those_of_autograd_in_float64(backend, sizes, dtype, bound):
    inputs = walk_inputs(sizes, dtype)
    mine, exact = gradients(delta_walk, inputs), gradients(walk_by_hand, [t.double() for t in inputs])
    for found, truth in zip((*mine[0], *mine[1]), (*exact[0], *exact[1])):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), truth, rtol=bound, atol=bound * truth.abs().max().item())


def test_a_walk_by_gradcheck(backend):
    inputs = [leaf(t) for t in walk_inputs((1, 2, 1, 16, 4, 3), torch.float64)]
    assert torch.autograd.gradcheck(delta_walk, inputs, fast_mode=True)


def chunk_inputs(sizes: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """What delta_solve and delta_read take, by name; keys that are like each other."""
    batch, chunks, heads, tokens, size, width = sizes
    q, k = (normal(batch, chunks, tokens, heads, size, seed=seed) for seed in (1, 2))
    k = k + 2 * normal(size, seed=3)
    drawn = {
        "q": q / q.norm(dim=-1, keepdim=True),
        "k": k / k.norm(dim=-1, keepdim=True),
        "v": normal(batch, chunks, tokens, heads, width, seed=4),
        "total": (-(normal(batch, chunks, heads, tokens, seed=5).abs() ** 3)).cumsum(-1),
        "beta": normal(batch, chunks, heads, tokens, seed=6).sigmoid(),
        "corrections": normal(batch, chunks, heads, tokens, width, seed=7),
        "memories": normal(batch, chunks, heads, size, width, seed=8),
    }
    return {name: t.to(dtype) for name, t in drawn.items()}


def solve_by_hand(k, v, total, beta):
    """Token after token: what each corrects depends on what those before it have."""
    k, v = k.transpose(2, 3), v.transpose(2, 3)
    values, keys = [], []
    for i in range(k.shape[3]):
        before = (total[..., i : i + 1] - total[..., :i]).exp() * (k[..., :i, :] @ k[..., i, :, None])[..., 0]
        for found, own in ((values, v[..., i, :]), (keys, k[..., i, :] * total[..., i, None].exp())):
            known = sum((before[..., j, None] * found[j] for j in range(i)), start=torch.zeros_like(own))
            found.append(beta[..., i, None] * (own - known))
    return torch.stack(values, 3), torch.stack(keys, 3), k * (total[..., -1:] - total).exp()[..., None]


def read_by_hand(q, k, total, corrections, memories):
    q, k, found = q.transpose(2, 3), k.transpose(2, 3), []
    for i in range(q.shape[3]):
        upto = (total[..., i : i + 1] - total[..., : i + 1]).exp() * (k[..., : i + 1, :] @ q[..., i, :, None])[..., 0]
        of_memory = (q[..., i, None, :] * total[..., i, None, None].exp()) @ memories
        found.append((of_memory + upto[..., None, :] @ corrections[..., : i + 1, :])[..., 0, :])
    return (torch.stack(found, 2),)


CHUNKS = {
    "16 tokens": (1, 1, 1, 16, 16, 16),
    "32 tokens of odd sizes": (2, 1, 2, 32, 24, 37),
    "64 tokens": (1, 2, 1, 64, 16, 40),
}
OPS = {
    "solve": (delta_solve, solve_by_hand, ("k", "v", "total", "beta")),
    "read": (lambda *given: (delta_read(*given),), read_by_hand, ("q", "k", "total", "corrections", "memories")),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 3e-6)], ids=str)
def test_a_chunk_and_its_gradients_are_those_of_autograd_in_float64(backend, op, sizes, dtype, bound):
    mine, by_hand, names = OPS[op]
    inputs = [chunk_inputs(sizes, dtype)[name] for name in names]
    found, exact = gradients(mine, inputs), gradients(by_hand, [t.double() for t in inputs])
    for one, truth in zip((*found[0], *found[1]), (*exact[0], *exact[1])):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), truth, rtol=0, atol=bound * truth.abs().max().item())


def rule_inputs(batch: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    q, k, v = (normal(batch, length, 2, size, seed=size) for size in (16, 17, 9))
    k = k[..., :16]
    decay, beta = -3 * normal(batch, length, 2, seed=5).abs() ** 3, normal(batch, length, 2, seed=6).sigmoid()
    return [t.to(dtype) for t in (q, k / k.norm(dim=-1, keepdim=True), v, decay, beta, normal(batch, 2, 16, 9, seed=7))]


def rule_by_hand(q, k, v, decay, beta, memory):
    outputs = []
    for t in range(q.shape[1]):
        out, memory = recurrent_step(q[:, t], k[:, t], v[:, t], decay[:, t], beta[:, t], memory)
        outputs.append(out)
    return torch.stack(outputs, 1), memory


LENGTHS = [1, 63, 64, 65, 129]


@needs_interpreter
@pytest.mark.parametrize("length", LENGTHS)
def test_the_rule_in_chunks_is_the_recurrence_in_float64_with_its_gradient(on_triton, length):
    inputs = rule_inputs(1, length, torch.float64)
    found, exact = gradients(chunked, inputs), gradients(rule_by_hand, inputs)
    for one, truth in zip((*found[0], *found[1]), (*exact[0], *exact[1])):
        torch.testing.assert_close(one, truth, rtol=0, atol=1e-12 * truth.abs().max().item())


@needs_interpreter
@pytest.mark.parametrize("length", LENGTHS)
def test_the_rule_in_float32_is_as_exact_as_in_torch(on_triton, monkeypatch, length):
    """Both lose most in differences of two sums of decays."""
    inputs = rule_inputs(1, length, torch.float32)
    exact = gradients(rule_by_hand, [t.double() for t in inputs])
    found = gradients(chunked, inputs)
    monkeypatch.setenv("O1CORE_KERNELS", "torch")
    twin = gradients(chunked, inputs)
    for one, other, truth in zip(*((*of[0], *of[1]) for of in (found, twin, exact))):
        error, allowed = ((t - truth).abs().max().item() for t in (one, other))
        assert error <= 1.5 * allowed + 3e-7 * truth.abs().max().item()


@needs_interpreter
def test_a_strong_decay_makes_neither_infinities_nor_nans(on_triton):
    inputs = [t.double() for t in rule_inputs(1, 70, torch.float32)]
    inputs[3] = torch.full_like(inputs[3], -60.0)
    found, exact = gradients(chunked, inputs), gradients(rule_by_hand, inputs)
    for one, truth in zip((*found[0], *found[1]), (*exact[0], *exact[1])):
        torch.testing.assert_close(one, truth)


@needs_interpreter
def test_a_sequence_beside_others_has_the_same_bits_alone(on_triton):
    inputs = rule_inputs(3, 70, torch.float32)
    together, alone = chunked(*inputs), chunked(*(t[1:2] for t in inputs))
    assert all(torch.equal(one[0], many[1]) for one, many in zip(alone, together))


@needs_interpreter
@pytest.mark.parametrize("op", OPS)
def test_what_a_program_has_stored_is_read_behind_a_barrier_alone(on_triton, op):
    """Another thread may have stored it. One program a pass."""
    given = chunk_inputs((1, 1, 1, 64, 16, 16), torch.float32)
    with interpreter.accesses() as forward:
        found = OPS[op][0](*(given[name].requires_grad_() for name in OPS[op][2]))
    with interpreter.accesses() as backward:
        torch.autograd.backward(found, [torch.ones_like(o) for o in found])
    for seen in (forward, backward):
        open_stores, behind, again = set(), set(), 0
        for access in seen:
            at = set(access.addresses.tolist())
            if access.kind == "store":
                open_stores |= at
            elif access.kind == "load":
                assert not open_stores & at
                again += len(behind & at)
            else:
                behind, open_stores = behind | open_stores, set()
        assert again > 0


def test_no_rows_and_no_chunks(backend):
    heads = HEADS["three"]
    empty = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert delta_step(*token(heads, 0, torch.float32), *states(heads, 2, torch.float32), empty).shape == (0, 3, 40)
    values, keys, kept, fade, memory = walk_inputs((2, 1, 2, 16, 16, 8), torch.float32)
    found = delta_walk(*(t[:, :0] for t in (values, keys, kept, fade)), memory)
    assert found[0].shape == (2, 0, 2, 16, 8) and torch.equal(found[2], memory)


def test_wrong_arguments_are_named(backend):
    given, held = token(HEADS["three"], 2, torch.float32), states(HEADS["three"], 2, torch.float32)
    places = torch.tensor([0, 1], device=DEVICE)
    for changed, message in (
        ((*given[:1], given[1][:1], *given[2:], *held, places), r"^decay: shape \(1, 3\), expected \(2, 3\)"),
        ((*given, held[0].half(), held[1], places), "^tails: dtype"),
        ((*given, *held, places.int()), "^places: dtype torch.int32, expected int64"),
        ((given[0][:, 1:], *given[1:], *held, places), "^mixed: 151 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            delta_step(*changed)
    inputs = walk_inputs(SIZES["a chunk"], torch.float32)
    with pytest.raises(ValueError, match=r"^kept: shape"):
        delta_walk(*inputs[:2], inputs[2][..., :3], *inputs[3:])
    with pytest.raises(ValueError, match=r"^values: dtype torch.bfloat16, expected float32 or float64"):
        delta_walk(*(t.bfloat16() for t in inputs))
