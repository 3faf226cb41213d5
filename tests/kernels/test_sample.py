"""The sampling kernel against the sampler that a CPU runs: the same tokens, but for the neighbour of a boundary."""

import pytest
import torch

from bench.gpu.decode import probabilities_in_order
from o1core import kernels
from o1core.kernels import configs
from o1core.kernels.triton_sample import readable_columns
from o1core.rollout.sampling import SamplingParams, sample
from tests.kernels.triton_cases import DEVICE, needs_interpreter

pytestmark = [needs_interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
VOCABULARY = 75


def case(rows, vocabulary=VOCABULARY, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, vocabulary, generator=generator)
    return logits.to(DEVICE), torch.rand(rows, generator=generator, dtype=torch.float64).to(DEVICE)


def assert_same_tokens(logits, uniforms, params, most=5):
    """The CPU sampler's ids, but for neighbours whose boundary the uniform number hits within 1e-6; and its log-probs."""
    expected_ids, expected_logp = sample(logits, uniforms, params)
    settings = {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
    ids, logp, flags = kernels.sample_tokens(logits, uniforms, **settings)
    assert not flags.any()
    different = (ids != expected_ids).nonzero()[:, 0].tolist()
    assert len(different) < most
    for row in different:
        p, order = probabilities_in_order(logits[row], params)
        places = [(order == i).nonzero().item() for i in (int(ids[row]), int(expected_ids[row]))]
        assert abs(places[0] - places[1]) == 1
        assert abs(p.cumsum(0)[min(places)] - uniforms[row]) < 1e-6
    same = ids == expected_ids
    torch.testing.assert_close(logp[same], expected_logp[same], rtol=1e-6, atol=1e-6)


SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 0.0},
    {"temperature": 0.5, "top_p": 0.8},
    {"temperature": 0.7, "top_p": 0.9},
    {"top_k": 7},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.8},
    {"top_k": VOCABULARY, "top_p": 0.9},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_the_kernel_draws_what_the_sampler_of_a_cpu_draws(options):
    """10,000 rows of every setting, cut from a table that is wider than the vocabulary."""
    table, uniforms = case(10_000, 80, seed=len(options))
    table[:, VOCABULARY:] = float("nan")
    assert readable_columns(table[:, :VOCABULARY]) == 80
    assert_same_tokens(table[:, :VOCABULARY], uniforms, SamplingParams(**options))


def test_nothing_is_read_behind_the_last_row():
    """Columns up to a multiple of 16 are read where the memory is the table's own."""
    table = torch.zeros(4, 80, device=DEVICE)
    assert [readable_columns(t) for t in (table[:, :75], table[:, :64], table[:, 4:79], table[:1, :75])] == [
        80,
        64,
        75,
        80,
    ]
    assert readable_columns(torch.zeros(3, 75)) == readable_columns(torch.zeros(75).expand(3, 75)) == 75


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"top_k": 70}, {"top_k": 70, "top_p": 0.9}], ids=str)
def test_rows_with_more_candidates_than_fit_are_read_whole(options):
    """Flat rows, of which all 200 ids are candidates, beside steep ones, of which a few are."""
    logits, uniforms = case(300, 200, scale=0.3)
    logits[::3] *= 20
    assert configs.SAMPLE["interpreter"].constants["ROOM"] < 70
    assert_same_tokens(logits, uniforms, SamplingParams(**options))


@pytest.mark.parametrize("options", [{"top_p": 0.8}, {"top_k": 3}, {"top_k": 3, "top_p": 0.9}], ids=str)
def test_of_equal_logits_the_lowest_id_comes_first(options):
    """Logits of three values, in order of id where they are equal. torch.topk promises no such order, so this is by hand."""
    logits = torch.randint(0, 3, (200, 60), generator=torch.Generator().manual_seed(4)).float().to(DEVICE)
    uniforms = case(200)[1]
    ids, _, _ = kernels.sample_tokens(logits, uniforms, **options)
    for row, uniform in enumerate(uniforms.tolist()):
        p, order = probabilities_in_order(logits[row], SamplingParams(**options))
        assert ids[row] == order[int((p.cumsum(0) <= uniform).sum())]


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
