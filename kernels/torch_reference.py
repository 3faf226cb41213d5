"""Every op in plain torch, one line of mathematics a line of code: the truth in tests, never the path that ships.

Differentiable by torch's own autograd and exact in float64. Nothing is chunked, fused or checked: logits are stored,
sequences are a Python loop.
"""

from typing import Any

import torch

from .precision import LOG_RATIO_LIMIT
from .surrogate_metrics import SurrogateMetrics


def gather_logprob(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: bool = False,
) -> Any:
    """logits [N, V], targets [N] -> log-prob of each target [N] (, entropy of each row [N]), in the dtype of logits."""
    logp = torch.log_softmax(logits[:, :vocab_size] / temperature, dim=-1)
    picked = logp.gather(1, targets.long()[:, None])[:, 0]
    return (picked, -(logp.exp() * logp).sum(-1)) if entropy else picked


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: bool = False,
) -> Any:
    """hidden [..., H], weight [V, H], targets [...] -> as gather_logprob, on logits = hidden weight^T."""
    logits = hidden.reshape(-1, hidden.shape[-1]) @ weight.T
    result = gather_logprob(
        logits, targets.reshape(-1), temperature=temperature, vocab_size=vocab_size, entropy=entropy
    )
    return tuple(part.view(targets.shape) for part in result) if entropy else result.view(targets.shape)


def length_harmonizing_advantage(
    lengths: torch.Tensor, correct: torch.Tensor, group: torch.Tensor, lam: float
) -> torch.Tensor:
    """R = L_ref / L - 1 + lam (A - A_ref) with means over the group (arXiv 2501.12570), float64 [S]."""
    lengths, correct = lengths.double(), correct.double()
    advantage = torch.empty_like(lengths)
    for g in group.unique():
        rows = group == g
        advantage[rows] = lengths[rows].mean() / lengths[rows] - 1 + lam * (correct[rows] - correct[rows].mean())
    return advantage


def clipped_surrogate(
    logp: torch.Tensor,
    ref_logp: torch.Tensor,
    advantage: torch.Tensor,
    cu_seqlens: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    ratio: str,
    eps_low: float,
    eps_high: float,
    normalizer: float,
) -> tuple[torch.Tensor, SurrogateMetrics]:
    """-sum over units of min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) / normalizer (arXiv 2501.12570, Eq. 11), and
    the metrics. A unit is a sequence with an unmasked token, or an unmasked token for ratio "token"."""
    mask = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask
    total = logp[:0].sum()
    units = tokens = clipped = ratio_sum = ratio_max = kl_sum = 0.0
    for s, (start, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist())):
        keep = mask[start:end]
        log_ratio = (logp[start:end] - ref_logp[start:end])[keep]
        if not len(log_ratio):
            continue
        per_token = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        kl_sum += (per_token.exp() - 1 - per_token).sum().item()
        tokens += len(log_ratio)
        if ratio == "sequence":
            log_ratio = log_ratio.sum()[None]
        elif ratio == "sequence_mean":
            log_ratio = log_ratio.mean()[None]
        r = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        total = total - torch.minimum(r * advantage[s], r.clamp(1 - eps_low, 1 + eps_high) * advantage[s]).sum()
        units += len(r)
        clipped += (((r > 1 + eps_high) & (advantage[s] > 0)) | ((r < 1 - eps_low) & (advantage[s] < 0))).sum().item()
        ratio_sum += r.sum().item()
        ratio_max = max(ratio_max, r.max().item())
    sums = torch.tensor([units, tokens, clipped, ratio_sum, kl_sum, total.item()], dtype=torch.float64)
    return total / normalizer, SurrogateMetrics(sums, torch.tensor(ratio_max, dtype=torch.float64))


def linear_surrogate(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ref_logp: torch.Tensor,
    advantage: torch.Tensor,
    cu_seqlens: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    ratio: str,
    eps_low: float,
    eps_high: float,
    normalizer: float,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> tuple[torch.Tensor, SurrogateMetrics]:
    """linear_logprob followed by clipped_surrogate."""
    logp = linear_logprob(hidden, weight, targets, temperature=temperature, vocab_size=vocab_size).reshape(-1)
    return clipped_surrogate(
        logp,
        ref_logp,
        advantage,
        cu_seqlens,
        mask,
        ratio=ratio,
        eps_low=eps_low,
        eps_high=eps_high,
        normalizer=normalizer,
    )
