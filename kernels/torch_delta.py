"""The gated delta rule in torch: its decode step, number by number, and its walk over chunks."""

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
