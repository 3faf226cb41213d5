"""The rollout engine: a completion is a function of (seed, prompt, sample index), whatever is decoded beside it."""

import dataclasses
import weakref

import pytest
import torch

import o1core.model
from o1core import Engine, SamplingParams
from o1core.errors import UserError
from o1core.rollout import lanes
from o1core.rollout.lanes import attention
from o1core.rollout.prefill import prefill
from o1core.rollout.row_bits import attention_sizes
from o1core.rollout.sampling import sample, stream_key, uniforms
from tests.machine import skip_where_a_row_is_rounded_by_its_place

GQA = {"num_attention_heads": 6, "num_key_value_heads": 2}
SHAPES = {
    "groups of 3": ("qwen2", GQA),
    "groups of 7": ("qwen2", {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 112}),
    "no groups": ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, build_checkpoint):
    folder = tmp_path_factory.mktemp("engine")
    for name, (family, overrides) in SHAPES.items():
        build_checkpoint(folder / name, family, seed=4, **overrides)
    return {name: folder / name for name in SHAPES}


@pytest.fixture(scope="module")
def loaded(folders):
    return o1core.model.load(folders["groups of 3"])


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


class Watched(Engine):
    """An engine that notes the rows of every decode step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = []

    def _step(self, decoder, rows):
        self.steps.append(len(rows))
        return super()._step(decoder, rows)


# Prompts around the first two lanes' ends, and one of one token. Their completions cross 64, 128 and 256 tokens.
LENGTHS = [63, 1, 130, 64, 5, 62, 65, 220, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_completion_has_the_same_bits_in_any_company(folders, shape, dtype):
    model, tokenizer = o1core.model.load(folders[shape], dtype=dtype)
    skip_where_a_row_is_rounded_by_its_place(model, tokenizer.size)
    prompts, params = prompts_of(LENGTHS), SamplingParams(n=3, max_new_tokens=75, seed=5)
    expected = Engine(model, tokenizer, slots=8).generate(prompts, params)
    lengths = [len(c.ids) for group in expected for c in group]
    assert max(lengths) == 75 and min(lengths) < 40  # so rows leave and come at different times
    assert any(len(p) < 64 and len(p) + len(c.ids) > 128 for p, g in zip(prompts, expected) for c in g)
    for slots in (3, 17):
        assert Engine(model, tokenizer, slots).generate(prompts, params) == expected
    assert Engine(model, tokenizer, slots=8).generate(prompts[::-1], params) == expected[::-1]
    alone = Engine(model, tokenizer, slots=1)
    assert [alone.generate([p], params)[0] for p in prompts[:4]] == expected[:4]
    fewer = Engine(model, tokenizer, slots=5).generate(prompts[4:], dataclasses.replace(params, n=1))
    assert [group[:1] for group in expected[4:]] == fewer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 7), (1, 1), (2, 3)])
def test_attention_of_a_row_has_the_same_bits_in_any_batch(kv_heads, group, dtype):
    generator = torch.Generator().manual_seed(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # a product that is alone would be split between them
    for span in (64, 512):
        q, k, v = (torch.randn(20, kv_heads, n, 16, generator=generator).to(dtype) for n in (group, span, span))
        lengths = torch.randint(1, span, (20, 1, 1, 1), generator=generator)
        bias = torch.zeros(20, 1, 1, span, dtype=dtype).masked_fill_(torch.arange(span) >= lengths, -torch.inf)
        if not attention_sizes(span, kv_heads, group, 16, dtype, q.device, 2).holds:
            torch.set_num_threads(threads)
            pytest.skip("products of attention on this machine round a row by its place in the batch")
        whole = attention(q, k, v, bias)
        exact = (q.double() @ k.double().mT / 4 + bias).softmax(-1) @ v.double()
        torch.testing.assert_close(whole.double(), exact, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.03)
        for rows in (1, 2, 8):
            for i in range(0, 20 - rows, rows):
                part = slice(i, i + rows)
                assert torch.equal(attention(q[part], k[part], v[part], bias[part]), whole[part])
    torch.set_num_threads(threads)


def slow_twin(model, tokenizer, prompt: list[int], k: int, params: SamplingParams) -> tuple[list[int], list[float]]:
    """The whole prefix through the model again for every token."""
    ids, logprobs, key = [], [], stream_key(params.seed, prompt, k)
    while len(ids) < params.max_new_tokens and not (ids and ids[-1] in tokenizer.eos_ids):
        logits = model.logits(torch.tensor([prompt + ids]))[:, -1, : tokenizer.size]
        token, logprob = sample(logits, torch.from_numpy(uniforms([key], [len(ids)])), params)
        ids.append(token.item())
        logprobs.append(logprob.item())
    return ids, logprobs


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {}, {"temperature": 0.8, "top_k": 30, "top_p": 0.9}], ids=str
)
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_equal_to_recomputing_the_prefix_at_every_token(folders, shape, settings):
    model, tokenizer = o1core.model.load(folders[shape])
    prompts, params = prompts_of([1, 60, 125]), SamplingParams(n=2, max_new_tokens=12, seed=1, **settings)
    for prompt, completions in zip(prompts, Engine(model, tokenizer, slots=4).generate(prompts, params)):
        for k, completion in enumerate(completions):
            ids, logprobs = slow_twin(model, tokenizer, prompt, k, params)
            assert completion.ids == ids
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)


@torch.inference_mode()
def test_the_logprobs_are_those_of_transformers(folders):
    from transformers import AutoModelForCausalLM

    folder = folders["groups of 7"]
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    prompt = prompts_of([40])[0]
    (completion,) = Engine(*o1core.model.load(folder)).generate([prompt], SamplingParams(max_new_tokens=60, seed=2))[0]
    logits = theirs(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1, :259]
    exact = logits.double().log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
    assert completion.logprobs == pytest.approx(exact.tolist(), abs=1e-4)


def test_seeds_and_samples_differ(loaded):
    prompt = prompts_of([10])[0]
    drawn = []
    for seed in (0, 1):
        drawn += Engine(*loaded).generate([prompt], SamplingParams(n=4, max_new_tokens=20, seed=seed))[0]
    assert len({tuple(c.ids) for c in drawn}) == 8


def test_any_eos_ends_a_completion_and_belongs_to_it(loaded):
    model, tokenizer = loaded
    params = SamplingParams(n=30, max_new_tokens=400, seed=3)
    completions = Engine(model, tokenizer).generate(prompts_of([10]), params)[0]
    for c in completions:
        assert len(c.ids) == len(c.logprobs) <= 400
        assert not set(c.ids[:-1]) & set(tokenizer.eos_ids)
        assert c.finish_reason == ("stop" if c.ids[-1] in tokenizer.eos_ids else "length")
    assert {c.ids[-1] for c in completions if c.finish_reason == "stop"} == {256, 258}


def test_max_new_tokens_counts_the_end_of_text(loaded):
    prompt = prompts_of([10])[0]
    (whole,) = Engine(*loaded).generate([prompt], SamplingParams(max_new_tokens=400, seed=3))[0]
    assert whole.finish_reason == "stop"
    for limit in (1, 2, len(whole.ids) - 1, len(whole.ids)):
        (cut,) = Engine(*loaded).generate([prompt], SamplingParams(max_new_tokens=limit, seed=3))[0]
        assert cut.ids == whole.ids[:limit]
        assert cut.finish_reason == ("stop" if limit == len(whole.ids) else "length")


def test_the_context_is_never_passed(loaded):
    params = SamplingParams(n=20, max_new_tokens=100, seed=1)
    prompts = prompts_of([511, 500])
    last, longer = Engine(*loaded).generate(prompts, params)
    assert all(len(c.ids) == 1 for c in last)
    assert all(len(c.ids) <= 12 for c in longer)
    assert any(len(c.ids) == 12 and c.finish_reason == "length" for c in longer)


@pytest.mark.parametrize("length", [512, 600, 0])
def test_a_prompt_that_does_not_fit(loaded, length):
    with pytest.raises(UserError, match=f"prompt 1: {length} tokens; the model's context allows 1 to 511"):
        Engine(*loaded).generate(prompts_of([5, length]), SamplingParams())


def test_no_prompts(loaded):
    assert Engine(*loaded).generate([], SamplingParams()) == []


def test_no_slots(loaded):
    with pytest.raises(UserError, match="slots: 0; at least 1 is needed"):
        Engine(*loaded, slots=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_above_the_tokenizers_are_never_sampled(folders, temperature):
    model, tokenizer = o1core.model.load(folders["groups of 3"])
    params = SamplingParams(n=5, max_new_tokens=30, temperature=temperature)
    before = Engine(model, tokenizer).generate(prompts_of([10]), params)
    with torch.no_grad():  # as if a checkpoint had trash in the rows that pad its vocabulary
        model.embed[tokenizer.size :] = 1e3 * model.embed[:1].sign()
    after = Engine(model, tokenizer).generate(prompts_of([10]), params)
    assert after == before
    assert all(0 <= i < tokenizer.size for c in after[0] for i in c.ids)


def steps_needed(lengths: list[int], slots: int) -> list[int]:
    """Rows in each decode step where a waiting completion takes the place of a finished one at once."""
    waiting, active, rows = list(lengths), [], []
    while waiting or active:
        while waiting and len(active) < slots:
            active.append(waiting.pop(0))
        rows.append(len(active))
        active = [left - 1 for left in active if left > 1]
    return rows


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_a_finished_row_leaves_at_once_and_another_takes_its_place(loaded, slots):
    prompts, params = prompts_of([10, 3, 70]), SamplingParams(n=5, max_new_tokens=60, seed=8)
    engine = Watched(*loaded, slots=slots)
    lengths = [len(c.ids) for group in engine.generate(prompts, params) for c in group]
    assert len(set(lengths)) > 5
    assert engine.steps == steps_needed(lengths, slots)


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_the_prompt_of_k_samples_is_prefilled_once(loaded, slots, monkeypatch):
    prefilled = []
    monkeypatch.setattr(lanes, "prefill", lambda model, ids: prefilled.append(len(ids)) or prefill(model, ids))
    Engine(*loaded, slots=slots).generate(prompts_of([10, 1, 70]), SamplingParams(n=5, max_new_tokens=4))
    assert sorted(prefilled) == [0, 9, 69]  # the last token of a prompt is the first one decoded


def test_prompts_come_as_soon_as_all_their_completions_are_there(loaded):
    prompts, params = prompts_of([10, 3, 70, 5]), SamplingParams(n=3, max_new_tokens=50, seed=8)
    expected = Engine(*loaded).generate(prompts, params)
    engine = Watched(*loaded, slots=12)
    seen = {}
    for i, completions in engine.stream(prompts, params):
        assert len(engine.steps) == max(len(c.ids) for c in completions)
        seen[i] = completions
    assert [seen[i] for i in range(4)] == expected


def test_a_stream_that_was_left_does_not_disturb_the_next(loaded):
    prompts, params = prompts_of([10, 3, 70]), SamplingParams(n=3, max_new_tokens=50, seed=8)
    expected = Engine(*loaded).generate(prompts, params)
    engine = Engine(*loaded, slots=5)
    next(engine.stream(prompts, params))
    assert engine.generate(prompts, params) == expected


def test_one_engine_for_prompts_of_growing_length_and_for_changing_weights(folders):
    model, tokenizer = o1core.model.load(folders["groups of 3"])
    engine, params = Engine(model, tokenizer, slots=6), SamplingParams(n=2, max_new_tokens=40, seed=1)
    for length in (5, 200, 60):
        prompts = prompts_of([length])
        assert engine.generate(prompts, params) == Engine(model, tokenizer, slots=6).generate(prompts, params)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    assert engine.generate(prompts, params) == Engine(model, tokenizer, slots=6).generate(prompts, params)


def test_the_cache_is_given_back(loaded):
    prompts, params = prompts_of([10, 70]), SamplingParams(n=2, max_new_tokens=20, seed=8)
    engine = Engine(*loaded, slots=8)
    expected = engine.generate(prompts, params)
    assert engine._cache.slots == 4, "no more than the completions that are asked for"
    cache = weakref.ref(engine._cache)
    engine.release()
    assert cache() is None
    assert engine.generate(prompts, params) == expected
