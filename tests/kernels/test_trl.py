"""The snippet of bench/results/trl.md against TRL's own log-probs, on a small model."""

import re
from pathlib import Path

import pytest
import torch

from o1core.kernels import linear_logprob

PAGE = Path(__file__).parents[2] / "bench/results/trl.md"


def snippet():
    """The page's function, as a reader would copy it."""
    names = {}
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 12
    exec(code, names)
    return names["per_token_logps_and_entropies"]


def chunked_log_probs():
    """The function behind TRL's GRPO loss."""
    return pytest.importorskip("trl.kernels", reason="TRL is not installed").ChunkedLogProbFunction.apply


@pytest.fixture(scope="module")
def model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=97, **sizes)).eval()


def run(log_probs, model):
    logps, entropies = log_probs(model)
    loss = -(logps.double() * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum()
    model.zero_grad()
    loss.backward()
    return [logps.detach(), entropies.detach(), *(p.grad.clone() for p in model.parameters())]


def in_chunks(model, ids, mask, keep, temperature, log_probs):
    """As TRL's trainer does it: the hidden states of the completions, and the head in chunks of the vocabulary (40 ids)."""
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -keep - 1 : -1]
    targets = ids[:, -keep:]
    found = log_probs(
        hidden.flatten(0, 1), model.lm_head.weight, None, targets.flatten(), temperature, 40, None, 1.0, ("entropy",)
    )
    return [part.view(targets.shape) for part in found[:2]]


def test_the_snippet_gives_the_log_probs_of_trl(model):
    log_probs = chunked_log_probs()
    ids = torch.randint(0, 97, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padded on the left, as prompts are
    expected = run(lambda m: in_chunks(m, ids, mask, 5, 0.7, log_probs), model)
    found = run(lambda m: snippet()(m, ids, mask, 5, 0.7), model)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_log_probs_of_bf16_are_nearer_to_float64_than_those_of_trl():
    """Theirs come from logits that were rounded to bf16."""
    log_probs = chunked_log_probs()
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (torch.randn(n, 64, generator=generator) for n in (200, 300))
    hidden, weight, targets = hidden.bfloat16(), (weight * 8**0.5).bfloat16(), torch.arange(200)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1)[torch.arange(200), targets]
    theirs = log_probs(hidden, weight, None, targets, 1.0, 40, None, 1.0, ())[0]
    ours = linear_logprob(hidden, weight, targets)
    assert (ours - exact).abs().max() < 1e-4 < 1e-2 < (theirs - exact).abs().max()
