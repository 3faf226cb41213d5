"""The paper's two models: their settings, their prompts, their true shapes, and a small copy of each from end to end.

tests/data/marco-o1 and tests/data/qwq-32b hold each model's config.json and a chat template of the same structure as
the published one, in our own words. No weights are needed: shapes are checked on torch's meta device.
"""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

import o1core.model
from o1core.cli import main
from o1core.model import Transformer, layout, published_tensors, read_config
from o1core.model.rope import rotary
from o1core.recipe import SHIPPED, Recipe, read_recipe

DATA = Path(__file__).parents[1] / "data"
BOTH = ("marco-o1", "qwq-32b")

# The paper's table of settings, by hand: what it names once for both models, and what differs.
COMMON = {
    "problems": 5000,
    "shuffle_seed": 42,
    "prompt": "paper",  # of the released scripts, and so is their system turn
    "picked": 2,
    "schedule": "cosine",
    "warmup": 0.1,
    "epochs": 1,
    "grad_clip": 10.0,
    "batch": 32,
    "temperature": 0.5,
    "top_p": 0.8,
    "max_new_tokens": 8192,
    "eval_temperature": 0.0,
    "eval_samples": 1,
    "reward": "length-harmonizing",
    "reward_low": None,
    "reward_high": None,
    "advantage": "reward",
    "ratio": "sequence",
    "rounds": 1,
    "checkpointing": True,  # ours: it changes the memory, not the result
}
SETTINGS = {
    "marco-o1": COMMON
    | {"train_last_layers": None, "samples": 16, "lam": 2.0, "optimiser": "adam-mini", "lr": 2e-7, "cutoff": 3072},
    "qwq-32b": COMMON
    | {"train_last_layers": 48, "samples": 12, "lam": 5.0, "optimiser": "adamw", "lr": 2e-6, "cutoff": 4096},
}
BASELINES = {  # (learning rate, epochs) of the paper's baselines; it does not state Marco's epochs of DPO
    ("marco-o1", "sft"): (1e-6, 2),
    ("marco-o1", "dpo"): (5e-8, 1),
    ("qwq-32b", "sft"): (5e-6, 1),
    ("qwq-32b", "dpo"): (2e-7, 2),
}


@pytest.mark.parametrize("name", BOTH)
def test_the_recipe_states_the_papers_settings(name):
    stated = json.loads((SHIPPED / f"{name}.json").read_text())
    expected = SETTINGS[name]
    assert {key: stated.get(key, "left to the default") for key in expected} == expected
    resolved = Recipe.of(**read_recipe(name)).to_json()
    assert {key: resolved[key] for key in expected} == expected


@pytest.mark.parametrize(("name", "method"), BASELINES)
def test_a_baseline_has_its_own_learning_rate_and_epochs(capsys, name, method):
    printed = []
    for flags in ([], ["--method", method]):
        assert main(["prune", "--recipe", name, *flags, "--dry-run"]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    plain, baseline = printed
    assert (baseline["lr"], baseline["epochs"]) == BASELINES[name, method]
    assert baseline["picked"] == 2  # of SFT: the two shortest right ones
    assert baseline["dpo_beta"] == 0.1
    same = SETTINGS[name].keys() - {"lr", "epochs"}
    assert {key: baseline[key] for key in same} == {key: plain[key] for key in same}


PARAMETERS = {"marco-o1": 7_615_616_512, "qwq-32b": 32_763_876_352}  # the published sizes: 7.6 B, 32.8 B


@pytest.fixture(scope="module", params=BOTH)
def true_shape(request):
    """(name, our model, transformers' model), both of the true config.json and on the meta device."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = AutoConfig.from_pretrained(DATA / request.param)
    with torch.device("meta"):
        ours, theirs = Transformer(read_config(DATA / request.param)), Qwen2ForCausalLM(config)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return request.param, ours, theirs, grown


def test_the_true_configuration_is_read_whole(true_shape):
    name, ours, theirs, _ = true_shape
    c = ours.config
    published = {
        "marco-o1": (28, 3584, 18944, 28, 4, 1e-6, 1e6, False, 152064, 32768, 128),
        "qwq-32b": (64, 5120, 27648, 40, 8, 1e-5, 1e6, False, 152064, 32768, 128),
    }
    assert published[name] == (
        c.num_layers,
        c.hidden_size,
        c.ffn_size,
        c.num_heads,
        c.num_kv_heads,
        c.norm_eps,
        c.rope_theta,
        c.tied,
        c.vocab_size,
        c.max_positions,
        c.head_dim,
    )
    assert c.qkv_bias and not c.qk_norm and c.dtype == torch.bfloat16
    assert set(theirs.config.layer_types) == {"full_attention"}  # no window, as we have it
    assert all(n.variance_epsilon == c.norm_eps for n in theirs.modules() if hasattr(n, "variance_epsilon"))


def test_every_tensor_has_the_published_name_and_shape(true_shape):
    _, ours, theirs, _ = true_shape
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {name: shape for name, _, _, shape in layout(ours.config)} == expected
    assert {name: tuple(tensor.shape) for name, tensor in published_tensors(ours).items()} == expected


def test_every_row_of_our_storage_has_one_published_tensor(true_shape):
    _, ours, _, _ = true_shape
    rows = {}
    for _, parameter, start, shape in layout(ours.config):
        rows.setdefault(parameter, []).append((start, start + shape[0]))
    assert rows.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        edges = sorted(rows[name])
        assert [start for start, _ in edges] + [len(parameter)] == [0] + [end for _, end in edges]


def test_the_number_of_parameters(true_shape):
    name, ours, theirs, _ = true_shape
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[name]
    assert sum(p.numel() for p in theirs.parameters()) == PARAMETERS[name]


def test_nothing_was_allocated(true_shape):
    _, ours, _, grown = true_shape
    assert all(t.is_meta for t in (*ours.parameters(), *ours.buffers()))
    assert grown * 1024 < 0.05 * sum(2 * p.numel() for p in ours.parameters())


def test_rotary_frequencies(true_shape):
    """Equal to transformers' at every position of the context, and to float64 where float32 can tell."""
    name, ours, _, _ = true_shape
    positions = torch.arange(ours.config.max_positions)
    cos, sin = (t.squeeze(1) for t in rotary(positions, 128, ours.config.rope_theta, None))  # [T, D/2]
    embedding = Qwen2RotaryEmbedding(AutoConfig.from_pretrained(DATA / name))
    their_cos, their_sin = (t[0] for t in embedding(torch.zeros(1), positions[None]))  # [T, D]: the half, twice
    assert torch.equal(torch.cat((cos, cos), -1), their_cos) and torch.equal(torch.cat((sin, sin), -1), their_sin)
    frequencies = 1e6 ** (-torch.arange(64, dtype=torch.float64) / 64)
    angle = positions[:100, None] * frequencies
    torch.testing.assert_close(cos[:100].double(), angle.cos(), rtol=0, atol=2e-5)
    torch.testing.assert_close(sin[:100].double(), angle.sin(), rtol=0, atol=2e-5)


# The small copies: 2 layers, and width and heads divided by the first number, which leaves heads of 128 and the true
# number of query heads to each kv head (7 of Marco-o1, 5 of QwQ). The feed-forward layers, most of the work, by the other.
ATTENTION = ("hidden_size", "num_attention_heads", "num_key_value_heads")
CUT = {name: dict.fromkeys(ATTENTION, by) | {"intermediate_size": 64} for name, by in (("marco-o1", 4), ("qwq-32b", 8))}
TOKENIZER_SIZE, PADDING = 259, 399  # as many spare rows as stand above Qwen2.5's tokenizer: 152,064 - 151,665


@pytest.fixture(scope="module", params=BOTH)
def small(request, tmp_path_factory, build_checkpoint, edit_json):
    """(name, folder) of a small copy: random bf16 weights, and everything else as the true one has it."""
    name = request.param
    folder = tmp_path_factory.mktemp(name) / "model"
    true = json.loads((DATA / name / "config.json").read_text())
    assert all(true[field] % by == 0 for field, by in CUT[name].items())
    changed = {field: true[field] // by for field, by in CUT[name].items()} | {
        "num_hidden_layers": 2,
        "vocab_size": TOKENIZER_SIZE + PADDING,
        "bos_token_id": 256,
        "eos_token_id": 258,
    }
    shared = ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    build_checkpoint(
        folder,
        dtype=torch.bfloat16,
        head_dim=128,
        rope_parameters={"rope_type": "default", "rope_theta": true["rope_theta"]},
        **{field: true[field] for field in shared},
        **changed,
    )
    (folder / "config.json").write_text(json.dumps(true | changed))  # in the spelling of the published one
    published = json.loads((DATA / name / "tokenizer_config.json").read_text(encoding="utf-8"))
    edit_json(folder / "tokenizer_config.json", chat_template=published["chat_template"])
    # Equal lengths earn no reward. So that they differ whatever the seed, every token is about as likely, and every
    # eighth byte ends a text.
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] /= 16
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "generation_config.json", eos_token_id=[258, 256, *range(0, 256, 8)])
    return name, folder


@torch.inference_mode()
def test_the_small_copy_has_the_true_structure(small):
    name, folder = small
    model, tokenizer = o1core.model.load(folder)
    c, true = model.config, read_config(DATA / name)
    assert c.head_dim == true.head_dim and c.num_heads / c.num_kv_heads == true.num_heads / true.num_kv_heads
    assert (c.norm_eps, c.rope_theta, c.tied, c.dtype) == (true.norm_eps, true.rope_theta, true.tied, true.dtype)
    assert c.vocab_size - tokenizer.size == PADDING
    stored = load_file(folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert "lm_head.weight" in stored and sum(n.endswith("proj.bias") for n in stored) == 2 * 3  # q, k, v


@torch.inference_mode()
def test_the_small_copy_has_transformers_logits(small):
    _, folder = small
    ours, tokenizer = o1core.model.load(folder, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.prompt("What is 17 * 19?")])
    torch.testing.assert_close(ours.logits(ids), theirs(ids).logits, rtol=0, atol=1e-5)


SMALLER = (  # than the recipes ask for, and a learning rate that shows in bf16 after two steps
    "--samples",
    "2",
    "--problems",
    "2",
    "--max-new-tokens",
    "16",
    "--eval-problems",
    "2",
    "--batch",
    "2",
    "--cutoff",
    "1024",
    "--micro-tokens",
    "2048",
    "--lr",
    "1e-3",
    "--slots",
    "8",
    "--device",
    "cpu",
)


def pruned(small, run: Path, *flags: str) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(settings.json, weights before, weights after) of `o1core prune` on a small copy, with its own recipe."""
    name, folder = small
    problems = [{"problem": f"What is {a} + {a * a}?", "answer": str(a + a * a)} for a in range(10)]
    data = run.with_name("sums.json")
    data.write_text(json.dumps(problems))
    command = ["prune", "--model", str(folder), "--data", str(data), "--recipe", name, *SMALLER, *flags]
    assert main([*command, "--out", str(run)]) == 0
    settings = json.loads((run / "settings.json").read_text())
    return settings, load_file(folder / "model.safetensors"), load_file(run / "pruned" / "model.safetensors")


@pytest.mark.parametrize("small", ["marco-o1"], indirect=True)
def test_prune_a_small_marco_o1(small, tmp_path):
    settings, before, after = pruned(small, tmp_path / "run")
    kept = SETTINGS["marco-o1"].keys() - {"samples", "problems", "max_new_tokens", "batch", "cutoff", "lr"}
    assert {k: settings[k] for k in kept} == {k: SETTINGS["marco-o1"][k] for k in kept}
    assert settings["dtype"] == "bfloat16"
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    for name in ("model.embed_tokens.weight", "lm_head.weight"):  # no text has the spare ids, and none can win
        assert torch.equal(before[name][TOKENIZER_SIZE:], after[name][TOKENIZER_SIZE:])
    theirs, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "pruned", output_loading_info=True)
    assert not any(loading.values())
    assert theirs.dtype == torch.bfloat16
    ours, tokenizer = o1core.model.load(tmp_path / "run" / "pruned", dtype=torch.float32)
    ids = torch.tensor([tokenizer.prompt("What is 1 + 1?")])
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits(ids), theirs.float()(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("small", ["qwq-32b"], indirect=True)
def test_prune_the_last_layer_of_a_small_qwq(small, tmp_path):
    settings, before, after = pruned(small, tmp_path / "run", "--train-last-layers", "1")
    assert (settings["train_last_layers"], settings["lam"], settings["checkpointing"]) == (1, 5.0, True)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("model.layers.1.")}
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "pruned", output_loading_info=True)
    assert not any(loading.values())
