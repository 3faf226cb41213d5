"""The clipped surrogate and the length-harmonizing reward in torch."""

import torch
from torch import Tensor

from .numbers import LOG_RATIO_LIMIT, Clip, Sequences, SurrogateMetrics, accumulator


def surrogate(logp: Tensor, sequences: Sequences, clip: Clip) -> tuple[Tensor, Tensor, SurrogateMetrics]:
    """-> loss [], d_logp [N], metrics; what they are: dispatch.py."""
    ref_logp, advantage, cu_seqlens, mask = sequences
    acc = accumulator(logp.dtype)
    owners = len(advantage)
    logp, ref_logp, advantage = logp.to(acc), ref_logp.to(acc), advantage.to(acc)
    every = torch.arange(owners, device=logp.device)
    owner = torch.repeat_interleave(every, cu_seqlens.diff().long(), output_size=len(logp))
    log_ratio = logp - ref_logp
    count = torch.ones_like(logp)
    if mask is not None:
        log_ratio = torch.where(mask, log_ratio, 0)
        count = mask.to(acc)
    per_token = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    kl_sum = (torch.expm1(per_token) - per_token).sum()
    if clip.of_tokens:
        exists, share, signal = count, count, advantage[owner]
    else:
        length = logp.new_zeros(owners).index_add_(0, owner, count)
        exists, signal = (length > 0).to(acc), advantage
        share = count if clip.ratio == "sequence" else count / length[owner].clamp(min=1)
        log_ratio = logp.new_zeros(owners).index_add_(0, owner, log_ratio * share)
    r = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    low, high = 1 - clip.eps_low, 1 + clip.eps_high
    if clip.ratio == "cispo":
        weight = r.clamp(low, high)
        clipped = (r > high) | (r < low)
        gain = weight * signal * (logp if mask is None else torch.where(mask, logp, 0))
        d_logp = weight * signal * exists * (-1.0 / clip.normalizer)
    else:
        clipped = ((r > high) & (signal > 0)) | ((r < low) & (signal < 0))
        gain = torch.minimum(r * signal, r.clamp(low, high) * signal)
        dead = clipped | (log_ratio.abs() > LOG_RATIO_LIMIT)
        slope = torch.where(dead, 0, r * signal * (-1.0 / clip.normalizer))
        d_logp = slope * share if clip.ratio == "token" else slope[owner] * share
    gain = gain * exists
    loss_sum = -gain.sum()
    ratios = r * exists
    sums = (exists.sum(), count.sum(), (clipped * exists).sum(), ratios.sum(), kl_sum, loss_sum)
    ratio_max = ratios.amax() if len(ratios) else ratios.sum()
    metrics = SurrogateMetrics(torch.stack(sums).double(), ratio_max.double())
    return loss_sum / clip.normalizer, d_logp, metrics


def length_harmonizing_advantage(lengths: Tensor, correct: Tensor, group: Tensor, lam: float) -> Tensor:
    """-> [S] float32. Sums of lengths and counts are exact in float64, so on a GPU too the order of addition is nothing."""
    group = group.long()
    groups = int(group.max()) + 1 if len(group) else 0
    stacked = torch.stack((torch.ones_like(lengths, dtype=torch.float64), lengths.double(), correct.double()), dim=1)
    means = stacked.new_zeros(groups, 3).index_add_(0, group, stacked)
    means = (means[:, 1:] / means[:, :1])[group]
    return (means[:, 0] / stacked[:, 1] - 1 + lam * (stacked[:, 2] - means[:, 1])).float()
