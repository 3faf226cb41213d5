"""log p(target) from stored logits in torch, a few rows at a time (dispatch.py says what the primitives mean)."""

import torch

from . import torch_linear
from .precision import FLOOR, accumulator
from .row_coefficients import RowNumbers, row_coefficients


def gather_forward(
    logits: torch.Tensor, targets: torch.Tensor, inv_temperature: float, vocab_size: int, want_entropy: bool
) -> RowNumbers:
    acc = accumulator(logits.dtype)
    tokens = logits.shape[0]
    logp, top, log_total = (logits.new_empty(tokens, dtype=acc) for _ in range(3))
    entropy = torch.empty_like(logp) if want_entropy else None
    rows = max(1, min(tokens, torch_linear.FORWARD_BLOCK // acc.itemsize // vocab_size))
    scratch = logits.new_empty(2, rows, vocab_size, dtype=acc)
    for r in range(0, tokens, rows):
        part = slice(r, min(r + rows, tokens))
        z, log_p = scratch[:, : part.stop - r]
        z.copy_(logits[part, :vocab_size]).mul_(inv_temperature)  # a bf16 product would be rounded to bf16
        torch.log_softmax(z, 1, out=log_p)
        torch.amax(z, 1, out=top[part])
        log_total[part] = -log_p.amax(1)
        logp[part] = log_p.gather(1, targets[part].long()[:, None])[:, 0]
        if entropy is not None:
            entropy[part] = -torch.exp(log_p, out=z).mul_(log_p.clamp_(min=FLOOR)).sum(1)
    return RowNumbers(logp, top, log_total, entropy)


def gather_backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    known: RowNumbers,
    logp_grad: torch.Tensor,
    entropy_grad: torch.Tensor | None,
    inv_temperature: float,
    vocab_size: int,
    inplace: bool,
) -> torch.Tensor:
    acc = accumulator(logits.dtype)
    tokens = logits.shape[0]
    row = row_coefficients(known, logp_grad, entropy_grad, inv_temperature)
    d_logits = logits if inplace else torch.empty_like(logits)
    d_logits[:, vocab_size:] = 0
    rows = max(1, min(tokens, torch_linear.FORWARD_BLOCK // acc.itemsize // vocab_size))
    scratch = logits.new_empty(rows, vocab_size, dtype=acc)
    for r in range(0, tokens, rows):
        part = slice(r, min(r + rows, tokens))
        z = scratch[: part.stop - r]
        z.copy_(logits[part, :vocab_size]).mul_(inv_temperature)  # a bf16 product would be rounded to bf16
        z -= known.top[part, None]
        if row.linear is None:
            z.exp_().mul_(row.constant[part, None])
        else:
            e = z.exp()
            z.clamp_(min=FLOOR).mul_(row.linear[part, None]).add_(row.constant[part, None]).mul_(e)
        z.scatter_(1, targets[part].long()[:, None], row.at_target[part, None])
        d_logits[part, :vocab_size] = z
    return d_logits
