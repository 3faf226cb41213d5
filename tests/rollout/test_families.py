"""Rollouts of mixtures of experts and of hybrids: a completion's bits do not depend on its company, on pages or on restarts."""

import pytest
import torch

import o1core.model
from o1core import Engine, SamplingParams
from o1core.model import Transformer, initialise
from o1core.rollout import engine
from o1core.rollout.row_bits import expert_sizes, product_sizes
from tests.machine import skip_where_a_row_is_rounded_by_its_place
from tests.model.test_families import SHAPES
from tests.rollout.graphed import Graphed, captured
from tests.rollout.test_bits import another_order_for_every_shape, library, prompts_of  # noqa: F401 - a fixture

LENGTHS = [1, 3, 63, 64, 65, 129]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, build_checkpoint):
    folder = tmp_path_factory.mktemp("hybrid")
    family, overrides = SHAPES["hybrid with experts"]
    build_checkpoint(folder, family, seed=4, **overrides)
    return o1core.model.load(folder, torch.float32)


@pytest.fixture(scope="module")
def expected(loaded):
    """Completions of 8 slots, with lanes."""
    return Engine(*loaded, slots=8).generate(prompts_of(LENGTHS), PARAMS)


PARAMS = SamplingParams(n=3, max_new_tokens=20, seed=5)


@pytest.mark.parametrize("slots", [3, 17])
def test_a_completion_has_the_same_bits_in_any_company(loaded, expected, slots):
    skip_where_a_row_is_rounded_by_its_place(*loaded[:1], loaded[1].size)
    assert expert_sizes(loaded[0]).holds
    assert Engine(*loaded, slots=slots).generate(prompts_of(LENGTHS)[::-1], PARAMS) == expected[::-1]
    assert len({tuple(c.ids) for group in expected for c in group}) == 18


def test_pages_and_rows_that_start_again_sample_the_same_text(loaded, expected, monkeypatch):
    monkeypatch.setenv("O1CORE_CACHE", "pages")
    engine = Engine(*loaded, slots=8, pages=7)
    found = engine.generate(prompts_of(LENGTHS), PARAMS)
    assert engine.restarts > 0
    assert [[c.ids for c in group] for group in found] == [[c.ids for c in group] for group in expected]
    roomy = Engine(*loaded, slots=8)
    assert roomy.generate(prompts_of(LENGTHS), PARAMS) == found and roomy.restarts == 0


def test_steps_that_are_captured_move_each_state_once(loaded, expected, monkeypatch):
    monkeypatch.setenv("O1CORE_CACHE", "pages")
    monkeypatch.setattr(engine, "PageDecoder", Graphed)
    captured.clear()
    found = Engine(*loaded, slots=8).generate(prompts_of(LENGTHS), PARAMS)
    assert captured and [[c.ids for c in group] for group in found] == [[c.ids for c in group] for group in expected]


@torch.inference_mode()
def test_the_sampler_and_the_trainer_agree_on_logprobs(loaded):
    """Decoding a token at a time from the prompt's state, against the whole sequence in chunks; of a new model, whose rounding
    is that of a trained one and not a hundred times it."""
    tokenizer, model = loaded[1], Transformer(loaded[0].config)
    initialise(model, 0)
    gaps = []
    for prompt, group in zip(prompts_of(LENGTHS), Engine(model, tokenizer).generate(prompts_of(LENGTHS), PARAMS)):
        for c in group:
            logits = model.logits(torch.tensor([prompt + c.ids]))[0, len(prompt) - 1 : -1, : tokenizer.size]
            exact = logits.double().log_softmax(-1).gather(1, torch.tensor(c.ids)[:, None])[:, 0]
            gaps.append((torch.tensor(c.logprobs) - exact).abs())
    gap = torch.cat(gaps)
    print(f"log-prob gap between sampler and trainer: mean {gap.mean():.1e}, most {gap.max():.1e}")
    assert gap.mean() < 1e-6


def test_a_library_that_rounds_otherwise_for_every_number_of_rows(loaded, library):  # noqa: F811
    """Experts get other numbers of rows in other company, and still multiply batches of one size."""
    library(another_order_for_every_shape)
    assert expert_sizes(loaded[0]).holds and expert_sizes(loaded[0]).cut(5) == [64]
    prompts, params = prompts_of([63, 1, 5, 62]), SamplingParams(n=5, max_new_tokens=8, seed=5)
    first = Engine(*loaded, slots=8).generate(prompts, params)
    assert Engine(*loaded, slots=3).generate(prompts[::-1], params) == first[::-1]
    product_sizes.cache_clear()
