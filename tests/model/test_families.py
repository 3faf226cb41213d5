"""The mixtures of experts and the hybrids against transformers, at small random shapes."""

import contextlib
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import o1core.model
from o1core import Engine, SamplingParams
from o1core.cli import main
from o1core.errors import UserError
from o1core.model import (
    Trees,
    adapted,
    add_adapters,
    delta_rule,
    draw_adapters,
    merged_weights,
    read_config,
    save_checkpoint,
)

MIXTURE = {"moe_intermediate_size": 24, "num_experts": 7, "num_experts_per_tok": 3}
QWEN3_MOE = MIXTURE | {"num_hidden_layers": 3, "norm_topk_prob": True}
DELTA = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_hidden_layers": 4,
}
HYBRIDS = {
    "hybrid": ("qwen3_5_text", DELTA),
    "hybrid, other layers, untied": (
        "qwen3_5_text",
        DELTA
        | {
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "num_hidden_layers": 3,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "head_dim": 32,
            "tie_word_embeddings": False,
        },
    ),
    "hybrid with experts": ("qwen3_5_moe_text", DELTA | MIXTURE | {"shared_expert_intermediate_size": 20}),
}
SHAPES = HYBRIDS | {
    "experts": ("qwen3_moe", QWEN3_MOE),
    "experts in some layers, weights not scaled": (
        "qwen3_moe",
        QWEN3_MOE | {"decoder_sparse_step": 2, "num_hidden_layers": 4, "mlp_only_layers": [3], "norm_topk_prob": False},
    ),
    "experts, all chosen, untied": (
        "qwen3_moe",
        QWEN3_MOE | {"num_experts_per_tok": 7, "tie_word_embeddings": False, "num_key_value_heads": 1},
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, build_checkpoint):
    """name of a shape -> (folder, transformers' model), built once."""
    built = {}

    def make(name: str):
        if name not in built:
            folder = tmp_path_factory.mktemp("family") / "model"
            family, overrides = SHAPES[name]
            built[name] = folder, build_checkpoint(folder, family, seed=len(name), **overrides)
        return built[name]

    return make


@contextlib.contextmanager
def in_float64():
    """transformers computes norms, softmax and the delta rule in float32 whatever the model's dtype, and both sides the
    rotary embedding's angles; inside, in float64."""

    def rotary(positions, dim, theta, scaling):
        angle = positions[..., None, None].double() * frequencies(dim, theta, scaling, positions.device).double()
        return angle.cos(), angle.sin()

    frequencies = o1core.model.rope.frequencies
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(o1core.model.transformer, "rotary", rotary)
        for name in ("float32", "float"):
            patch.setattr(torch, name, torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def ids_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 259, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_logits(made, name):
    """Those of transformers within float32's rounding, and as near the exact ones as theirs."""
    folder, theirs = made(name)
    ours = o1core.model.load(folder, torch.float32)[0].logits(ids_of(2, 150))
    found, model = theirs(ids_of(2, 150)).logits, o1core.model.load(folder, torch.float64)[0]
    with in_float64():
        exact = model.hidden(ids_of(2, 150)) @ model.lm_head.T
    assert (ours - found).norm() <= 1e-5 * found.norm()
    assert (ours - exact).norm() <= 1.2 * (found - exact).norm()


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_of_the_surrogate_in_float64(made, name):
    """sum of advantage x ratio over tokens, as an update has it: each weight's gradient against transformers' autograd."""
    folder, theirs = made(name)
    ours = o1core.model.load(folder, torch.float64)[0]
    ids, advantage = ids_of(2, 70), torch.randn(2, 69, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def surrogate(logits):
        logp = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return (advantage * (logp - logp.detach()).exp()).sum()

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    c = ours.config
    with in_float64():
        for module in theirs.modules():  # made in float32
            if hasattr(module, "inv_freq"):
                module.inv_freq = o1core.model.rope.frequencies(c.rotary_dim, c.rope_theta, c.scaling, ids.device)
        surrogate(ours.hidden(ids) @ ours.lm_head.T).backward()
        surrogate(theirs(ids).logits).backward()
    expected = published(theirs.state_dict(keep_vars=True), "grad")
    found = {name: p.grad for name, p in ours.named_parameters()}
    for theirs_name, our_name, start, shape in o1core.model.layout(ours.config):
        if theirs_name == "lm_head.weight" and ours.config.tied:
            continue
        mine, exact = found[our_name][start : start + shape[0]], expected[theirs_name]
        assert (mine - exact).norm() <= 1e-6 * exact.norm() + 1e-12, theirs_name


def published(tensors, attribute: str | None = None) -> dict[str, torch.Tensor]:
    """transformers' tensors by their published names: it stacks a layer's experts."""
    found = {}
    for name, tensor in tensors.items():
        tensor = getattr(tensor, attribute) if attribute else tensor
        prefix, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for i, both in enumerate(tensor):
                found |= {f"{prefix}.{i}.{n}_proj.weight": part for n, part in zip(("gate", "up"), both.chunk(2))}
        elif kind == "down_proj":
            found |= {f"{prefix}.{i}.down_proj.weight": own for i, own in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_text(made, name):
    folder, theirs = made(name)
    ours, tokenizer = o1core.model.load(folder, torch.float32)
    engine = Engine(ours, tokenizer, slots=3)
    engine.vocab = ours.config.vocab_size  # transformers does not know that the tokenizer is smaller
    prompts = [ids_of(1, length)[0].tolist() for length in (1, 3, 65)]
    completions = engine.generate(prompts, SamplingParams(temperature=0, max_new_tokens=20))
    for prompt, (completion,) in zip(prompts, completions):
        answer = theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=20, eos_token_id=[258, 256], pad_token_id=256
        )
        assert completion.ids == answer[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_save_is_load_to_the_bit(made, name, tmp_path):
    folder, theirs = made(name)
    save_checkpoint(o1core.model.load(folder)[0], folder, tmp_path / "saved")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "saved"))
    assert before.keys() == after.keys() and all(torch.equal(after[n], before[n]) for n in before)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.inference_mode():
        assert torch.equal(again(ids_of(1, 20)).logits, theirs(ids_of(1, 20)).logits)


TREES = Trees((70, 1, 3, 64), ((65, 1, 3), (63, 129)))


def test_a_checkpointed_block_keeps_nothing_of_its_delta_rule(made, monkeypatch):
    """Not even what the rule is made of, which the rule alone keeps."""
    alive, run = [], delta_rule.run_sequence

    def noted(inputs, *rest):
        alive.append(weakref.ref(inputs.mixed))
        return run(inputs, *rest)

    monkeypatch.setattr(delta_rule, "run_sequence", noted)
    model = o1core.model.load(made("hybrid")[0], torch.float32)[0]
    for recompute, kept in ((True, False), (False, True)):
        alive.clear()
        hidden = model.packed(ids_of(TREES.rows), TREES, recompute)
        assert alive and all((mixed() is not None) == kept for mixed in alive)
        hidden.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["hybrid with experts"])
def test_packed_rows_are_every_sequence_alone_with_its_gradient(made, name):
    """Prompts with their completions and sequences of their own, end to end, in float64."""
    model = o1core.model.load(made(name)[0], torch.float64)[0]
    ids, parameters = ids_of(TREES.rows), list(model.parameters())
    direction = torch.randn(TREES.rows, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = model.packed(ids, TREES)
    mine = torch.autograd.grad((found * direction).sum(), parameters)
    again = torch.autograd.grad((model.packed(ids, TREES, recompute=True) * direction).sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(mine, again))
    alone = [model.hidden(ids[None, root])[0] for root in TREES.of_roots]
    for root, branches in zip(TREES.of_roots, TREES.of_branches):
        for branch in branches:
            alone.append(model.hidden(torch.cat((ids[root], ids[branch]))[None])[0, root.stop - root.start :])
    expected = torch.cat(alone)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(mine, torch.autograd.grad((expected * direction).sum(), parameters)):
        assert (one - other).norm() <= 1e-9 * other.norm()


@torch.inference_mode()
def test_no_state_crosses_the_border_of_a_packed_sequence(made):
    """Whatever the neighbours say, a sequence has the same bits; its own prompt's text changes it."""
    model = o1core.model.load(made("hybrid")[0], torch.float32)[0]
    ids = ids_of(TREES.rows)
    found = model.packed(ids, TREES)
    own = [TREES.of_roots[0], TREES.of_branches[0][1]]
    for rows in (*TREES.of_roots[1:], TREES.of_branches[0][0], *TREES.of_branches[1]):
        changed = ids.clone()
        changed[rows] = (changed[rows] + 1) % 259
        after = model.packed(changed, TREES)
        assert not torch.equal(after[rows], found[rows]) and all(torch.equal(after[o], found[o]) for o in own)
    ids[0] = (ids[0] + 1) % 259
    assert not torch.equal(model.packed(ids, TREES)[own[1]], found[own[1]])


@pytest.mark.parametrize("experts", [False, True])
def test_merged_adapters_compute_what_unmerged_ones_do(made, experts):
    model = o1core.model.load(made("experts")[0], torch.float64)[0]
    base = model.hidden(ids_of(1, 30))
    add_adapters(model, 4, None, "all", None, experts)
    draw_adapters(model, 0)
    assert len(adapted(model)) == 3 * (4 if experts else 2)
    generator = torch.Generator().manual_seed(1)
    for module in adapted(model):
        module.lora_a.data, module.lora_b.data = module.lora_a.double(), module.lora_b.double()
        module.lora_b.data.normal_(std=0.1, generator=generator)
    found = model.hidden(ids_of(1, 30))
    found.sum().backward()
    assert all(p.grad.abs().max() > 0 for m in adapted(model) for p in (m.lora_a, m.lora_b))
    with torch.no_grad(), merged_weights(model):
        merged = model.hidden(ids_of(1, 30))
    assert (merged - found).abs().max() < 1e-6 < 1e-2 < (found - base).abs().max()  # merged by a float32 product


def test_experts_stacked_as_published_load_and_are_written_so(made, tmp_path):
    folder, _ = made("experts")
    tensors = load_file(folder / "model.safetensors")
    plain = o1core.model.load(folder)[0]
    for name, _, experts in o1core.model.checkpoint.stacks_of(plain.config):
        tensors[name] = torch.stack([torch.cat([tensors.pop(part) for part in parts]) for parts in experts])
    stacked = copied(folder, tmp_path / "stacked")
    save_file(tensors, stacked / "model.safetensors")
    loaded = o1core.model.load(stacked)[0]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters()))
    save_checkpoint(loaded, stacked, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == tensors.keys() and all(torch.equal(saved[n], tensors[n]) for n in saved)
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(6, 64, 24)
    save_file(tensors, stacked / "model.safetensors")
    with pytest.raises(
        UserError, match=r"layers.1.mlp.experts.down_proj has shape \[6, 64, 24\], config.json needs \[7, 64"
    ):
        o1core.model.load(stacked)


def copied(folder, to):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ("experts", {"num_experts_per_tok": 8}, "num_experts_per_tok 8 is more than num_experts 7"),
        ("experts", {"norm_topk_prob": None}, "norm_topk_prob: expected bool, found None"),
        ("experts", {"decoder_sparse_step": 0}, "decoder_sparse_step: must be from 1 to 4,096, found 0"),
        ("experts", {"decoder_sparse_step": 9}, "leave no layer with experts; use Qwen3ForCausalLM"),
        ("experts", {"mlp_only_layers": [3]}, r"mlp_only_layers: expected layers from 0 to 2, found \[3\]"),
        ("experts", {"num_local_experts": None}, "num_experts: expected int, found None"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_field(made, tmp_path, edit_json, shape, changes, message):
    (tmp_path / "config.json").write_bytes((made(shape)[0] / "config.json").read_bytes())
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "where", ["Qwen3-30B-A3B-Instruct-2507-FP8", "models--Qwen--Qwen3-30B-A3B-Instruct-2507-GPTQ-Int4/snapshots/0a1b2c"]
)
def test_a_quantised_checkpoint_names_what_it_was_made_from(made, tmp_path, edit_json, where):
    folder = tmp_path / where
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((made("experts")[0] / "config.json").read_bytes())
    edit_json(folder / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(
        UserError, match=r"quantization_config = .* made from, (Qwen/)?Qwen3-30B-A3B-Instruct-2507 by its name"
    ):
        read_config(folder)


# Models that see images: the text part of them


@pytest.fixture(scope="module")
def seeing(tmp_path_factory, made):
    """The folder of a hybrid with experts inside a model that sees images, as transformers writes it, beside weights of
    multi-token prediction; and transformers' text model of it."""
    from transformers import AutoConfig, Qwen3_5MoeForConditionalGeneration

    text_folder, text = made("hybrid with experts")
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"num_position_embeddings": 16, "patch_size": 2}
    config = AutoConfig.for_model("qwen3_5_moe", text_config=text.config.to_dict(), vision_config=vision)
    config.tie_word_embeddings = True
    whole = Qwen3_5MoeForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.config.architectures = [type(whole).__name__]
    folder = copied(text_folder, tmp_path_factory.mktemp("seeing") / "model")
    whole.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["mtp.fc.weight"] = torch.randn(64, 128)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, text


def test_of_a_model_that_sees_images_the_text_part_is_read_and_the_rest_is_told(seeing, made, caplog, edit_json):
    folder, _ = seeing
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_json(folder / "config.json", text_config=text | {"eos_token_id": 257})
    (folder / "generation_config.json").unlink()
    with caplog.at_level("INFO"):
        model, tokenizer = o1core.model.load(folder)
    assert 257 in tokenizer.eos_ids
    alone = o1core.model.load(made("hybrid with experts")[0])[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))
    told = [r.getMessage() for r in caplog.records if "text alone is read" in r.getMessage()]
    assert len(told) == 1 and "1 tensors of multi-token prediction (mtp.fc.weight, ...)" in told[0]
    assert "tensors of vision (model.visual.blocks.0.attn.proj.bias, ...)" in told[0]


def test_what_is_beside_the_text_part_is_written_as_it_was(seeing, tmp_path):
    folder, text = seeing
    model = o1core.model.load(folder)[0]
    with torch.no_grad():
        model.blocks[1].mlp_norm += 0.1
    save_checkpoint(model, folder, tmp_path / "saved")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["model.language_model.layers.1.post_attention_layernorm.weight"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    with torch.inference_mode():
        ours, found = model.logits(ids_of(1, 20)), again(ids_of(1, 20)).logits
        assert (ours - found).norm() <= 1e-5 * found.norm()
        assert (found - text(ids_of(1, 20)).logits).norm() > 1e-2 * found.norm()


def test_a_text_weight_that_is_missing_beside_vision_weights_is_named(seeing, tmp_path):
    folder = copied(seeing[0], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.language_model.layers.2.linear_attn.A_log"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"tensor model.language_model.layers.2.linear_attn.A_log is missing \(those of vis"
    ):
        o1core.model.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_types": ["linear_attention"] * 3 + ["sliding_attention"]},
            "layer_types: only 'full_attention' and 'lin",
        ),
        ({"layer_types": ["linear_attention"] * 4}, "leave no layer of full attention, which is needed"),
        ({"layer_types": ["full_attention"]}, "layer_types: 1 entries, num_hidden_layers is 4"),
        ({"linear_num_value_heads": 3}, "linear_num_value_heads 3 is not a multiple of linear_num_key_heads 2"),
        ({"linear_key_head_dim": None}, "linear_key_head_dim: expected int, found None"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "partial_rotary_factor: expected float, found None"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.19}}, "0.19 of head_dim 16 is not an even"),
        ({"attn_output_gate": False}, "attn_output_gate = False is not supported, only True"),
        ({"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size: must be from 1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config = "),
    ],
)
def test_a_field_of_the_text_model_that_does_not_fit_is_named(seeing, tmp_path, edit_json, changes, message):
    (tmp_path / "config.json").write_bytes((seeing[0] / "config.json").read_bytes())
    text = json.loads((tmp_path / "config.json").read_text())["text_config"] | changes
    edit_json(tmp_path / "config.json", text_config={k: v for k, v in text.items() if v is not None})
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["hybrid", "experts"])
@torch.inference_mode()
def test_bfloat16_is_as_close_to_float32_as_theirs(made, name):
    folder, exact = made(name)
    ours, _ = o1core.model.load(folder, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    truth = exact(ids_of(2, 100)).logits
    our_error, their_error = (
        (m.float() - truth).abs().mean() for m in (ours.logits(ids_of(2, 100)), theirs(ids_of(2, 100)).logits)
    )
    assert 0 < our_error < 1.1 * their_error


def test_prune_of_a_hybrid_with_experts(made, problems, tmp_path):
    """End to end; what chooses experts stays as it was, and transformers loads the result."""
    folder, _ = made("hybrid with experts")
    flags = "--samples 4 --picked 3 --problems 3 --rounds 1 --max-new-tokens 90 --temperature 1 --top-p 1 --ratio token"
    flags += " --lr 1e-3 --warmup 0 --batch 3 --eval-problems 1 --slots 4 --device cpu"
    run = tmp_path / "run"
    assert main(["prune", "--model", str(folder), "--data", str(problems), *flags.split(), "--out", str(run)]) == 0
    line = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert line["routed_alike"] == 1.0 and line["reference_max"] < 1e-3
    before, after = (load_file(place / "model.safetensors") for place in (folder, run / "pruned"))
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.endswith("mlp.gate.weight")} <= same
    kinds = ("A_log", "conv1d.weight", "q_proj.weight", "shared_expert_gate.weight")
    assert not [name for name in same if name.endswith(kinds)]
    pruned, ours = AutoModelForCausalLM.from_pretrained(run / "pruned"), o1core.model.load(run / "pruned")[0]
    with torch.inference_mode():
        found = pruned(ids_of(1, 30)).logits
        assert (ours.logits(ids_of(1, 30)) - found).norm() <= 1e-5 * found.norm()
