"""Training adapters: the right gradient in every objective, a frozen base, rollouts from merged weights, whole runs."""

import json

import pytest
import torch
from safetensors.torch import load_file

import o1core.model
from o1core.choices import LORA_TARGETS
from o1core.cli import main
from o1core.model import adapted, add_adapters, draw_adapters, merged_weights
from o1core.recipe import Recipe
from o1core.rollout import Engine
from o1core.run_folder import RunFolder
from o1core.training import Updater, reference_logprobs, with_reference
from o1core.types import Example

RANK, VOCAB = 4, 259


def make_examples(count: int = 6) -> list[Example]:
    g = torch.Generator().manual_seed(0)
    examples = []
    for i in range(count):
        prompt, ids = (torch.randint(VOCAB, (n,), generator=g, dtype=torch.int32) for n in (4, 5 + 3 * i))
        prompt = prompt if i < 4 else examples[2].prompt
        examples.append(Example(f"p{i}", prompt, ids, torch.zeros(len(ids)), 1.0 - 2 * (i % 2), False))
    return examples


def adapted_updater(checkpoint, dtype=torch.float32, **settings) -> Updater:
    """On a model whose B is not zero."""
    recipe = Recipe.of(**{"lora_rank": RANK, "grad_clip": 1e9} | settings)
    model = o1core.model.load(checkpoint, dtype)[0]
    add_adapters(model, RANK, None, recipe.optimiser.lora_targets, None)
    draw_adapters(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in adapted(model):
            module.lora_b.copy_(0.1 * torch.randn(module.lora_b.shape, generator=generator))
    return Updater(model, VOCAB, recipe.objective, recipe.optimiser, recipe.execution)


@pytest.mark.parametrize("objective", ["surrogate", "sft", "dpo"])
def test_the_gradient_is_that_of_the_merged_weights_by_the_chain_rule(checkpoint, objective):
    """dB = s dW A^T and dA = s B^T dW, with dW of a full model that holds the merged weights; s = 2."""
    examples = make_examples()
    lora = adapted_updater(checkpoint, objective=objective)
    full = o1core.model.load(checkpoint, torch.float32)[0]
    with merged_weights(lora.model), torch.no_grad():
        merged = dict(lora.model.named_parameters())
        for name, p in full.named_parameters():
            p.copy_(merged[name])
    recipe = Recipe.of(objective=objective, grad_clip=1e9)
    examples = with_reference(examples, [r + 0.1 for r in reference_logprobs(full, VOCAB, examples, 1000)])
    whole = Updater(full, VOCAB, recipe.objective, recipe.optimiser, recipe.execution)
    expected = whole.accumulate(examples)
    assert lora.accumulate(examples) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    gradients = {name: p.grad for name, p in full.named_parameters()}
    for name, module in lora.model.named_modules():
        if module not in adapted(lora.model):
            continue
        for i, p in enumerate(module.projections):
            rows, low = slice(p.start, p.start + p.rows), slice(i * RANK, (i + 1) * RANK)
            d_weight = 2 * gradients[f"{name}.weight"][rows].double()
            a, b = module.lora_a[low].double(), module.lora_b[rows].double()
            for found, exact in ((module.lora_b.grad[rows], d_weight @ a.T), (module.lora_a.grad[low], b.T @ d_weight)):
                assert (found - exact).abs().max() <= 5e-5 * exact.abs().max(), p.name


@pytest.mark.parametrize("targets", LORA_TARGETS)
def test_a_step_changes_the_adapters_and_nothing_else(checkpoint, targets):
    updater = adapted_updater(checkpoint, torch.bfloat16, lora_targets=targets)
    before = {name: p.detach().clone() for name, p in updater.model.named_parameters()}
    examples = make_examples()
    updater.step(with_reference(examples, reference_logprobs(updater.model, VOCAB, examples, 1000)), 1e-2)
    changed = {name for name, p in updater.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name} == updater.pairs.keys()
    assert {name.split(".")[2] for name in changed} == set(LORA_TARGETS[targets])
    assert all(p.dtype == torch.float32 and weight is p for weight, p in updater.pairs.values())
    assert updater.model.embed.grad is None


def test_gradient_checkpointing_does_not_change_the_gradient(checkpoint):
    examples, found = make_examples(), []
    for recompute in (False, True):
        updater = adapted_updater(checkpoint, checkpointing=recompute)
        updater.accumulate(with_reference(examples, [torch.zeros(len(e.ids)) for e in examples]))
        found.append([master.grad for master in updater.masters])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_the_head_gets_no_gradient_product(checkpoint, monkeypatch):
    """The loss asks the kernel for the hidden states' gradient alone."""
    from o1core.training import objectives

    asked = []
    kernel = objectives.linear_surrogate

    def spy(hidden, head, *rest, **settings):
        asked.append((hidden.requires_grad, head.requires_grad))
        return kernel(hidden, head, *rest, **settings)

    monkeypatch.setattr(objectives, "linear_surrogate", spy)
    updater, examples = adapted_updater(checkpoint), make_examples()
    updater.accumulate(with_reference(examples, [torch.zeros(len(e.ids)) for e in examples]))
    assert asked == [(True, False)]


def test_rollouts_are_sampled_from_the_merged_weights(checkpoint, tmp_path, monkeypatch):
    """In the second round the engine's matrices are W + s B A; the first round's are the base's own."""
    seen = []
    stream = Engine.stream

    def spy(engine, *args):
        seen.append([(m.weight.clone(), m.merged) for m in adapted(engine.model)])
        return stream(engine, *args)

    monkeypatch.setattr(Engine, "stream", spy)
    base = o1core.model.load(checkpoint, torch.float32)[0]
    assert main(["train", *run_flags(checkpoint, tmp_path), "--rounds", "2", "--out", str(tmp_path / "run")]) == 0
    first, second = seen
    assert all(merged for held in seen for _, merged in held)
    bases = [base.blocks[i].get_submodule(name).weight for i in range(2) for name in LORA_TARGETS["all"]]
    assert all(torch.equal(weight, base) for (weight, _), base in zip(first, bases))
    assert not any(torch.equal(weight, base) for (weight, _), base in zip(second, bases))


def run_flags(checkpoint, tmp_path) -> list[str]:
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps({"problem": f"{a} + 5 = ?", "answer": str(a + 5)}) + "\n" for a in range(10)))
    text = (
        f"--model {checkpoint} --data {data} --samples 4 --picked 2 --problems 6 --max-new-tokens 16 --temperature 1 "
        "--top-p 1 --ratio token --lr 1e-2 --batch 4 --eval-problems 2 --slots 8 --device cpu --lora-rank 4"
    )
    return text.split()


def test_a_run_leaves_the_merged_model_the_adapter_and_a_small_state(checkpoint, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    run = RunFolder(tmp_path / "run")
    assert main(["train", *run_flags(checkpoint, tmp_path), "--out", str(run.path)]) == 0
    state = load_file(run.states()[-1] / "training.safetensors")
    assert state and all("lora_" in name for name in state)
    ids = torch.randint(VOCAB, (2, 17), generator=torch.Generator().manual_seed(0))
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        without = base(ids).logits
        theirs = peft.PeftModel.from_pretrained(base, run.adapter)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(run.pruned, dtype=torch.float32)(ids).logits
    assert (theirs - without).abs().max() > 1e-2
    torch.testing.assert_close(merged, theirs, rtol=0, atol=2e-4)


def test_the_embedded_model_is_pruned_by_adapters_from_end_to_end(tmp_path, capsys):
    command = (
        "prune --lora-rank 32 --lr 3e-3 --problems 4 --samples 4 --picked 4 --rounds 1 --eval-problems 2 --device cpu"
    )
    assert main([*command.split(), "--eval-samples", "1", "--out", str(tmp_path / "run")]) == 0
    assert "pruned checkpoint" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (32, 64)


def test_a_state_is_refused_on_another_base(checkpoint, tmp_path, build_checkpoint, capsys):
    flags = run_flags(checkpoint, tmp_path)
    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 0
    build_checkpoint(tmp_path / "other", seed=1)
    changed = [str(tmp_path / "other") if flag == str(checkpoint) else flag for flag in flags]
    assert main(["train", *changed, "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "holds a run with other settings (model_print:" in capsys.readouterr().err
