"""The linear head with its log-probs kept, in torch: for a loss that needs each row's log-prob alone (dispatch.py)."""

import torch

from . import torch_linear
from .one_pass_budget import OnePassBudget
from .precision import accumulator

BUDGET = OnePassBudget(limit=torch_linear.SCRATCH_BYTES, wide=True)


def kept_forward(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, inv_temperature: float, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    acc = accumulator(hidden.dtype)
    tokens = hidden.shape[0]
    kept = hidden.new_empty(tokens, vocab_size, dtype=acc)
    rows = max(64, torch_linear.FORWARD_BLOCK // acc.itemsize // vocab_size)
    scratch = hidden.new_empty(min(rows, tokens), vocab_size, dtype=acc)
    w = weight[:vocab_size].to(acc)
    with torch_linear.bf16_units(hidden.dtype):
        for r in range(0, tokens, rows):
            part = slice(r, min(r + rows, tokens))
            z = scratch[: part.stop - r]
            torch.mm(hidden[part].to(acc), w.T, out=z)
            if inv_temperature != 1:
                z *= inv_temperature
            torch.log_softmax(z, 1, out=kept[part])
    return kept.gather(1, targets.long()[:, None])[:, 0], kept, ()


def kept_gradient(
    kept: torch.Tensor,
    state: tuple[torch.Tensor, ...],
    targets: torch.Tensor,
    logp: torch.Tensor,
    logp_grad: torch.Tensor,
    inv_temperature: float,
    picked: torch.Tensor | None,
) -> torch.Tensor:
    # What is kept here is log p whole, so there is no state.
    if picked is not None:
        kept, targets, logp, logp_grad = kept[picked], targets[picked], logp[picked], logp_grad[picked]
    scale = logp_grad.to(kept.dtype)[:, None] * -inv_temperature
    kept.exp_().mul_(scale)
    return kept.scatter_(1, targets.long()[:, None], logp.expm1()[:, None] * scale)
