"""The clipped surrogate and the length-harmonizing reward in torch (dispatch.py says what the primitives mean)."""

import torch

from .precision import LOG_RATIO_LIMIT, accumulator
from .surrogate_metrics import SurrogateMetrics


def surrogate(
    logp: torch.Tensor,
    ref_logp: torch.Tensor,
    advantage: torch.Tensor,
    cu_seqlens: torch.Tensor,
    mask: torch.Tensor | None,
    ratio: str,
    eps_low: float,
    eps_high: float,
    normalizer: float,
) -> tuple[torch.Tensor, torch.Tensor, SurrogateMetrics]:
    acc = accumulator(logp.dtype)
    tokens, sequences = len(logp), len(advantage)
    logp, ref_logp, advantage = logp.to(acc), ref_logp.to(acc), advantage.to(acc)
    owner = torch.repeat_interleave(
        torch.arange(sequences, device=logp.device), cu_seqlens.diff().long(), output_size=tokens
    )
    log_ratio = logp - ref_logp
    count = torch.ones_like(logp)
    if mask is not None:
        log_ratio = torch.where(mask, log_ratio, 0)
        count = mask.to(acc)
    per_token = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    kl_sum = (torch.expm1(per_token) - per_token).sum()
    if ratio in ("token", "cispo"):
        exists, share, signal = count, count, advantage[owner]
    else:
        length = logp.new_zeros(sequences).index_add_(0, owner, count)
        exists, signal = (length > 0).to(acc), advantage
        share = count if ratio == "sequence" else count / length[owner].clamp(min=1)
        log_ratio = logp.new_zeros(sequences).index_add_(0, owner, log_ratio * share)
    r = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if ratio == "cispo":
        weight = r.clamp(1 - eps_low, 1 + eps_high)
        clipped = (r > 1 + eps_high) | (r < 1 - eps_low)
        gain = weight * signal * (logp if mask is None else torch.where(mask, logp, 0))
        d_logp = weight * signal * exists * (-1.0 / normalizer)
    else:
        clipped, gain, slope = _clipped_gain(r, log_ratio, signal, eps_low, eps_high, normalizer)
        d_logp = slope * share if ratio == "token" else slope[owner] * share
    gain = gain * exists
    loss_sum = -gain.sum()
    ratios = r * exists
    sums = (exists.sum(), count.sum(), (clipped * exists).sum(), ratios.sum(), kl_sum, loss_sum)
    ratio_max = ratios.amax() if len(ratios) else ratios.sum()
    metrics = SurrogateMetrics(torch.stack(sums).double(), ratio_max.double())
    return loss_sum / normalizer, d_logp, metrics


def _clipped_gain(
    r: torch.Tensor, log_ratio: torch.Tensor, signal: torch.Tensor, eps_low: float, eps_high: float, normalizer: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each unit: whether its clip bound is active, min(r A, clip(r) A), and d loss / d log_ratio."""
    clipped = ((r > 1 + eps_high) & (signal > 0)) | ((r < 1 - eps_low) & (signal < 0))
    gain = torch.minimum(r * signal, r.clamp(1 - eps_low, 1 + eps_high) * signal)
    dead = clipped | (log_ratio.abs() > LOG_RATIO_LIMIT)
    return clipped, gain, torch.where(dead, 0, r * signal * (-1.0 / normalizer))


def length_harmonizing_advantage(
    lengths: torch.Tensor, correct: torch.Tensor, group: torch.Tensor, lam: float
) -> torch.Tensor:
    group = group.long()
    groups = int(group.max()) + 1 if len(group) else 0
    stacked = torch.stack((torch.ones_like(lengths, dtype=torch.float64), lengths.double(), correct.double()), dim=1)
    means = stacked.new_zeros(groups, 3).index_add_(0, group, stacked)
    means = (means[:, 1:] / means[:, :1])[group]
    return (means[:, 0] / stacked[:, 1] - 1 + lam * (stacked[:, 2] - means[:, 1])).float()
