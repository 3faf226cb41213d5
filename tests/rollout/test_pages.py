"""Pages and lanes sample the same completions, and a row with pages has the same bits in any company and after a restart."""

import weakref

import pytest
import torch

import o1core.model
from o1core import Engine, SamplingParams
from o1core.cli import main
from o1core.errors import UserError
from o1core.rollout import engine as engine_module
from o1core.rollout.pages import PageDecoder
from tests.campaigns.bits import WIDTHS, Words, real_widths
from tests.machine import skip_where_a_row_is_rounded_by_its_place

# Prompts around the ends of pages, and one of one token. Completions cross 64 and 128 tokens.
LENGTHS = [60, 130, 63, 1]
PARAMS = SamplingParams(n=2, max_new_tokens=66, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, build_checkpoint):
    folder = tmp_path_factory.mktemp("pages")
    build_checkpoint(folder, "qwen2", seed=4, num_attention_heads=6, num_key_value_heads=2)
    return folder


@pytest.fixture(scope="module")
def exact(folder):
    return o1core.model.load(folder, dtype=torch.float64)


@pytest.fixture
def use(monkeypatch):
    """use("lanes" or "pages"): what an engine that is made next has."""
    return lambda name: monkeypatch.setenv("O1CORE_CACHE", name)


@pytest.fixture(params=[0, 1], ids=["host in step", "host one step ahead"])
def lookahead(request, monkeypatch):
    """How many steps the host looks ahead, as it does on a GPU."""
    made = PageDecoder.__init__

    def make(self, *arguments):
        made(self, *arguments)
        self.lookahead = request.param

    monkeypatch.setattr(PageDecoder, "__init__", make)
    return request.param


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="module")
def from_lanes(exact):
    assert Engine(*exact).kind == "lanes"
    return Engine(*exact).generate(prompts_of(LENGTHS), PARAMS)


def ids_of(groups):
    return [[c.ids for c in group] for group in groups]


@pytest.mark.parametrize("slots, pages", [(1, None), (7, None), (64, None), (64, 5), (4, 4)])
def test_pages_and_lanes_sample_the_same_tokens(exact, from_lanes, use, lookahead, slots, pages):
    use("pages")
    engine = Engine(*exact, slots=slots, pages=pages)
    found = engine.generate(prompts_of(LENGTHS), PARAMS)
    assert ids_of(found) == ids_of(from_lanes)
    assert [[c.finish_reason for c in group] for group in found] == [[c.finish_reason for c in g] for g in from_lanes]
    assert (engine.restarts > 0) == (pages is not None)
    assert set(engine._cache.pool.owners) == {0}


def test_the_order_of_arrival_changes_nothing(exact, from_lanes, use, lookahead):
    use("pages")
    order = torch.randperm(4, generator=torch.Generator().manual_seed(3)).tolist()
    found = dict(Engine(*exact, slots=7, pages=6).stream(prompts_of(LENGTHS), PARAMS, order))
    assert ids_of([found[i] for i in range(4)]) == ids_of(from_lanes)


class Counted(PageDecoder):
    """Notes of each step how many tokens it samples, and how many it computes of what is known."""

    steps: list[tuple[int, int]]

    def _send(self, rows, behind):
        self.steps.append((len(rows), sum(len(part) for _, part in behind)))
        begun = [len(prompt.tokens) for prompt in self.cache.prompts.values()]
        assert sum(begun) <= self.batches.base + 3 * max(begun, default=0), "a batch, whole prompts, and the last one"
        return super()._send(rows, behind)


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.setenv("O1CORE_CACHE", "pages")
    monkeypatch.setattr(Counted, "steps", [], raising=False)
    monkeypatch.setattr(engine_module, "PageDecoder", Counted)
    return Counted.steps


def test_a_row_that_starts_again_samples_no_token_twice(exact, from_lanes, steps):
    engine = Engine(*exact, slots=4, pages=4)
    assert ids_of(engine.generate(prompts_of(LENGTHS), PARAMS)) == ids_of(from_lanes)
    assert engine.restarts > 1
    assert sum(sampled for sampled, _ in steps) == sum(len(c.ids) for group in from_lanes for c in group)


@pytest.mark.parametrize("samples", [1, 4])
def test_prompts_are_computed_once_in_places_that_decoding_leaves_free(exact, steps, samples, monkeypatch):
    """Eleven prompts of 40 tokens, six rows at once: a batch has 64 places, so the first step computes 64 known tokens, and
    the samples of the prompt that it ended are decoded beside the next ones. There are pages enough to begin ahead."""
    monkeypatch.setattr(engine_module, "most_pages", lambda slots, longest: 60)
    prompts = prompts_of([41] * 11)
    Engine(*exact, slots=6).generate(prompts, SamplingParams(n=samples, max_new_tokens=30, seed=5))
    assert steps[0] == (0, 64) and steps[1][0] == samples
    assert sum(known for _, known in steps) == 11 * 40
    assert max(sampled + known for sampled, known in steps) <= 128


def test_a_step_with_all_slots_taken_has_no_batch_more(exact, steps):
    """Sixty-four rows fill the batch, so what was begun ahead waits; while a slot waits there is a second batch."""
    Engine(*exact, slots=64, pages=400).generate(prompts_of([3] * 90), SamplingParams(max_new_tokens=5, seed=5))
    assert all(known == 0 for sampled, known in steps if sampled == 64)
    assert sum(known for _, known in steps) == 90 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_have_the_same_bits_alone_and_in_any_batch(folder, use, dtype):
    use("pages")
    model, tokenizer = o1core.model.load(folder, dtype=dtype)
    skip_where_a_row_is_rounded_by_its_place(model, tokenizer.size)
    prompts = prompts_of(LENGTHS)
    params = SamplingParams(n=2, max_new_tokens=40, seed=5)
    expected = Engine(model, tokenizer, slots=8).generate(prompts, params)
    assert Engine(model, tokenizer, slots=17, pages=5).generate(prompts[::-1], params) == expected[::-1]
    assert Engine(model, tokenizer, slots=1).generate(prompts[:1], params) == expected[:1]


def test_lanes_and_pages_agree_at_real_widths(use):
    """One layer of 896 x 4864 with 151,936 tokens."""
    model, words = real_widths(torch.float32, layers=1), Words(WIDTHS["vocab_size"])
    prompts, params = [words.prompt(str(i)) for i in range(2)], SamplingParams(max_new_tokens=3)
    found = {}
    for kind in ("lanes", "pages"):
        use(kind)
        found[kind] = Engine(model, words, slots=8).generate(prompts, params)
    assert ids_of(found["lanes"]) == ids_of(found["pages"])


def test_an_unknown_cache_is_refused(exact, use):
    use("blocks")
    with pytest.raises(UserError, match=r"^O1CORE_CACHE: 'blocks' is no KV cache; use lanes or pages, or unset it$"):
        Engine(*exact)


def test_pages_that_cannot_hold_one_row_are_refused(exact, use):
    use("pages")
    longest = 220 + PARAMS.max_new_tokens
    with pytest.raises(UserError, match=f"^KV cache: 4 pages of 64 tokens do not hold one completion of {longest} "):
        Engine(*exact, pages=4).generate(prompts_of([5, 220]), PARAMS)


def test_the_cache_is_given_back_and_taken_again(exact, use):
    use("pages")
    engine, prompts = Engine(*exact, slots=4), prompts_of([10, 70])
    expected = engine.generate(prompts, PARAMS)
    cache = weakref.ref(engine._cache)
    engine.release()
    assert cache() is None
    assert engine.generate(prompts, PARAMS) == expected


def test_the_command_refuses_an_unknown_cache_in_one_line(use, capsys, folder):
    use("blocks")
    assert main(["plan", "--model", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "O1CORE_CACHE" in error and error.count("\n") == 1
