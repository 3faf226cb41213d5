"""The torch path that ships: log-probs of a large vocabulary in bounded scratch, on any device, fast on a CPU.

Signatures and meaning of every primitive: the docstring of kernels/__init__.py. The vocabulary is walked in blocks; the
scratch is one block of fp32 logits.
"""

import torch

from .surrogate_metrics import SurrogateMetrics

SCRATCH_BYTES = 128 * 2**20
LOG_RATIO_LIMIT = 20.0


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _block(rows: int, dtype: torch.dtype) -> int:
    return max(256, SCRATCH_BYTES // (max(rows, 1) * dtype.itemsize))


def forward(hidden, weight, targets, inv_temperature, vocab_size, want_entropy):
    acc = _accumulator(hidden.dtype)
    rows = hidden.shape[0]
    x = hidden.to(acc)
    targets = targets.long()
    top = x.new_full((rows,), -torch.inf)
    total, picked, weighted = x.new_zeros(rows), x.new_zeros(rows), x.new_zeros(rows)
    step = _block(rows, acc)
    for start in range(0, vocab_size, step):
        z = (x @ weight[start : min(start + step, vocab_size)].to(acc).T).mul_(inv_temperature)
        here = (targets >= start) & (targets < start + z.shape[1])
        column = (targets - start).clamp(0, z.shape[1] - 1)
        picked = torch.where(here, z.gather(1, column[:, None])[:, 0], picked)
        new_top = torch.maximum(top, z.amax(1))
        shrink = (top - new_top).exp()
        z -= new_top[:, None]
        p = z.exp()
        if want_entropy:
            # weighted holds sum of p (z - top): moving top by d adds d times the total.
            moved = torch.where(total > 0, top - new_top, 0)
            weighted = (weighted + moved * total) * shrink + (p * z).sum(1)
        total = total * shrink + p.sum(1)
        top = new_top
    lse = top + total.log()
    return picked - lse, lse, (total.log() - weighted / total) if want_entropy else None


def backward(
    hidden, weight, targets, lse, logp_grad, entropy_grad, entropy,
    inv_temperature, vocab_size, need_hidden, need_weight,
):  # fmt: skip
    acc = _accumulator(hidden.dtype)
    rows = hidden.shape[0]
    x = hidden.to(acc)
    targets = targets.long()
    d_hidden = torch.zeros_like(x) if need_hidden else None
    d_weight = torch.zeros_like(weight) if need_weight else None
    step = _block(rows, acc)
    for start in range(0, vocab_size, step):
        stop = min(start + step, vocab_size)
        w = weight[start:stop].to(acc)
        z = (x @ w.T).mul_(inv_temperature).sub_(lse[:, None])
        p = z.exp()
        dz = p * -logp_grad[:, None]
        if entropy_grad is not None:
            dz -= p * (z + entropy[:, None]) * entropy_grad[:, None]
        inside = ((targets >= start) & (targets < stop)).nonzero()[:, 0]
        dz[inside, targets[inside] - start] += logp_grad[inside]
        dz *= inv_temperature
        if need_hidden:
            d_hidden.addmm_(dz, w)
        if need_weight:
            d_weight[start:stop] = dz.T @ x
    return d_hidden.to(hidden.dtype) if need_hidden else None, d_weight


def gather_forward(logits, targets, inv_temperature, vocab_size, want_entropy):
    acc = _accumulator(logits.dtype)
    rows, columns = logits.shape
    logp, lse = logits.new_empty(rows, dtype=acc), logits.new_empty(rows, dtype=acc)
    entropy = logits.new_empty(rows, dtype=acc) if want_entropy else None
    step = max(1, SCRATCH_BYTES // (columns * acc.itemsize))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        z = logits[part, :vocab_size].to(acc) * inv_temperature
        lse[part] = z.logsumexp(1)
        logp[part] = z.gather(1, targets[part].long()[:, None])[:, 0] - lse[part]
        if want_entropy:
            z -= lse[part, None]
            entropy[part] = -(z.exp() * z).sum(1)
    return logp, lse, entropy


def gather_backward(logits, targets, lse, logp_grad, entropy_grad, entropy, inv_temperature, vocab_size, inplace):
    acc = _accumulator(logits.dtype)
    rows, columns = logits.shape
    d_logits = logits if inplace else torch.empty_like(logits)
    step = max(1, SCRATCH_BYTES // (columns * acc.itemsize))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        z = (logits[part, :vocab_size].to(acc) * inv_temperature).sub_(lse[part, None])
        p = z.exp()
        dz = p * -logp_grad[part, None]
        if entropy_grad is not None:
            dz -= p * (z + entropy[part, None]) * entropy_grad[part, None]
        dz.scatter_add_(1, targets[part].long()[:, None], logp_grad[part, None].to(acc))
        d_logits[part, :vocab_size] = dz.mul_(inv_temperature)
        d_logits[part, vocab_size:] = 0
    return d_logits


def surrogate(logp, ref_logp, advantage, cu_seqlens, mask, ratio, eps_low, eps_high, normalizer):
    acc = _accumulator(logp.dtype)
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
    if ratio == "token":
        exists, share, signal = count, count, advantage[owner]
    else:
        length = logp.new_zeros(sequences).index_add_(0, owner, count)
        exists, signal = (length > 0).to(acc), advantage
        share = count if ratio == "sequence" else count / length[owner].clamp(min=1)
        log_ratio = logp.new_zeros(sequences).index_add_(0, owner, log_ratio * share)
    r = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    clipped = ((r > 1 + eps_high) & (signal > 0)) | ((r < 1 - eps_low) & (signal < 0))
    gain = torch.minimum(r * signal, r.clamp(1 - eps_low, 1 + eps_high) * signal) * exists
    dead = clipped | (log_ratio.abs() > LOG_RATIO_LIMIT)
    slope = torch.where(dead, 0, r * signal * (-1.0 / normalizer))
    d_logp = slope * share if ratio == "token" else slope[owner] * share
    loss_sum = -gain.sum()
    ratios = r * exists
    sums = (exists.sum(), count.sum(), (clipped * exists).sum(), ratios.sum(), kl_sum, loss_sum)
    ratio_max = ratios.amax() if len(ratios) else ratios.sum()
    metrics = SurrogateMetrics(torch.stack(sums).double(), ratio_max.double())
    return loss_sum / normalizer, d_logp, metrics


def length_harmonizing_advantage(lengths, correct, group, lam):
    group = group.long()
    groups = int(group.max()) + 1 if len(group) else 0
    stacked = torch.stack((torch.ones_like(lengths, dtype=torch.float64), lengths.double(), correct.double()), dim=1)
    means = stacked.new_zeros(groups, 3).index_add_(0, group, stacked)
    means = (means[:, 1:] / means[:, :1])[group]
    return (means[:, 0] / stacked[:, 1] - 1 + lam * (stacked[:, 2] - means[:, 1])).float()
