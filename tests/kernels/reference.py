"""Every op in plain torch, one line of mathematics a line of code: the truth in tests and benchmarks.

Differentiable by torch's own autograd and exact in float64. Nothing is chunked, fused or checked: logits are stored,
sequences are a Python loop.
"""

from typing import Any

import torch

from o1core.kernels import LOG_RATIO_LIMIT, SurrogateMetrics


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
    finite = logp.masked_fill(logp == float("-inf"), 0)  # an impossible id adds nothing, where 0 * (-inf) is NaN
    return (picked, -(logp.exp() * finite).sum(-1)) if entropy else picked


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


def linear_reverse_kl(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    *,
    vocab_size: int | None = None,
) -> torch.Tensor:
    """KL(p || q) of each row [N], p and q the softmax of hidden weight^T and teacher_hidden teacher_weight^T."""
    log_p, log_q = (
        torch.log_softmax((h @ w.T)[:, :vocab_size], dim=-1)
        for h, w in ((hidden, weight), (teacher_hidden, teacher_weight))
    )
    return (log_p.exp() * (log_p - log_q)).sum(-1)


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


def within(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """x.clamp with the gradient kept on the edges, where torch's own keeps it up to version 2.13 and drops it since."""
    return torch.where((x < low) | (x > high), x.detach().clamp(low, high), x)


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
    the metrics. A unit is a sequence with an unmasked token, or an unmasked token for the ratios "token" and "cispo".
    "cispo": -sum over tokens of clip(r, 1 - eps_low, 1 + eps_high) A logp, the clipped ratio without gradient (arXiv
    2506.13585, Eq. 4)."""
    mask = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask
    total = logp[:0].sum()
    units = tokens = clipped = ratio_sum = ratio_max = kl_sum = 0.0
    for s, (start, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist())):
        keep = mask[start:end]
        log_ratio = (logp[start:end] - ref_logp[start:end])[keep]
        if not len(log_ratio):
            continue
        per_token = within(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        kl_sum += (per_token.exp() - 1 - per_token).sum().item()
        tokens += len(log_ratio)
        if ratio == "sequence":
            log_ratio = log_ratio.sum()[None]
        elif ratio == "sequence_mean":
            log_ratio = log_ratio.mean()[None]
        r = within(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        over, under = r > 1 + eps_high, r < 1 - eps_low
        bounded = within(r, 1 - eps_low, 1 + eps_high)
        if ratio == "cispo":
            total = total - (bounded.detach() * advantage[s] * logp[start:end][keep]).sum()
            clipped += (over | under).sum().item()
        else:
            total = total - torch.minimum(r * advantage[s], bounded * advantage[s]).sum()
            clipped += ((over & (advantage[s] > 0)) | (under & (advantage[s] < 0))).sum().item()
        units += len(r)
        ratio_sum += r.sum().item()
        ratio_max = max(ratio_max, r.max().item())
    sums = torch.tensor([units, tokens, clipped, ratio_sum, kl_sum, total.item()], dtype=torch.float64)
    return total / normalizer, SurrogateMetrics(sums, torch.tensor(ratio_max, dtype=torch.float64))


def linear_surrogate(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *batch: Any,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, SurrogateMetrics]:
    """linear_logprob followed by clipped_surrogate, whose arguments from ref_logp on are *batch and **settings."""
    logp = linear_logprob(hidden, weight, targets, temperature=temperature, vocab_size=vocab_size).reshape(-1)
    return clipped_surrogate(logp, *batch, **settings)


def paged_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, page_table: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """queries [R, Hq, D] over the first lengths[r] tokens of each row, keys and values [pages, Hkv, 64, D] -> [R, Hq, D].
    The query heads of a group stand side by side, as in grouped-query attention (arXiv 2305.13245)."""
    out = torch.zeros_like(queries)
    group = queries.shape[1] // keys.shape[1]
    for row, length in enumerate(lengths.tolist()):
        pages = page_table[row, : -(-length // keys.shape[2])].long()
        k, v = (t[pages].transpose(1, 2).flatten(0, 1)[:length] for t in (keys, values))  # [T, Hkv, D]
        for head in range(queries.shape[1] if length else 0):
            scores = k[:, head // group] @ queries[row, head] * queries.shape[2] ** -0.5
            out[row, head] = scores.softmax(0) @ v[:, head // group]
    return out


def write_pages(
    queries: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """Rotary embedding (arXiv 2104.09864) of queries [R, Hq, D] and new_keys [R, Hkv, D] as complex numbers, cos and sin
    [R, D/2]; keys and values [pages, Hkv, 64, D] get each row's token lengths[r] - 1. -> the turned queries."""
    angle = torch.complex(cos, sin)[:, None]
    turned = []
    for x in (queries, new_keys):
        pairs = torch.complex(*x.chunk(2, dim=-1)) * angle
        turned.append(torch.cat((pairs.real, pairs.imag), dim=-1))
    for row, length in enumerate(lengths.tolist()):
        if length:
            page, slot = page_table[row, (length - 1) // keys.shape[2]], (length - 1) % keys.shape[2]
            keys[page, :, slot], values[page, :, slot] = turned[1][row], new_values[row]
    return turned[0]
