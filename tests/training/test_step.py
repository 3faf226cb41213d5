"""One update against a float64 autograd twin of the paper's equations, and everything that must not change it."""

import math
from dataclasses import replace

import pytest
import torch

import o1core.model
from o1core.errors import UserError
from o1core.model import ModelConfig, Transformer, initialise
from o1core.recipe import Recipe
from o1core.runs import EMBEDDED
from o1core.training import Updater, learning_rate, with_reference
from o1core.training.update import micro_batches, pack, rows_of
from o1core.training.update import reference_logprobs as logprobs_of
from o1core.types import Example

VOCAB = 259  # of the small random checkpoints in conftest.py; every id below it is one of tiny-o1 too
RATIOS = ("sequence", "sequence_mean", "token")


def make_examples(count: int = 7, seed: int = 0) -> list[Example]:
    g = torch.Generator().manual_seed(seed)
    examples = []
    for i in range(count):
        t, n = (int(torch.randint(low, high, (), generator=g)) for low, high in ((1, 9), (1, 20)))
        prompt, ids = (torch.randint(VOCAB, (m,), generator=g, dtype=torch.int32) for m in (t, n))
        if i % 4 > 1:  # trees of three, and sequences alone
            prompt = examples[i - i % 4].prompt
        advantage = float(torch.randn((), generator=g))
        examples.append(Example(f"p{i}", prompt, ids, torch.zeros(n), advantage, False))
    return examples


def shifted(reference: list[torch.Tensor], seed: int = 1) -> list[torch.Tensor]:
    """References a little off, so that ratios lie on both sides of every clip edge."""
    g = torch.Generator().manual_seed(seed)
    return [r + 0.3 * torch.randn(r.shape, generator=g) for r in reference]


def updater_of(model, vocab: int, recipe: Recipe) -> Updater:
    return Updater(model, vocab, recipe.objective, recipe.optimiser, recipe.execution)


def reference_logprobs(model, vocab: int, examples, recipe: Recipe) -> list[torch.Tensor]:
    return logprobs_of(model, vocab, examples, recipe.execution.micro_tokens or 16384)


def gradients(model, recipe: Recipe, examples, reference) -> dict[str, torch.Tensor]:
    updater = updater_of(model, VOCAB, recipe)
    updater.step(with_reference(examples, reference), lr=0.0)
    return {name: master.grad.clone() for name, (_, master) in updater.pairs.items()}


@pytest.fixture
def model(checkpoint):
    return o1core.model.load(checkpoint, torch.float32)[0]


@pytest.mark.parametrize("ratio", RATIOS)
def test_gradient_is_that_of_equation_11_in_float64(checkpoint, model, ratio):
    recipe = Recipe.of(ratio=ratio, eps_low=0.2, eps_high=0.3, grad_clip=1e9)
    examples = make_examples()
    reference = shifted(reference_logprobs(model, VOCAB, examples, recipe))
    found = gradients(model, recipe, examples, reference)

    twin, logps = log_probs_in_float64(checkpoint, examples)
    total, units = 0.0, 0
    for e, logp, ref in zip(examples, logps, reference):
        gap = logp - ref
        r = {"sequence": gap.sum().exp(), "sequence_mean": gap.mean().exp(), "token": gap.exp()}[ratio]
        value = torch.minimum(r * e.advantage, r.clamp(0.8, 1.3) * e.advantage)
        total, units = total - value.sum(), units + value.numel()
    (total / units).backward()
    assert_same_gradients(found, twin)


def log_probs_in_float64(checkpoint, examples):
    """A twin's log-probs [L] of each example, by log-softmax over whole logits."""
    twin = o1core.model.load(checkpoint, torch.float64)[0]
    found = []
    for e in examples:
        hidden = twin.hidden(torch.cat((e.prompt, e.ids)).long()[None])
        logp = (hidden @ twin.lm_head.T)[0, :, :VOCAB].log_softmax(-1)
        found.append(logp[len(e.prompt) - 1 : -1].gather(1, e.ids.long()[:, None])[:, 0])
    return twin, found


def assert_same_gradients(found, twin):
    for name, p in twin.named_parameters():
        assert (found[name].double() - p.grad).abs().max().item() <= 2e-5 * p.grad.abs().max().item(), name


def test_gradient_of_sft_is_that_of_the_mean_log_prob_in_float64(checkpoint, model):
    recipe, examples = Recipe.of(objective="sft", grad_clip=1e9), make_examples()
    found = gradients(model, recipe, examples, reference_logprobs(model, VOCAB, examples, recipe))
    twin, logp = log_probs_in_float64(checkpoint, examples)
    (-torch.cat(logp).mean()).backward()
    assert_same_gradients(found, twin)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_gradient_of_dpo_is_that_of_its_equation_in_float64(checkpoint, model, budget):
    """Whole pairs stay in one micro-batch, however small it is."""
    recipe = Recipe.of(objective="dpo", dpo_beta=0.3, grad_clip=1e9, micro_tokens=budget)
    examples = make_examples(8)
    reference = shifted(reference_logprobs(model, VOCAB, examples, recipe))
    found = gradients(model, recipe, examples, reference)
    twin, logp = log_probs_in_float64(checkpoint, examples)
    gap = [(p - r).sum() for p, r in zip(logp, reference)]
    losses = [-(1 / (1 + (-0.3 * (gap[i] - gap[i + 1])).exp())).log() for i in range(0, 8, 2)]
    (sum(losses) / 4).backward()
    assert_same_gradients(found, twin)


def test_dpo_and_sft_report_loss_and_distance(model):
    examples = make_examples(6)
    for objective, loss in (("dpo", math.log(2)), ("sft", None)):
        recipe = Recipe.of(objective=objective)
        reference = reference_logprobs(model, VOCAB, examples, recipe)
        metrics = updater_of(model, VOCAB, recipe).step(with_reference(examples, reference), lr=0.0)
        mean = -torch.cat(reference).mean().item()
        assert metrics["loss"] == pytest.approx(mean if loss is None else loss, rel=1e-5)
        assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-5) and abs(metrics["approx_kl"]) < 1e-8
        assert metrics["clip_fraction"] == 0


@pytest.mark.parametrize("ratio", RATIOS)
def test_micro_batch_size_does_not_change_the_gradient(checkpoint, ratio):
    examples = make_examples()
    grads = []
    for budget in (1, 40, 10_000):
        model = o1core.model.load(checkpoint, torch.float32)[0]
        recipe = Recipe.of(ratio=ratio, micro_tokens=budget, grad_clip=1e9)
        reference = shifted(reference_logprobs(model, VOCAB, examples, Recipe.of()))
        grads.append(gradients(model, recipe, examples, reference))
    assert any(g.abs().max() > 1e-3 for g in grads[0].values())
    for other in grads[1:]:
        for name, g in grads[0].items():
            scale = g.abs().max().item()
            assert (other[name] - g).abs().max().item() <= 2e-5 * scale, name


def test_gradient_checkpointing_does_not_change_the_gradient(checkpoint):
    examples = make_examples()
    grads = []
    for recompute in (False, True):
        model = o1core.model.load(checkpoint, torch.float32)[0]
        reference = shifted(reference_logprobs(model, VOCAB, examples, Recipe.of()))
        grads.append(gradients(model, Recipe.of(checkpointing=recompute, ratio="token"), examples, reference))
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.parametrize("ratio", RATIOS)
def test_ratio_is_one_at_learning_rate_zero(model, ratio):
    recipe = Recipe.of(ratio=ratio, lr=0.0)
    examples = make_examples(12)
    reference = reference_logprobs(model, VOCAB, examples, recipe)
    updater = updater_of(model, VOCAB, recipe)
    for half in (slice(0, 5), slice(5, 12), slice(0, 5)):
        metrics = updater.step(with_reference(examples[half], reference[half]), lr=0.0)
        assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-4)
        assert metrics["ratio_max"] == pytest.approx(1, abs=1e-4)
        assert metrics["clip_fraction"] == 0
        assert metrics["approx_kl"] < 1e-8


def test_the_sampler_and_the_trainer_agree_on_log_probs(checkpoint):
    model, tokenizer = o1core.model.load(checkpoint, torch.float32)
    prompts = [tokenizer.prompt("2 + 2?"), tokenizer.prompt("What is 13 * 7?")]
    done = o1core.Engine(model, tokenizer, slots=3).generate(prompts, o1core.SamplingParams(n=4, max_new_tokens=40))
    examples = []
    for prompt, completions in zip(prompts, done):
        for c in completions:
            ints = (torch.tensor(part, dtype=torch.int32) for part in (prompt, c.ids))
            examples.append(Example("p", *ints, torch.tensor(c.logprobs), 1.0, False))
    reference = reference_logprobs(model, tokenizer.size, examples, Recipe.of())
    for e, r in zip(examples, reference):
        torch.testing.assert_close(r, e.logprobs, rtol=0, atol=1e-4)


def test_a_packed_batch_predicts_every_completion_token_and_nothing_else():
    def example(prompt, ids):
        return Example(
            "p", *(torch.tensor(part, dtype=torch.int32) for part in (prompt, ids)), torch.zeros(len(ids)), 1, False
        )

    examples = [example([6], [7, 0, 8]), example([1, 2, 3], [4, 5]), example([9, 9], [5]), example([9, 9], [3])]
    examples += [example([1, 2, 3], [5]), example([1, 2, 3], [7, 7, 7])]
    batch = pack(examples, torch.device("cpu"))
    assert (batch.trees.roots, batch.trees.branches) == ((3, 3, 2), ((1, 2),))
    assert batch.ids.tolist() == [1, 2, 3, 6, 7, 0, 9, 9, 4, 7, 7]
    assert batch.trees.positions(batch.ids.device).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 3, 3, 4]
    fed = batch.ids[batch.places].tolist()
    pairs = [(6, 7), (7, 0), (0, 8), (3, 4), (4, 5), (9, 5), (9, 3), (3, 5), (3, 7), (7, 7), (7, 7)]
    assert list(zip(fed, batch.targets.tolist())) == pairs
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6, 7, 8, 11]
    assert rows_of(examples, range(6)) == len(batch.ids)


def test_micro_batches_keep_the_budget_and_lose_nobody():
    examples = make_examples(30)
    everything = list(range(30))
    cuts = micro_batches(examples, everything, 64)
    assert sorted(i for cut in cuts for i in cut) == everything
    assert all(rows_of(examples, cut) <= 64 for cut in cuts)
    assert len(cuts) <= 1.2 * rows_of(examples, everything) / 64, "micro-batches are filled"
    pairs = micro_batches(examples, everything, 64, unit_size=2)
    assert sorted(i for cut in pairs for i in cut) == everything
    assert all(sorted(cut) == sorted({i ^ side for i in cut for side in (0, 1)}) for cut in pairs), "a pair is parted"


def test_the_samples_of_a_problem_stay_together_where_they_fit():
    prompts = [torch.full((2 + i,), i, dtype=torch.int32) for i in range(6)]
    examples = [replace(e, prompt=prompts[i % 6]) for i, e in enumerate(make_examples(30))]
    largest = max(rows_of(examples, range(i, 30, 6)) for i in range(6))
    for budget, together in ((largest, True), (largest // 2, False)):
        cuts = micro_batches(examples, list(range(30)), budget)
        assert all(rows_of(examples, cut) <= budget for cut in cuts)
        whole = all(any(set(range(i, 30, 6)) <= set(cut) for cut in cuts) for i in range(6))
        assert whole == together


def test_a_shared_prompt_changes_no_gradient_at_real_widths():
    """One layer of Qwen2.5-0.5B with its vocabulary, in fp32: three completions as one tree, and each alone."""
    config = ModelConfig("Qwen2ForCausalLM", 151646, 896, 4864, 1, 14, 2, 64, 1e-6, 1e6, 512, True, torch.float32)
    model = Transformer(config)
    initialise(model, 0)
    prompt = make_examples()[1].prompt
    examples = [replace(e, prompt=prompt, reference=torch.full((len(e.ids),), -11.9)) for e in make_examples()[:3]]
    found = []
    for budget in (1000, 1):
        recipe = Recipe.of(ratio="token", micro_tokens=budget, grad_clip=1e9, train_last_layers=1)
        updater = Updater(model, 151646, recipe.objective, recipe.optimiser, recipe.execution)
        updater.accumulate(examples)
        found.append({name: master.grad for name, (_, master) in updater.pairs.items()})
        model.zero_grad(set_to_none=True)
    for name, alone in found[1].items():
        assert 0 < (found[0][name] - alone).abs().max() <= 2e-5 * alone.abs().max(), name


def test_masters_in_fp32_keep_what_bf16_would_round_away(checkpoint):
    """60 steps of 1e-6 move a bf16 weight of 0.25 (neighbours 1e-3 apart) by nothing each, and by 6e-5 together."""
    model = o1core.model.load(checkpoint, torch.bfloat16)[0]
    updater = updater_of(model, VOCAB, Recipe.of(ratio="token", lr=1e-6))
    examples = make_examples()
    reference = reference_logprobs(model, VOCAB, examples, Recipe.of())
    weight, master = updater.pairs["blocks.0.qkv.weight"]
    before, start = weight.detach().clone(), master.clone()
    for _ in range(60):
        updater.step(with_reference(examples, reference), lr=1e-6)
    moved = (master - start).abs()
    assert moved.median() > 1.5e-5
    assert torch.equal(weight, master.to(torch.bfloat16))
    assert 0 < (weight != before).float().mean() < 0.9


def test_last_layers_alone_are_trained(checkpoint):
    model = o1core.model.load(checkpoint, torch.float32)[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = Recipe.of(ratio="token", lr=1e-3, train_last_layers=1)
    examples = make_examples()
    updater_of(model, VOCAB, recipe).step(
        with_reference(examples, reference_logprobs(model, VOCAB, examples, recipe)), lr=1e-3
    )
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.startswith("blocks.1.")}


def test_more_last_layers_than_there_are_is_refused(model):
    with pytest.raises(UserError, match="--train-last-layers: 3 of the model's 2"):
        updater_of(model, VOCAB, Recipe.of(train_last_layers=3))


def test_a_gradient_that_is_not_finite_stops_before_the_step(model):
    examples = make_examples()
    reference = reference_logprobs(model, VOCAB, examples, Recipe.of())
    examples[3] = replace(examples[3], advantage=math.inf)
    updater = updater_of(model, VOCAB, Recipe.of(ratio="token"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=r"not finite, in the batch of problems p0, p1, p2, p3"):
        updater.step(with_reference(examples, reference), lr=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_learning_rate_rises_over_the_warm_up_and_falls_with_the_cosine():
    recipe = Recipe.of(lr=2.0, warmup=0.1)
    rates = [learning_rate(x, recipe.optimiser) for x in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0, 1, 2, 1, 0])
    constant = recipe.replace(schedule="constant")
    assert [learning_rate(x, constant.optimiser) for x in (0.05, 0.5, 1.0)] == pytest.approx([1, 2, 2])


@pytest.mark.filterwarnings("ignore:divide by zero")  # the interpreter computes the lanes past the edge too
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_step_of_tiny_o1_through_the_triton_kernels(ratio, monkeypatch):
    """In Triton's interpreter (tests/conftest.py chooses it where there is no GPU), of one layer, since it takes a second for
    each: loss, metrics and every gradient are those of the torch path."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    examples = make_examples(2)
    results = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("O1CORE_KERNELS", backend)
        model, tokenizer = o1core.model.load(EMBEDDED, torch.float32, device)
        del model.blocks[1:]
        recipe = Recipe.of(ratio=ratio, lr=1e-4, grad_clip=1e9)
        reference = shifted(reference_logprobs(model, tokenizer.size, examples, recipe))
        updater = updater_of(model, tokenizer.size, recipe)
        metrics = updater.step(with_reference(examples, reference), lr=1e-4)
        results.append((reference, metrics, {name: p.grad for name, (p, _) in updater.pairs.items()}))
    (torch_reference, torch_metrics, torch_grads), (reference, metrics, grads) = results
    for a, b in zip(torch_reference, reference):
        assert (a - b).abs().max() < 2e-5
    assert metrics == pytest.approx(torch_metrics, rel=1e-4, abs=1e-6)
    assert any(g.abs().max() > 1e-3 for g in grads.values())
    for name, g in torch_grads.items():
        assert (grads[name] - g).abs().max() <= 2e-5 * g.abs().max(), name
