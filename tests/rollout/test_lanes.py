"""The last lane ends where the longest row may end, unless that would change a bit."""

import pytest
import torch

from o1core import Engine, SamplingParams
from o1core.model import ModelConfig, Transformer, initialise
from o1core.rollout import cache_bytes, lanes
from o1core.rollout.lanes import LaneCache, cut_keeps_bits
from o1core.rollout.row import Row
from tests.campaigns.bits import Words

CONFIG = ModelConfig("Qwen2ForCausalLM", 75, 64, 96, 2, 6, 2, 16, 1e-6, 1e4, 512, True, torch.float32)


def lane_bytes(cache: LaneCache) -> int:
    return sum(lane.keys.nbytes + lane.values.nbytes for lane in cache.lanes.values())


@pytest.mark.parametrize("same, last", [(True, 192), (False, 256)])
def test_the_last_lane_ends_at_the_longest_length(monkeypatch, same, last):
    monkeypatch.setattr(lanes, "cut_keeps_bits", lambda *_: same)
    cache = LaneCache(CONFIG, 3, 130, torch.float32, torch.device("cpu"))
    prompt = torch.zeros(2, 2, 129, 16)
    for length in (10, 100, 129):
        cache.add(Row(0, 0, 0, length, 0, 1), prompt[:, :, :length], prompt[:, :, :length])
    assert [lane.span for lane in cache.lanes.values()] == [64, 128, last]
    assert not same or lane_bytes(cache) == 3 * cache_bytes(CONFIG, 130, torch.float32)


def test_a_slot_of_a_long_reasoning_model_takes_a_fifth_less():
    whole = 2 * 16384 - 64  # the sum of the spans 64, 128, ... 16,384
    assert (
        cache_bytes(CONFIG, 9216, torch.float32) / cache_bytes(CONFIG, 16384, torch.float32) == (16320 + 9216) / whole
    )
    assert (16320 + 9216) / whole == pytest.approx(0.78, abs=0.005)


def test_a_library_that_adds_up_by_the_span_is_noticed(monkeypatch):
    device, shape = torch.device("cpu"), (2, 3, 16, torch.float32)
    assert cut_keeps_bits.__wrapped__(1088, 2048, *shape, device, 1)
    matmul = torch.matmul

    def by_span(a, b):
        half = a.shape[-1] // 2
        return matmul(a[..., :half], b[..., :half, :]) + matmul(a[..., half:], b[..., half:, :])

    monkeypatch.setattr(torch, "matmul", by_span)
    assert not cut_keeps_bits.__wrapped__(1088, 2048, *shape, device, 1)


def test_a_row_has_the_same_bits_in_a_lane_that_is_cut(monkeypatch):
    """300 to 330 tokens, in a last lane of 384 where the machine allows it, and in one of 512."""
    model = Transformer(CONFIG)
    initialise(model, seed=0, std=0.2)
    prompts, params = [[i % 70 + 1 for i in range(300)], [3, 4]], SamplingParams(n=2, max_new_tokens=30, seed=1)
    found = Engine(model, Words(75)).generate(prompts, params)
    monkeypatch.setattr(lanes, "cut_keeps_bits", lambda *_: False)
    assert Engine(model, Words(75)).generate(prompts, params) == found
