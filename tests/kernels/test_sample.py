"""The sampling kernel against the sampler that a CPU runs: the same tokens, but for the neighbour of a boundary."""

import pytest
import torch

from bench.gpu.decode import probabilities_in_order
from o1core import kernels
from o1core.rollout.sampling import SamplingParams, sample
from tests.kernels.triton_cases import DEVICE, needs_interpreter

pytestmark = [needs_interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
VOCABULARY = 75


def case(rows, vocabulary=VOCABULARY, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, vocabulary, generator=generator)
    return logits.to(DEVICE), torch.rand(rows, generator=generator, dtype=torch.float64).to(DEVICE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 0.7, "top_p": 0.9},
        {"top_k": 7},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.8},
    ],
    ids=str,
)
def test_the_kernel_draws_what_the_sampler_of_a_cpu_draws(options):
    params = SamplingParams(**options)
    filtered = params.top_k or params.top_p < 1
    logits, uniforms = case(512 if filtered else 4300, seed=len(options))  # 10,136 in all; a filter takes long here
    expected_ids, expected_logp = sample(logits, uniforms, params)
    ids, logp, flags = kernels.sample_tokens(
        logits, uniforms, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p
    )
    assert not flags.any()
    different = (ids != expected_ids).nonzero()[:, 0].tolist()
    assert len(different) < 5
    for row in different:
        p, order = probabilities_in_order(logits[row], params)
        places = [(order == i).nonzero().item() for i in (int(ids[row]), int(expected_ids[row]))]
        assert abs(places[0] - places[1]) == 1
        assert abs(p.cumsum(0)[min(places)] - uniforms[row]) < 1e-6
    same = ids == expected_ids
    torch.testing.assert_close(logp[same], expected_logp[same], rtol=1e-6, atol=1e-6)


def test_temperature_zero_takes_the_largest():
    logits, uniforms = case(rows=50)
    logits[3, 70] = logits[3, 20] = 99.0
    ids, logp, _ = kernels.sample_tokens(logits, uniforms, temperature=0.0)
    assert torch.equal(ids, logits.argmax(1)) and ids[3] == 20
    torch.testing.assert_close(logp, torch.log_softmax(logits, 1).amax(1), rtol=1e-6, atol=1e-6)


def test_equal_logits_are_drawn_equally():
    """Four equal logits under a nucleus of three and under no filter: each uniform number falls on its own."""
    logits = torch.full((8, 40), -50.0, device=DEVICE)
    logits[:, 30:34] = 1.0
    uniforms = (torch.arange(8, dtype=torch.float64, device=DEVICE) + 0.5) / 8
    ids, _, _ = kernels.sample_tokens(logits, uniforms)
    assert ids.tolist() == [30, 30, 31, 31, 32, 32, 33, 33]
    ids, _, _ = kernels.sample_tokens(logits, uniforms, top_k=4, top_p=0.7)  # three of four reach 0.7
    assert ids.tolist() == [30, 30, 30, 31, 31, 32, 32, 32]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_raise_a_flag(bad):
    logits, uniforms = case(rows=6)
    logits[2, 5] = bad
    logits[4] = float("-inf")
    logits[5, :70] = float("-inf")  # impossible ids are no fault
    ids, _, flags = kernels.sample_tokens(logits, uniforms, temperature=0.8, top_p=0.9)
    assert flags.tolist() == [0, 0, 1, 0, 1, 0]
    assert ids[5] >= 70 and ((ids >= 0) & (ids < VOCABULARY)).all()


@pytest.mark.parametrize(
    "name, value", [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5)]
)
def test_a_wrong_setting_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        kernels.sample_tokens(*case(rows=2), **{name: value})
