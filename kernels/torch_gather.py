"""log p(target) from stored logits in torch, a few rows at a time (dispatch.py says what the primitives mean)."""

import torch

from . import torch_linear
from .precision import accumulator


def gather_forward(
    logits: torch.Tensor, targets: torch.Tensor, inv_temperature: float, vocab_size: int, want_entropy: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    acc = accumulator(logits.dtype)
    tokens = logits.shape[0]
    logp, lse = logits.new_empty(tokens, dtype=acc), logits.new_empty(tokens, dtype=acc)
    entropy = torch.empty_like(lse) if want_entropy else None
    rows = max(1, min(tokens, torch_linear.FORWARD_BLOCK // acc.itemsize // vocab_size))
    scratch = logits.new_empty(2, rows, vocab_size, dtype=acc)
    for r in range(0, tokens, rows):
        part = slice(r, min(r + rows, tokens))
        z, log_p = scratch[:, : part.stop - r]
        torch.mul(logits[part, :vocab_size], inv_temperature, out=z)
        torch.log_softmax(z, 1, out=log_p)
        lse[part] = z[:, 0] - log_p[:, 0]
        logp[part] = log_p.gather(1, targets[part].long()[:, None])[:, 0]
        if entropy is not None:
            entropy[part] = -torch.exp(log_p, out=z).mul_(log_p).sum(1)
    return logp, lse, entropy


def gather_backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    logp_grad: torch.Tensor,
    entropy_grad: torch.Tensor | None,
    entropy: torch.Tensor | None,
    inv_temperature: float,
    vocab_size: int,
    inplace: bool,
) -> torch.Tensor:
    acc = accumulator(logits.dtype)
    tokens = logits.shape[0]
    d_logits = logits if inplace else torch.empty_like(logits)
    d_logits[:, vocab_size:] = 0
    rows = max(1, min(tokens, torch_linear.FORWARD_BLOCK // acc.itemsize // vocab_size))
    scratch = logits.new_empty(rows, vocab_size, dtype=acc)
    for r in range(0, tokens, rows):
        part = slice(r, min(r + rows, tokens))
        z = scratch[: part.stop - r]
        torch.mul(logits[part, :vocab_size], inv_temperature, out=z)
        z -= lse[part, None]
        grad = logp_grad[part, None].to(acc)
        if entropy_grad is None or entropy is None:
            z.exp_().mul_(grad)
        else:
            p = z.exp()
            z.add_(entropy[part, None]).mul_(entropy_grad[part, None]).add_(grad).mul_(p)
        z.scatter_add_(1, targets[part].long()[:, None], -grad)
        d_logits[part, :vocab_size] = z.mul_(-inv_temperature)
    return d_logits
