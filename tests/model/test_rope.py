"""Stretched rotary embeddings and layers without any: frequencies to the bit and logits as transformers has them."""

import json
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import o1core.model
from o1core import Engine, SamplingParams
from o1core.model import read_config, save_checkpoint
from o1core.model.rope import rotary

KINDS = ("linear", "llama3", "yarn")


def drawn_rope(kind: str, seed: int) -> dict:
    """rope_parameters of a kind, as published ones and wilder; a field that may be left out is, half the time."""
    rng = random.Random(f"{kind} {seed}")
    original = rng.choice([16, 64, 200, 8192, 32768])
    rope = {
        "rope_type": kind,
        "rope_theta": rng.choice([1e4, 5e5, 1e6]),
        "factor": rng.choice([1.0, 2.5, 4.0, 8, 32.0]),
    }
    if kind == "llama3":
        low = rng.choice([0.5, 1.0, 2])
        rope |= {"low_freq_factor": low, "high_freq_factor": low + rng.choice([0.5, 3.0, 7])}
    optional = {
        "attention_factor": rng.choice([0.7, 1.0, 1.4]),
        "beta_fast": rng.choice([16, 32.0, 64.5]),
        "beta_slow": rng.choice([0.5, 1.0, 2]),
        "truncate": rng.random() < 0.5,
        "mscale": 0.7,
        "mscale_all_dim": rng.choice([0.5, 1.0]),
    }
    if kind == "yarn":
        rope |= {field: value for field, value in optional.items() if rng.random() < 0.5}
    if kind != "linear":
        rope |= {"original_max_position_embeddings": original}
    return rope


CASES = {f"{kind} {seed}": drawn_rope(kind, seed) for kind in KINDS for seed in range(40)}


def write(folder, family: str, rope: dict, **more) -> None:
    """A config.json as transformers writes it."""
    config = AutoConfig.for_model(
        family, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope, **more
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


@pytest.mark.parametrize("case", CASES)
def test_cos_and_sin_are_transformers_to_the_bit(tmp_path, case):
    rng = random.Random(case)
    size = rng.choice([8, 18, 64, 128])
    write(tmp_path, "llama", CASES[case], head_dim=size, max_position_embeddings=65536, tie_word_embeddings=True)
    ours = read_config(tmp_path)
    assert ours.scaling is not None
    positions = torch.cat(
        (torch.arange(300), torch.randint(0, 65536, (300,), generator=torch.Generator().manual_seed(1)))
    )
    cos, sin = (t.squeeze(1) for t in rotary(positions, ours.head_dim, ours.rope_theta, ours.scaling))
    embedding = LlamaRotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
    their_cos, their_sin = (t[0] for t in embedding(torch.zeros(1), positions[None]))
    assert torch.equal(torch.cat((cos, cos), -1), their_cos) and torch.equal(torch.cat((sin, sin), -1), their_sin)


IDS = {
    "pad_token_id": 256,
    "bos_token_id": 256,
    "eos_token_id": 258,
}  # the defaults of SmolLM3 are beyond a small vocabulary
MODELS = {
    "qwen2, yarn": ("qwen2", {"rope_parameters": drawn_rope("yarn", 100) | {"original_max_position_embeddings": 64}}),
    "qwen3, yarn with its attention factor stated": (
        "qwen3",
        {"rope_parameters": drawn_rope("yarn", 101) | {"attention_factor": 1.3}, "head_dim": 24},
    ),
    "llama, llama3": (
        "llama",
        {"rope_parameters": drawn_rope("llama3", 100) | {"original_max_position_embeddings": 64}},
    ),
    "llama, linear": ("llama", {"rope_parameters": drawn_rope("linear", 100)}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, **IDS}),
    "smollm3, its layers stated": ("smollm3", {"num_hidden_layers": 3, "no_rope_layers": [0, 1, 0], **IDS}),
    "smollm3, untied, yarn": (
        "smollm3",
        {"num_hidden_layers": 4, "tie_word_embeddings": False, "rope_parameters": drawn_rope("yarn", 102), **IDS},
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory, build_checkpoint):
    """(folder, transformers' model) of one checkpoint."""
    family, overrides = MODELS[request.param]
    folder = tmp_path_factory.mktemp("rope") / "model"
    return folder, build_checkpoint(folder, family, **overrides)


@torch.inference_mode()
def test_logits_and_greedy_text(pair):
    folder, theirs = pair
    model, tokenizer = o1core.model.load(folder)
    ids = torch.randint(0, 259, (2, 150), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.logits(ids), theirs(ids).logits, rtol=0, atol=1e-5)
    engine = Engine(model, tokenizer, slots=2)
    engine.vocab = model.config.vocab_size  # transformers does not know that the tokenizer is smaller
    prompt = tokenizer.prompt("What is 3 + 4?")
    ((completion,),) = engine.generate([prompt], SamplingParams(temperature=0, max_new_tokens=30))
    answer = theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=30, eos_token_id=[258, 256], pad_token_id=256
    )
    assert completion.ids == answer[0, len(prompt) :].tolist()


@torch.inference_mode()
def test_what_was_saved_is_read_alike_by_both(pair, tmp_path):
    folder, theirs = pair
    model, _ = o1core.model.load(folder)
    save_checkpoint(model, folder, tmp_path / "copy")
    assert read_config(tmp_path / "copy") == read_config(folder)
    ids = torch.arange(100)[None]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.float32).eval()
    assert torch.equal(again(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
@torch.inference_mode()
def test_the_spelling_of_transformers_4_is_read_alike(tmp_path, build_checkpoint, kind):
    rope = drawn_rope(kind, 7) | {"original_max_position_embeddings": 64}
    build_checkpoint(tmp_path, "llama", rope_parameters=rope)
    new = read_config(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    stated = raw.pop("rope_parameters")
    theta, name = stated.pop("rope_theta"), stated.pop("rope_type")
    for spelling in ({"type": name}, {"rope_type": name}, {"rope_type": name, "type": name}):
        old = raw | {"rope_theta": theta, "rope_scaling": stated | spelling}
        (tmp_path / "config.json").write_text(json.dumps(old))
        assert read_config(tmp_path) == new
    outside = stated | {"type": name}
    original = outside.pop("original_max_position_embeddings")
    old = raw | {"rope_theta": theta, "rope_scaling": outside, "original_max_position_embeddings": original}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_config(tmp_path) == new
