"""The sampler's law against a brute-force twin in float64.

With uniforms on a fine grid sampling is arithmetic: each token owns an interval of [0, 1) as long as its probability, so
of G grid points it must get p G, to within the one point that an interval's ends can catch or miss.
"""

import numpy as np
import pytest
import torch

from o1core.errors import UserError
from o1core.rollout import SamplingParams
from o1core.rollout.sampling import sample, stream_key, uniforms

GRID = 10_000


def law(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """float64 probabilities [V] of one row of logits: temperature, then top_k, then top_p, by sorting everything."""
    z = logits.double()
    if params.temperature == 0:
        return torch.nn.functional.one_hot(z.argmax(), len(z)).double()
    p = (z / params.temperature).softmax(0)
    order = p.argsort(descending=True)
    if params.top_k:
        p[order[params.top_k :]] = 0
        p /= p.sum()
    before = p[order].cumsum(0) - p[order]
    p[order[before >= params.top_p]] = 0  # the token that reaches top_p is inside
    return p / p.sum()


def draw_on_grid(logits: torch.Tensor, params: SamplingParams, points: int = GRID) -> tuple[torch.Tensor, torch.Tensor]:
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return sample(logits.expand(points, -1), uniform, params)


def random_logits(vocab: int, spread: float, seed: int = 0) -> torch.Tensor:
    return spread * torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocab", [1, 512, 1300])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 5000},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"top_p": 0.9, "temperature": 5.0},  # a nucleus of more than 512 words where the vocabulary allows it
        {"top_p": 0.999999},
        {"top_p": 1e-9},
        {"top_k": 300, "top_p": 0.8, "temperature": 1.5},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_counts_on_a_grid_follow_the_law(vocab, settings):
    params = SamplingParams(**settings)
    logits = random_logits(vocab, spread=2.0)
    ids, _ = draw_on_grid(logits, params)
    expected = GRID * law(logits[0], params)
    counts = torch.bincount(ids, minlength=vocab)
    assert counts.shape == (vocab,)
    assert (counts - expected).abs().max() <= 1.01
    assert (counts[expected == 0] == 0).all()


def test_a_nucleus_larger_than_what_is_looked_at_first():
    params = SamplingParams(top_p=0.9)
    flat, peaked = random_logits(2000, 0.1), random_logits(2000, 12.0)
    assert (law(flat[0], params) > 0).sum() > 1500 and (law(peaked[0], params) > 0).sum() < 50
    uniform = ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).repeat_interleave(2)
    ids, _ = sample(torch.cat((flat, peaked)).repeat(2000, 1), uniform, params)  # both kinds of row in one batch
    for logits, got in ((flat, ids[::2]), (peaked, ids[1::2])):
        counts = torch.bincount(got, minlength=2000)
        assert (counts - 2000 * law(logits[0], params)).abs().max() <= 1.01


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_k": 700}, {"top_p": 0.999}], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_a_token_without_probability_is_never_taken(settings, seed):
    # Runs of -inf at both ends, across whole blocks and at the ends of blocks; uniforms at the ends of [0, 1).
    rng = np.random.default_rng(seed)
    logits = random_logits(2048 + 37, 3.0, seed)
    alive = torch.from_numpy(rng.choice(2048 + 37, size=rng.integers(1, 60), replace=False))
    logits = torch.full_like(logits, -torch.inf).index_copy(1, alive, logits[:, alive])
    ends = [0.0, 5e-324, 2.0**-53, 2.0**-30, 0.5, 1 - 2.0**-24, 1 - 2.0**-52, 1 - 2.0**-53]
    uniform = torch.tensor(ends + rng.random(500).tolist(), dtype=torch.float64)
    ids, logprobs = sample(logits.expand(len(uniform), -1), uniform, SamplingParams(**settings))
    assert torch.isin(ids, alive).all() and logprobs.isfinite().all()


def test_the_last_words_of_blocks_are_reached():
    # All mass on four words, at the seams between blocks: each gets its quarter of the grid.
    logits = torch.full((1, 1500), -torch.inf)
    logits[0, [511, 512, 1023, 1499]] = 0.0
    ids, _ = draw_on_grid(logits, SamplingParams(), 4000)
    assert torch.bincount(ids)[[511, 512, 1023, 1499]].tolist() == [1000] * 4


def test_rows_are_independent_of_each_other():
    logits = torch.randn(50, 3000, generator=torch.Generator().manual_seed(3)) * 3
    uniform = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for params in (SamplingParams(), SamplingParams(temperature=0.6, top_p=0.9), SamplingParams(top_k=20)):
        ids, logprobs = sample(logits, uniform, params)
        for i in range(50):
            one, logprob = sample(logits[i : i + 1], uniform[i : i + 1], params)
            assert one.item() == ids[i] and logprob.item() == logprobs[i]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.0}, {"temperature": 0.5, "top_k": 9, "top_p": 0.7}], ids=str
)
def test_the_logprob_is_the_models_own(dtype, settings):
    logits = (4 * torch.randn(30, 5000, generator=torch.Generator().manual_seed(5))).to(dtype)
    uniform = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    ids, logprobs = sample(logits, uniform, SamplingParams(**settings))
    exact = logits.double().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    assert ids.dtype == torch.int64 and logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=2e-6)


def test_greedy_takes_the_largest_whatever_the_uniform():
    logits = torch.randn(40, 2000, generator=torch.Generator().manual_seed(7))
    ids, _ = sample(logits, torch.rand(40, dtype=torch.float64), SamplingParams(temperature=0))
    assert torch.equal(ids, logits.argmax(-1))


def test_logits_of_any_size_do_not_overflow():
    logits = random_logits(900, 2.0) + 3e4
    ids, logprobs = draw_on_grid(logits, SamplingParams(temperature=0.01), 100)
    assert logprobs.isfinite().all() and (ids == logits.argmax()).float().mean() > 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_p": 0.5}], ids=str)
def test_logits_that_are_not_finite_are_told(value, settings):
    logits = torch.zeros(3, 600)
    logits[1, 5] = value
    with pytest.raises(UserError, match="logits are not finite"):
        sample(logits, torch.full((3,), 0.5, dtype=torch.float64), SamplingParams(**settings))


def splitmix64(key: int, step: int) -> float:
    """Steele, Lea and Flood 2014, in Python's own integers."""
    mask = (1 << 64) - 1
    z = (key + step * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / 2**53


def test_uniforms_are_splitmix64():
    keys = [0, 1, 2**64 - 1, stream_key(3, [1, 2], 4)]
    steps = [0, 1, 10**6, 2**31]
    assert uniforms(keys, steps).tolist() == [splitmix64(k, s) for k, s in zip(keys, steps)]
    # The first output of the published generator seeded with 0 is that of step 1 here.
    assert uniforms([0], [1])[0] == (0xE220A8397B1DCDAF >> 11) / 2**53


def test_uniforms_are_uniform_along_steps_and_across_samples():
    steps = list(range(5000))
    along = uniforms([stream_key(0, [5], 0)] * 5000, steps)
    across = uniforms([stream_key(0, [5], k) for k in range(5000)], [3] * 5000)
    for u in (along, across):
        assert u.min() >= 0 and u.max() < 1
        counts = np.histogram(u, bins=20, range=(0, 1))[0]
        assert ((counts - 250) ** 2 / 250).sum() < 43.8  # chi-square, 19 degrees of freedom, 0.1 %
    assert abs(np.corrcoef(along[:-1], along[1:])[0, 1]) < 0.05


def test_the_stream_depends_on_seed_prompt_and_sample():
    keys = {stream_key(seed, prompt, k) for seed in (0, 1) for prompt in ([1, 23], [12, 3], [1]) for k in (0, 1, 11)}
    assert len(keys) == 18
    assert stream_key(0, [1, 23], 1) == stream_key(0, [1, 23], 1)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"n": 0}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_that_make_no_sense(settings, field):
    with pytest.raises(UserError, match=f"^{field}: "):
        SamplingParams(**settings)
