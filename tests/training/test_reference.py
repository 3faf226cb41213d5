"""--reference: the sampler's own log-probs where it agrees with the trainer, the trainer's where it does not."""

import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from o1core.cli import main
from o1core.errors import UserError
from o1core.recipe import Recipe
from o1core.rollout import read_groups
from o1core.run_folder import RunFolder
from o1core.training import sampler_logprobs
from tests.training.test_step import make_examples


def apart(gap: float):
    """40 examples, and a trainer that is `gap` nats a token from their sampler; it counts what it computes."""
    examples = [replace(e, logprobs=torch.full((len(e.ids),), -2.0)) for e in make_examples(40)]
    computed = []

    def by_trainer(asked):
        computed.extend(asked)
        signs = (1 - 2 * (torch.arange(len(e.ids)) % 2) for e in asked)
        return [e.logprobs + gap * sign for e, sign in zip(asked, signs)]

    return examples, by_trainer, computed


def test_where_both_agree_the_trainer_computes_an_eighth(caplog):
    caplog.set_level(logging.INFO, "o1core")
    examples, by_trainer, computed = apart(9e-4)
    found = sampler_logprobs(examples, by_trainer)
    assert all(torch.equal(r, e.logprobs) for e, r in zip(examples, found)) and len(computed) == 8
    assert "the sampler's log-probs, 0.0009 nats a token from the trainer's (at most 0.001)" in caplog.text


@pytest.mark.parametrize("gap", [1.1e-3, torch.nan])
def test_where_they_differ_the_trainer_computes_all_once(caplog, gap):
    examples, by_trainer, computed = apart(gap)
    found = sampler_logprobs(examples, by_trainer)
    assert [id(e) for e in computed] == [id(e) for e in examples]
    for mine, wanted in zip(found, by_trainer(examples)):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0, equal_nan=True)
    assert "more than 0.001" in caplog.text


def test_what_cannot_be_is_refused_in_one_line():
    examples, by_trainer, _ = apart(0)
    for broken in (torch.full((len(examples[20].ids),), torch.nan), torch.zeros(0)):
        examples[20] = replace(examples[20], logprobs=broken)
        with pytest.raises(UserError, match="--reference sampler: the rollouts of problem p20 hold no log-probs"):
            sampler_logprobs(examples, by_trainer)
    with pytest.raises(UserError, match="--reference sampler: did not choose the tokens of --opening"):
        Recipe.of(reference="sampler", opening="So ")
    with pytest.raises(UserError, match="--truncated-importance compares it with the trainer's"):
        Recipe.of(reference="sampler", truncated_importance=2.0)


def test_a_run_keeps_the_log_probs_of_its_sampler(flags, tmp_path):
    run = RunFolder(tmp_path / "run")
    command = ["train", *flags, "--rounds", "1", "--samples", "2", "--picked", "2", "--reference", "sampler"]
    assert main([*command, "--out", str(run.path)]) == 0
    kept = load_file(run.reference(0))["logprobs"]
    sampled = torch.cat([s.logprobs for g in read_groups(run.rollouts(0)) for s in g.samples])
    assert torch.equal(kept.sort().values, sampled.sort().values)
