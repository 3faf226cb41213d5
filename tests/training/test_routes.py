"""The experts that sampled a token: kept by every cache, compared and replayed by an update."""

import dataclasses

import pytest
import torch

import o1core.model
from o1core import Engine, SamplingParams
from o1core.errors import UserError
from o1core.model import Transformer, initialise, keep_choice
from o1core.model.experts import Experts
from o1core.recipe import Recipe
from o1core.training import Updater, reference_logprobs, update, with_reference
from o1core.training.update import pack
from o1core.types import Example
from tests.model.test_families import SHAPES

VOCAB, SETTINGS = 259, {"ratio": "token", "lr": 1e-3, "warmup": 0.0, "batch": 4, "grad_clip": 1e9}
PROMPTS = [list(range(40, 40 + n)) for n in (1, 9, 66)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, build_checkpoint):
    folder = tmp_path_factory.mktemp("routes")
    family, overrides = SHAPES["hybrid with experts"]
    build_checkpoint(folder, family, seed=4, **overrides)
    model, tokenizer = o1core.model.load(folder, torch.float64)
    initialise(model, 0, std=0.2)
    return model, tokenizer


@pytest.fixture(scope="module")
def sampled(loaded):
    return Engine(*loaded, slots=8).generate(PROMPTS, SamplingParams(n=2, max_new_tokens=9, seed=5))


def examples_of(sampled) -> list[Example]:
    found = []
    for prompt, group in zip(PROMPTS, sampled):
        for k, c in enumerate(group):
            ids, logprobs = torch.tensor(c.ids, dtype=torch.int32), torch.tensor(c.logprobs)
            tokens = torch.tensor(prompt, dtype=torch.int32)
            found.append(Example(str(len(prompt)), tokens, ids, logprobs, (-1.0) ** k, False, routes=c.routes))
    return found


def fresh(loaded) -> Transformer:
    model = Transformer(loaded[0].config).double()
    model.load_state_dict(loaded[0].state_dict())
    return model


def updater_of(model: Transformer, **settings) -> Updater:
    recipe = Recipe.of(**SETTINGS | settings)
    return Updater(model, VOCAB, recipe.objective, recipe.optimiser, recipe.execution)


def own_choices(model: Transformer, ids: list[int]) -> torch.Tensor:
    """[T, L, chosen] of a sequence that goes through the model alone."""
    found = []

    def note(layer, chosen):
        found.append(chosen)
        return chosen

    model(torch.tensor([ids]), torch.arange(len(ids)), o1core.model.causal_attention, choose=note)
    return torch.stack(found, 1)


@pytest.mark.parametrize("cache, pages", [("lanes", None), ("pages", None), ("pages", 5)])
def test_a_completion_keeps_the_experts_of_the_token_before_each(loaded, sampled, monkeypatch, cache, pages):
    monkeypatch.setenv("O1CORE_CACHE", cache)
    engine = Engine(*loaded, slots=4, pages=pages)
    found = engine.generate(PROMPTS, SamplingParams(n=2, max_new_tokens=9, seed=5))
    for prompt, group in zip(PROMPTS, found):
        for c in group:
            assert c.routes.dtype == torch.uint8 and len(c.routes) == len(c.ids)
            expected = own_choices(loaded[0], (prompt + c.ids)[:-1])[len(prompt) - 1 :]
            assert torch.equal(c.routes.long().sort().values, expected.sort().values)


def test_rows_that_start_again_keep_theirs(tmp_path_factory, build_checkpoint, monkeypatch):
    """Of a mixture without delta-rule layers, whose rows go on where they were."""
    folder = tmp_path_factory.mktemp("mixture")
    family, overrides = SHAPES["experts"]
    build_checkpoint(folder, family, seed=4, **overrides)
    loaded, params = o1core.model.load(folder, torch.float64), SamplingParams(n=2, max_new_tokens=66, seed=5)
    expected = Engine(*loaded, slots=8).generate(PROMPTS, params)
    monkeypatch.setenv("O1CORE_CACHE", "pages")
    engine = Engine(*loaded, slots=6, pages=5)
    found = engine.generate(PROMPTS, params)
    assert engine.restarts > 0
    for mine, theirs in zip(found, expected):
        assert [c.ids for c in mine] == [c.ids for c in theirs]
        assert all(torch.equal(a.routes, b.routes) for a, b in zip(mine, theirs))


def test_every_place_of_a_packed_completion_has_its_experts(loaded, sampled):
    """One completion begins with two tokens that were not sampled, and one of a single token has nothing to compare."""
    examples = examples_of(sampled)
    examples[2] = dataclasses.replace(examples[2], routes=examples[2].routes[2:])
    examples[5] = dataclasses.replace(
        examples[5], ids=examples[5].ids[:1], logprobs=examples[5].logprobs[:1], routes=examples[5].routes[:1]
    )
    batch = pack(examples, torch.device("cpu"))
    routes = batch.routes(examples, loaded[0], False)
    for e, places in zip(examples, batch.places.split(batch.cu_seqlens.diff().tolist())):
        unknown = max(1, len(e.ids) - len(e.routes))  # a prompt's last token is that of all its completions
        assert (routes.sampled[places[:unknown]] == -1).all()
        assert torch.equal(routes.sampled[places[unknown:]], e.routes[len(e.routes) - len(e.ids) + unknown :].short())
    roots = torch.cat([torch.arange(part.start, part.stop) for part in batch.trees.of_roots[:3]])
    assert (routes.sampled[roots] == -1).all()


def test_equal_weights_choose_alike_and_replay_changes_no_bit(loaded, sampled):
    examples = examples_of(sampled)
    steps = {}
    for replay in (False, True):
        model = fresh(loaded)
        reference = reference_logprobs(model, VOCAB, examples, 200, replay)
        updater = updater_of(model, replay_router=replay)
        steps[replay] = updater.step(with_reference(examples, reference), 1e-3), list(model.parameters())
    assert steps[False][0]["routed_alike"] == 1.0
    assert steps[False][0] == steps[True][0]
    assert all(torch.equal(a, b) for a, b in zip(steps[False][1], steps[True][1]))


def test_what_differs_is_counted_and_replayed(loaded, sampled, monkeypatch):
    """Two tokens of one completion get other experts in one layer. The gradient under replay is autograd's of a model in which
    those experts are put by hand."""
    examples = examples_of(sampled)
    changed = examples[3].routes.clone()
    changed[2:4, 1] = (changed[2:4, 1] + 1) % 7
    examples[3] = dataclasses.replace(examples[3], routes=changed)
    compared = sum(len(e.ids) - 1 for e in examples) * len(loaded[0].config.experts.layers)
    assert len(examples[3].ids) > 5

    def gradients(replay: bool):
        model = fresh(loaded)
        updater = updater_of(model, replay_router=replay, checkpointing=True)
        metrics = updater.accumulate(with_reference(examples, reference))
        return metrics, [master.grad for master in updater.masters]

    reference = reference_logprobs(loaded[0], VOCAB, examples, 200)

    plain, mine = gradients(False), gradients(True)
    assert plain[0]["routed_alike"] == pytest.approx(1 - 2 / compared)
    assert mine[0]["routed_alike"] < plain[0]["routed_alike"], "other experts change what later layers see"
    assert any(not torch.equal(a, b) for a, b in zip(plain[1], mine[1]))

    packed, own = [], Experts.route

    def noted(chosen, device):
        packed[:] = [(chosen, pack(chosen, device))]
        return packed[0][1]

    def by_hand(self, flat, choose, layer):
        chosen = own(self, flat, keep_choice, layer)[1].clone()
        ((inside, batch),) = packed
        for e, places in zip(inside, batch.places.split(batch.cu_seqlens.diff().tolist())):
            chosen[places[1:]] = e.routes[1:, loaded[0].config.experts.layers.index(layer)].long()
        scores = self.router(flat).softmax(-1).gather(-1, chosen)
        return scores / scores.sum(-1, keepdim=True), chosen

    monkeypatch.setattr(update, "pack", noted)
    monkeypatch.setattr(Experts, "route", by_hand)
    expected = gradients(False)[1]
    for found, exact in zip(mine[1], expected):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9)
    assert max(exact.abs().max() for exact in expected) > 1e-2


def test_replay_without_experts_to_replay_is_refused(loaded, sampled, tmp_path, build_checkpoint):
    examples = [dataclasses.replace(e, routes=None) for e in examples_of(sampled)]
    with pytest.raises(UserError, match=r"^--replay-router: the rollouts of problem .* do not say which experts"):
        reference_logprobs(fresh(loaded), VOCAB, examples, 200, replay=True)
    assert "routed_alike" not in updater_of(fresh(loaded)).accumulate(
        with_reference(examples, [torch.zeros(len(e.ids)) for e in examples])
    )
    build_checkpoint(tmp_path, "qwen2", seed=1)
    with pytest.raises(UserError, match=r"^--replay-router: this model has no experts$"):
        updater_of(o1core.model.load(tmp_path, torch.float32)[0], replay_router=True)
