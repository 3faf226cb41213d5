"""Adapters against autograd in float64, against PEFT, and what they must leave alone."""

import math

import pytest
import torch

import o1core.model
from o1core.errors import UserError
from o1core.model import (
    adapted,
    add_adapters,
    draw_adapters,
    fold_adapters,
    merged_weights,
    save_adapter,
    save_checkpoint,
)


def adapted_model(folder, dtype=torch.float32, rank=4, targets="all", last_layers=None, trained=True):
    """A model with adapters; trained: with a B that is not zero."""
    model = o1core.model.load(folder, dtype)[0]
    add_adapters(model, rank, None, targets, last_layers)
    draw_adapters(model, 0)
    if trained:
        generator = torch.Generator().manual_seed(1)
        for module in adapted(model):
            with torch.no_grad():
                module.lora_b.copy_(0.1 * torch.randn(module.lora_b.shape, generator=generator))
    return model


def random_ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(259, (2, 17), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_training_the_outputs_are_the_bases_to_the_bit(checkpoint, dtype):
    base, model = o1core.model.load(checkpoint, dtype)[0], adapted_model(checkpoint, dtype, trained=False)
    assert torch.equal(model.hidden(random_ids()), base.hidden(random_ids()))
    with merged_weights(model):
        assert torch.equal(model.hidden(random_ids()), base.hidden(random_ids()))


@pytest.mark.parametrize("targets", ["all", "attention", "mlp"])
def test_gradients_are_those_of_the_sum_of_products_in_float64(checkpoint, targets):
    """The twin's weights are W + s B A, built by autograd from float64 copies of A and B."""
    model = adapted_model(checkpoint, targets=targets)
    twin = o1core.model.load(checkpoint, torch.float64)[0]
    copies, weights = {}, dict(twin.named_parameters())
    for name, module in model.named_modules():
        if module in adapted(model):
            a, b = (t.detach().double().requires_grad_() for t in (module.lora_a, module.lora_b))
            copies[name] = a, b
            parts = [b[p.start : p.start + p.rows] @ a[i * 4 : (i + 1) * 4] for i, p in enumerate(module.projections)]
            weights[f"{name}.weight"] = weights[f"{name}.weight"].detach() + 2 * torch.cat(parts)
    assert len(copies) == {"all": 8, "attention": 4, "mlp": 4}[targets]
    direction = torch.randn(2, 17, 64, generator=torch.Generator().manual_seed(2))
    (model.hidden(random_ids()) * direction).sum().backward()
    hidden = torch.func.functional_call(twin, weights, (random_ids(), torch.arange(17), o1core.model.causal_attention))
    (hidden * direction).sum().backward()
    for name, module in model.named_modules():
        for own, other in zip((module.lora_a, module.lora_b), copies[name]) if name in copies else ():
            assert (own.grad.double() - other.grad).abs().max() <= 2e-5 * other.grad.abs().max(), name
    assert all(p.grad is None for name, p in model.named_parameters() if "lora" not in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_rounded_once_and_the_base_comes_back(checkpoint, dtype):
    model = adapted_model(checkpoint, dtype)
    modules = adapted(model)
    before = [module.weight for module in modules]
    copies = [weight.clone() for weight in before]
    with merged_weights(model):
        for module, base in zip(modules, copies):
            for i, p in enumerate(module.projections):
                rows, a = slice(p.start, p.start + p.rows), module.lora_a[4 * i : 4 * (i + 1)]
                exact = base[rows].double() + 2 * module.lora_b[rows].double() @ a.double()
                spacing = torch.finfo(dtype).eps * exact.abs().max()
                assert (module.weight[rows].double() - exact).abs().max() <= spacing
    for module, weight, copy in zip(modules, before, copies):
        assert module.weight is weight and torch.equal(weight, copy)


def test_merged_and_folded_models_compute_what_the_adapted_one_does(checkpoint):
    model = adapted_model(checkpoint)
    expected = model.hidden(random_ids())
    with merged_weights(model):
        merged = model.hidden(random_ids())
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    fold_adapters(model)
    assert not adapted(model) and torch.equal(model.hidden(random_ids()), merged)


@pytest.mark.parametrize(
    "family, tied, targets, last", [("qwen2", True, "all", None), ("qwen3", False, "attention", 1)]
)
def test_peft_loads_the_adapter_with_the_same_logits(build_checkpoint, tmp_path, family, tied, targets, last):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    build_checkpoint(base, family, tie_word_embeddings=tied)
    model = adapted_model(base, targets=targets, last_layers=last)
    save_adapter(model, base, tmp_path / "adapter")
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    without = theirs(random_ids()).logits
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(random_ids()).logits
        assert (expected - without).abs().max() > 1
        torch.testing.assert_close(model.logits(random_ids()), expected, rtol=0, atol=2e-4)
    fold_adapters(model)
    save_checkpoint(model, base, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged(random_ids()).logits, expected, rtol=0, atol=2e-4)


def test_start_values_are_uniform_and_every_projection_has_its_own(checkpoint):
    model = adapted_model(checkpoint, rank=32, trained=False)
    q, k = (a for _, a, _ in list(model.blocks[0].qkv.parts())[:2])
    assert not torch.equal(q, k)
    bound = 1 / math.sqrt(64)
    assert q.abs().max() <= bound
    assert q.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert all(not module.lora_b.any() for module in adapted(model))


def test_a_rank_above_the_hidden_size_is_refused(checkpoint):
    with pytest.raises(UserError, match="--lora-rank: 65 is above the model's hidden size 64"):
        add_adapters(o1core.model.load(checkpoint, torch.float32)[0], 65, None, "all", None)
