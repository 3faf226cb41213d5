"""Packed trees against every sequence alone, in float64: hidden states and gradients."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from o1core.model import ModelConfig, Transformer, Trees, initialise
from o1core.model.trees import attend_apart, tree_attention

CPU = torch.device("cpu")
SMALL = ModelConfig("Qwen3ForCausalLM", 97, 24, 40, 2, 4, 2, 8, 1e-6, 1e4, 512, True, torch.float64)


def trees() -> st.SearchStrategy[Trees]:
    """1 to 3 prompts, each with up to 9 completions, in a few shapes: of one token, of lengths alike, of up to 200."""
    length = st.one_of(st.integers(1, 4), st.integers(1, 200))
    forked = st.lists(st.tuples(length, st.lists(length, min_size=1, max_size=9)), max_size=2)
    alone = st.lists(length, max_size=2)
    both = st.tuples(forked, alone).filter(any)
    return both.map(lambda f: Trees((*(n for n, _ in f[0]), *f[1]), tuple(tuple(of) for _, of in f[0])))


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(SMALL).double()
    initialise(model, 0, std=0.2)
    return model


@settings(max_examples=25, deadline=None)
@given(trees())
def test_hidden_states_and_gradients_are_those_of_every_sequence_alone(model, of):
    ids = torch.randint(97, (of.rows,), generator=torch.Generator().manual_seed(of.rows))
    direction = random((of.rows, 24), 1)
    found = model.packed(ids, of)
    wanted = torch.autograd.grad((found * direction).sum(), list(model.parameters()))

    hidden, total = [], 0.0
    for root in of.of_roots:
        hidden.append(model.hidden(ids[None, root])[0])
        total = total + (hidden[-1] * direction[root]).sum()
    for root, branches in zip(of.of_roots, of.of_branches):
        for branch in branches:
            whole = torch.cat((ids[root], ids[branch]))
            hidden.append(model.hidden(whole[None])[0, root.stop - root.start :])
            total = total + (hidden[-1] * direction[branch]).sum()
    torch.testing.assert_close(found, torch.cat(hidden), rtol=1e-12, atol=1e-12)
    for one, other in zip(wanted, torch.autograd.grad(total, list(model.parameters()))):
        assert (one - other).abs().max() <= 1e-12 * other.abs().max()


@pytest.mark.parametrize("of", [Trees((3, 1, 4), ((2, 1), (3,))), Trees((5,)), Trees((1,), ((1,),))])
def test_the_gradient_of_tree_attention_is_that_of_finite_differences(of):
    heads = [random((of.rows, count, 4), count).requires_grad_() for count in (4, 2, 2)]
    assert torch.autograd.gradcheck(lambda *qkv: tree_attention(of, CPU)(0, *qkv), heads)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_tree_attention_is_as_exact_as_that_of_every_sequence_alone(dtype, bound):
    of = Trees((105, 20), ((70, 1, 33),))
    q, k, v = (random((of.rows, count, 64), count) for count in (14, 2, 2))
    exact = attend_apart(q, k, v, of)
    found = tree_attention(of, CPU)(0, *(t.to(dtype) for t in (q, k, v)))
    assert found.dtype == dtype and (found - exact).abs().max() < bound
