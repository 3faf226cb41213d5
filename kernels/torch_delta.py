"""The gated delta rule in torch: its decode step, number by number, its walk over chunks, and what is done within a chunk.

Of chunks: q, k [B, N, C, H, K], v [B, N, C, H, V]; total G, the sums of a chunk's decays up to each token, and beta
[B, N, H, C]; all else with heads before tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_elementwise import by_rows

LENGTH_EPS = 1e-6  # beside the squared length of q and k


def step(
    mixed: Tensor, decay: Tensor, beta: Tensor, kernel: Tensor, tails: Tensor, memories: Tensor, places: Tensor
) -> Tensor:
    """A row's bits do not depend on the others: nothing but products and sums number by number, and sums in one fixed order."""
    _, heads, size, width = memories.shape
    fed = torch.cat((tails[places], mixed[..., None]), dim=2)  # [R, C, taps]
    taps = zip(fed.to(memories.dtype).unbind(2), kernel.to(memories.dtype).unbind(1))
    convolved = sum((x * w for x, w in taps), start=memories.new_zeros(()))
    q, k, v = split_heads(by_rows(F.silu, convolved), heads, size, width)
    out, moved = recurrent_step(q, k, v, decay, beta, memories[places])
    tails[places], memories[places] = fed[..., 1:], moved
    return out


def split_heads(x: Tensor, heads: int, size: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k [..., Hv, K] and v [..., Hv, V] of x [..., C]: q and k scaled to length 1, those of a key head repeated for each of
    its value heads, q divided by sqrt(K). heads, size, width: Hv, K, V."""
    values = heads * width
    keys = (x.shape[-1] - values) // 2
    q, k, v = x.split((keys, keys, values), dim=-1)
    q, k = (part.unflatten(-1, (-1, size)) for part in (q, k))
    q, k = (part * torch.rsqrt(part.square().sum(-1, keepdim=True) + LENGTH_EPS) for part in (q, k))
    repeats = heads // (keys // size)
    q, k = (part.repeat_interleave(repeats, dim=-2) for part in (q * size**-0.5, k))
    return q, k, v.unflatten(-1, (heads, width))


def recurrent_step(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The rule's definition: q, k [R, Hv, K], v [R, Hv, V], decay and beta [R, Hv], memory [R, Hv, K, V]. Returns the output
    [R, Hv, V] and the new memory."""
    memory = memory * decay.exp()[..., None, None]
    correction = (v - (memory * k[..., None]).sum(-2)) * beta[..., None]
    memory = memory + k[..., None] * correction[..., None, :]
    return (memory * q[..., None]).sum(-2), memory


def walk(
    added: Tensor, read: Tensor, written: Tensor, fade: Tensor, memory: Tensor, more: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """D_n = added_n - read_n M and M <- fade_n M + written_n^T D_n, from the first chunk to the last. With `more`, the
    gradient's walk from the last to the first: D_n = added_n + read_n M and M <- fade_n M - written_n^T D_n + more_n. Returns
    D, the M that each chunk has met, and the last one."""
    chunks = range(added.shape[1])
    corrections, memories = torch.empty_like(added), memory.new_empty(*fade.shape, *memory.shape[-2:])
    sign = -1 if more is None else 1
    for n in chunks if more is None else reversed(chunks):
        memories[:, n] = memory
        corrections[:, n] = torch.add(added[:, n], read[:, n] @ memory, alpha=sign)
        memory = torch.sub(memory * fade[:, n, :, None, None], written[:, n].mT @ corrections[:, n], alpha=sign)
        if more is not None:
            memory += more[:, n]
    return corrections, memories, memory


def fading(total: Tensor) -> Tensor:
    """exp(G_i - G_j) for j <= i, and 0 where exp of a positive difference could overflow: [B, N, H, C, C]."""
    later = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool, device=total.device).triu(1)
    return (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")).exp()


def solve(k: Tensor, v: Tensor, total: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U = T beta V, W = T beta exp(G) K and Y = exp(G_C - G) K, and T = (1 + L)^-1, L_ij = beta_i exp(G_i - G_j) k_i k_j for
    j < i."""
    k, v, beta = k.transpose(2, 3), v.transpose(2, 3), beta[..., None]
    system = (k @ k.mT * fading(total) * beta).tril(-1)
    one = torch.eye(system.shape[-1], dtype=k.dtype, device=k.device)
    inverse = torch.linalg.solve_triangular(system, one, upper=False, unitriangular=True)
    faded, kept = total.exp()[..., None], (total[..., -1:] - total).exp()[..., None]
    return inverse @ (v * beta), inverse @ (k * (beta * faded)), k * kept, inverse


def solve_backward(
    k: Tensor,
    v: Tensor,
    total: Tensor,
    beta: Tensor,
    values: Tensor,
    keys: Tensor,
    inverse: Tensor,
    d_values: Tensor,
    d_keys: Tensor,
    d_kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d_k, d_v, d_total, d_beta."""
    k, v, b = k.transpose(2, 3), v.transpose(2, 3), beta[..., None]
    faded = total.exp()
    of_v, of_k = inverse.mT @ d_values, inverse.mT @ d_keys  # of beta V and of beta exp(G) K
    of_system = -((of_v @ values.mT + of_k @ keys.mT) * fading(total)).tril(-1)
    of_beta = of_system * (k @ k.mT)
    of_total = of_beta * b
    of_system = of_system * b
    of_weight = (of_k * k).sum(-1)
    of_kept = d_kept * (total[..., -1:] - total).exp()[..., None]
    d_k = (of_system + of_system.mT) @ k + of_k * (b * faded[..., None]) + of_kept
    of_rest = (of_kept * k).sum(-1)
    d_total = of_total.sum(-1) - of_total.sum(-2) + beta * faded * of_weight - of_rest
    d_total[..., -1] += of_rest.sum(-1)
    d_beta = (of_v * v).sum(-1) + of_beta.sum(-1) + faded * of_weight
    return d_k.transpose(2, 3), (of_v * b).transpose(2, 3), d_total, d_beta


def read(q: Tensor, k: Tensor, total: Tensor, corrections: Tensor, memories: Tensor) -> tuple[Tensor, Tensor]:
    """exp(G) Q M + P D [B, N, C, H, V], and P_ij = exp(G_i - G_j) q_i k_j for j <= i."""
    q, k = q.transpose(2, 3), k.transpose(2, 3)
    scores = q @ k.mT * fading(total)
    found = (q * total.exp()[..., None]) @ memories + scores @ corrections
    return found.transpose(2, 3), scores


def read_backward(
    q: Tensor, k: Tensor, total: Tensor, corrections: Tensor, memories: Tensor, scores: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """d_q, d_k, d_total, d_corrections, d_memories."""
    q, k, d_out = q.transpose(2, 3), k.transpose(2, 3), d_out.transpose(2, 3)
    faded = total.exp()[..., None]
    of_scores = d_out @ corrections.mT
    of_total = of_scores * scores
    of_scores = of_scores * fading(total)
    of_q = d_out @ memories.mT * faded
    d_total = of_total.sum(-1) - of_total.sum(-2) + (of_q * q).sum(-1)
    d_q, d_k = (of_q + of_scores @ k).transpose(2, 3), (of_scores.mT @ q).transpose(2, 3)
    return d_q, d_k, d_total, scores.mT @ d_out, (q * faded).mT @ d_out
