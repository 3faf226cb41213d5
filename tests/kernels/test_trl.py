"""The snippet of bench/results/trl.md against TRL's own log-probs, on a small model."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "bench/results/trl.md"


def snippet():
    """The page's function, as a reader would copy it."""
    names = {}
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 12
    exec(code, names)
    return names["per_token_logps_and_entropies"]


def selective_log_softmax():
    """TRL's function, or where TRL is not installed what it computes: the log-softmax of the chosen token."""
    try:
        from trl.trainer.utils import selective_log_softmax
    except ImportError:
        pytest.skip("TRL is not installed")
    return selective_log_softmax


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


def stored_logits(model, ids, mask, keep, temperature, log_prob):
    """As TRL's trainer does it: logits of all positions, cut, divided by the temperature."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1] / temperature
    p = torch.log_softmax(logits, -1)
    return log_prob(logits, ids[:, -keep:]), -(p.exp() * p).sum(-1)


def test_the_snippet_gives_the_log_probs_of_trl(model):
    log_prob = selective_log_softmax()
    ids = torch.randint(0, 97, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padded on the left, as prompts are
    expected = run(lambda m: stored_logits(m, ids, mask, 5, 0.7, log_prob), model)
    found = run(lambda m: snippet()(m, ids, mask, 5, 0.7), model)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
