"""--truncated-importance: what the sampler and the trainer disagree about is masked and counted."""

import json
from dataclasses import replace

import pytest
import torch

import o1core.model
from o1core.cli import main
from o1core.errors import UserError
from o1core.recipe import Recipe
from o1core.training import with_reference
from tests.training.test_step import (
    RATIOS,
    VOCAB,
    assert_same_gradients,
    gradients,
    log_probs_in_float64,
    make_examples,
    reference_logprobs,
    shifted,
    updater_of,
)


def disagreeing(model):
    """Examples whose sampler is 1 nat off at every third token, and at all tokens of the last one."""
    examples = make_examples()
    plain = reference_logprobs(model, VOCAB, examples, Recipe.of())
    reference = shifted(plain)
    found = []
    for i, (e, r) in enumerate(zip(examples, reference)):
        off = torch.arange(len(r)) % 3 == 0
        off |= torch.tensor(i == len(examples) - 1)
        found.append(replace(e, logprobs=r + off * 1.0))
    return found, reference


@pytest.mark.parametrize("ratio", [*RATIOS, "cispo"])
def test_the_gradient_is_that_of_the_tokens_both_agree_on(checkpoint, ratio):
    model = o1core.model.load(checkpoint, torch.float32)[0]
    recipe = Recipe.of(ratio=ratio, eps_low=0.2, eps_high=0.3, grad_clip=1e9, truncated_importance=0.5, micro_tokens=64)
    examples, reference = disagreeing(model)
    found = gradients(model, recipe, examples, reference)
    twin, logps = log_probs_in_float64(checkpoint, examples)
    total, units = 0.0, 0
    for e, logp, ref in zip(examples, logps, reference):
        keep = (ref - e.logprobs).abs() < 0.5
        gap = (logp - ref)[keep]
        if not len(gap):
            continue
        r = {"sequence": gap.sum().exp(), "sequence_mean": gap.mean().exp()}.get(ratio, gap.exp())
        value = torch.minimum(r * e.advantage, r.clamp(0.8, 1.3) * e.advantage)
        if ratio == "cispo":
            value = r.clamp(0.8, 1.3).detach() * e.advantage * logp[keep]
        total, units = total - value.sum(), units + value.numel()
    (total / units).backward()
    assert_same_gradients(found, twin)


def test_the_masked_tokens_are_counted(checkpoint):
    model = o1core.model.load(checkpoint, torch.float32)[0]
    examples, reference = disagreeing(model)
    updater = updater_of(model, VOCAB, Recipe.of(ratio="token", truncated_importance=0.5))
    metrics = updater.step(with_reference(examples, reference), lr=0.0)
    masked = sum(-(-len(e.ids) // 3) for e in examples[:-1]) + len(examples[-1].ids)
    assert metrics["masked_tokens"] == masked
    assert metrics["tokens"] == sum(len(e.ids) for e in examples) - masked


def test_a_batch_that_is_masked_whole_changes_nothing(checkpoint):
    model = o1core.model.load(checkpoint, torch.float32)[0]
    examples, reference = disagreeing(model)
    updater = updater_of(model, VOCAB, Recipe.of(truncated_importance=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    metrics = updater.step(with_reference(examples[-1:], reference[-1:]), lr=1e-3)
    assert metrics["tokens"] == 0 and metrics["grad_norm"] == 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_bound_that_nothing_exceeds_changes_no_bit(checkpoint):
    found = []
    for bound in (None, 5.0):
        model = o1core.model.load(checkpoint, torch.float32)[0]
        examples, reference = disagreeing(model)
        found.append(gradients(model, Recipe.of(ratio="token", truncated_importance=bound), examples, reference))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_run_counts_them_in_its_log_and_is_silent_without_a_bound(flags, tmp_path, capsys):
    logs = {}
    for name, bound in (("on", ["--truncated-importance", "1e-7"]), ("off", [])):
        run = tmp_path / name
        assert main(["train", *flags, "--rounds", "1", *bound, "--out", str(run)]) == 0
        logs[name] = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    shown = capsys.readouterr().err
    assert all(line["masked_tokens"] > 0 for line in logs["on"]) and " masked, peak " in shown
    assert not any("masked_tokens" in line for line in logs["off"])


def test_a_bound_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"--truncated-importance: 0\.0 is not above 0"):
        Recipe.of(truncated_importance=0)
