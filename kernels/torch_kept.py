"""The linear head with its log-probs kept, in torch: for a loss that needs each row's log-prob alone (dispatch.py)."""

import torch

from . import torch_linear
from .one_pass_budget import OnePassBudget
from .precision import accumulator

COLUMNS = 1024  # of a block of the vocabulary: its rows of the weight stay in the cache
BUDGET = OnePassBudget(limit=torch_linear.SCRATCH_BYTES, wide=True)


def kept_forward(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, inv_temperature: float, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    acc = accumulator(hidden.dtype)
    # Padded with logits of minus infinity, so that every row starts at an even address: products are faster there.
    whole = hidden.new_empty(len(hidden), torch_linear.aligned(vocab_size), dtype=acc)
    whole[:, vocab_size:] = -torch.inf
    kept, x = whole[:, :vocab_size], hidden.to(acc)
    with torch_linear.bf16_units(hidden.dtype):
        for start in range(0, vocab_size, COLUMNS):
            stop = min(start + COLUMNS, vocab_size)
            # In place, as torch.compile takes no `out` with gaps; beta 0 does not read what stood there.
            kept[:, start:stop].addmm_(x, weight[start:stop].to(acc).T, beta=0, alpha=inv_temperature)
    torch.log_softmax(whole, 1, out=whole)
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
        kept = pick_rows(kept, picked)
        targets, logp, logp_grad = targets[picked], logp[picked], logp_grad[picked]
    scale = logp_grad.to(kept.dtype)[:, None] * -inv_temperature
    kept.exp_().mul_(scale)
    return kept.scatter_(1, targets.long()[:, None], logp.expm1()[:, None] * scale)


def pick_rows(table: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    """table[picked], picked ascending, moved to the table's own first rows: a row that is still to be read lies at or
    behind the one that is written."""
    at_once = max(1, torch_linear.FORWARD_BLOCK // max(1, table.shape[1] * table.itemsize))
    for start in range(0, len(picked), at_once):
        part = picked[start : start + at_once]
        table[start : start + len(part)] = table[part]
    return table[: len(picked)]
