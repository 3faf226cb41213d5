"""Our runtime against transformers on the three families, at small random shapes."""

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

import o1core.model
from o1core import Engine, SamplingParams
from o1core.model import read_config

FAMILIES = ("qwen2", "qwen3", "llama")
CORNERS = {
    "qwen2 tied": ("qwen2", {}),
    "qwen2 untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2, head size told and not hidden / heads": ("qwen2", {"head_dim": 24}),
    "qwen2, one kv head": ("qwen2", {"num_key_value_heads": 1}),
    "qwen2, every head its own kv": ("qwen2", {"num_key_value_heads": 4}),
    "qwen3 tied": ("qwen3", {"head_dim": 32}),
    "qwen3 untied, one kv head": ("qwen3", {"head_dim": 24, "num_key_value_heads": 1, "tie_word_embeddings": False}),
    "llama tied, odd number of heads": (
        "llama",
        {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3},
    ),
    "llama untied": ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
}


def drawn(family: str, seed: int) -> tuple[str, dict]:
    rng = random.Random(f"{family} {seed}")
    kv = rng.choice([1, 2, 3])
    heads, head_dim = kv * rng.choice([1, 2, 4]), 2 * rng.randint(4, 20)
    theta = rng.choice([1e4, 1e5, 1e6])
    return family, {
        "num_key_value_heads": kv,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "hidden_size": rng.choice([heads * head_dim, 40, 72]),
        "intermediate_size": rng.randint(20, 150),
        "num_hidden_layers": rng.randint(1, 4),
        "vocab_size": rng.randint(259, 400),
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": rng.random() < 0.5,
    }


CASES = CORNERS | {f"{family} drawn {seed}": drawn(family, seed) for family in FAMILIES for seed in range(4)}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory, build_checkpoint):
    """(our model, our tokenizer, transformers' model) of one checkpoint."""
    family, overrides = CASES[request.param]
    folder = tmp_path_factory.mktemp("parity")
    theirs = build_checkpoint(folder, family, seed=len(request.param), **overrides)
    return *o1core.model.load(folder, dtype=torch.float32), theirs


@torch.inference_mode()
def test_logits(pair):
    ours, _, theirs = pair
    ids = torch.randint(0, 259, (2, 150), generator=torch.Generator().manual_seed(1))
    logits = ours.logits(ids)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, theirs(ids).logits, rtol=0, atol=1e-4)


def test_greedy_text(pair):
    ours, tokenizer, theirs = pair
    engine = Engine(ours, tokenizer, slots=2)
    engine.vocab = ours.config.vocab_size  # transformers does not know that the tokenizer is smaller
    prompts = [tokenizer.prompt("What is 3 + 4?"), tokenizer.prompt("x"), [5]]
    completions = engine.generate(prompts, SamplingParams(temperature=0, max_new_tokens=40))
    for prompt, (completion,) in zip(prompts, completions):
        ids = torch.tensor([prompt])
        answer = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=[258, 256],
            pad_token_id=256,
        )
        assert completion.ids == answer[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_bfloat16_is_as_close_to_float32_as_theirs(tmp_path, build_checkpoint, family):
    truth = build_checkpoint(tmp_path, family)(ids := torch.arange(200).view(2, 100)).logits
    ours, _ = o1core.model.load(tmp_path, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    our_error, their_error = (ours.logits(ids) - truth).abs(), (theirs(ids).logits.float() - truth).abs()
    assert 0 < our_error.mean() < 1.1 * their_error.mean()


@torch.inference_mode()
def test_a_row_does_not_see_the_padding_on_its_right(tmp_path, build_checkpoint):
    build_checkpoint(tmp_path)
    model, _ = o1core.model.load(tmp_path)
    ids = torch.randint(0, 259, (1, 30))
    padded = torch.cat((ids, torch.randint(0, 259, (1, 20))), dim=1)
    torch.testing.assert_close(model.logits(padded)[:, :30], model.logits(ids), rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradient(tmp_path, build_checkpoint):
    build_checkpoint(tmp_path, "qwen3")
    model, _ = o1core.model.load(tmp_path)
    ids = torch.randint(0, 259, (2, 20))
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        model.hidden(ids, recompute=recompute).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


@pytest.mark.parametrize("theta", [1e4, 1e6])
@torch.inference_mode()
def test_the_spelling_of_transformers_4(tmp_path, build_checkpoint, edit_json, theta):
    rope = {"rope_type": "default", "rope_theta": theta}
    theirs = build_checkpoint(tmp_path, rope_parameters=rope)
    new = json.loads((tmp_path / "config.json").read_text())
    assert new["rope_parameters"] == rope and new["dtype"] == "float32"  # transformers 5 spells it so
    read_new = read_config(tmp_path)
    edit_json(
        tmp_path / "config.json",
        rope_parameters=None,
        dtype=None,
        rope_theta=theta,
        rope_scaling=None,
        torch_dtype="float32",
    )
    assert read_config(tmp_path) == read_new
    ids = torch.arange(200)[None]
    model, _ = o1core.model.load(tmp_path)
    torch.testing.assert_close(model.logits(ids), theirs(ids).logits, rtol=0, atol=1e-4)
