"""The length-harmonizing reward in Triton: lengths and correctness go in, advantages come out (arXiv 2501.12570).

    R_i = L_ref / L_i - 1 + lam (A_i - A_ref)          L_ref, A_ref: means of L and A over the samples of i's group

One program a block of samples; it compares their groups with everyone's and adds up what matches. Groups may lie in any
order and have any ids. That is S^2 comparisons, microseconds for the thousands of samples of a batch, and needs neither
a sort nor an atomic.
"""

import torch
import triton
import triton.language as tl

from . import configs


@triton.jit
def advantage_kernel(
    lengths: tl.tensor,
    correct: tl.tensor,
    group: tl.tensor,
    advantage: tl.tensor,
    samples: tl.tensor,
    lam: tl.float64,
    BLOCK_S: tl.constexpr,
    BLOCK_G: tl.constexpr,
) -> None:
    """BLOCK_S samples -> their advantage, in float64: sums of lengths are exact and the result is rounded once."""
    sample = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    mine = sample < samples
    own_group = tl.load(group + sample, mask=mine, other=-1)
    size = tl.zeros((BLOCK_S,), tl.float64)
    length_sum = tl.zeros((BLOCK_S,), tl.float64)
    correct_sum = tl.zeros((BLOCK_S,), tl.float64)
    for start in range(0, samples, BLOCK_G):
        other = start + tl.arange(0, BLOCK_G)
        real = other < samples
        same = own_group[:, None] == tl.load(group + other, mask=real, other=-2)[None, :]
        length = tl.load(lengths + other, mask=real, other=0).to(tl.float64)
        right = tl.load(correct + other, mask=real, other=0).to(tl.float64)
        size += tl.sum(same.to(tl.float64), 1)
        length_sum += tl.sum(tl.where(same, length[None, :], 0.0), 1)
        correct_sum += tl.sum(tl.where(same, right[None, :], 0.0), 1)
    own_length = tl.load(lengths + sample, mask=mine, other=1).to(tl.float64)
    own_correct = tl.load(correct + sample, mask=mine, other=0).to(tl.float64)
    # A lane past the end has no group: it divides 0 by 0 and is not stored.
    reward = length_sum / size / own_length - 1 + lam * (own_correct - correct_sum / size)
    tl.store(advantage + sample, reward.to(tl.float32), mask=mine)


def length_harmonizing_advantage(
    lengths: torch.Tensor, correct: torch.Tensor, group: torch.Tensor, lam: float
) -> torch.Tensor:
    """lengths [S], correct [S] bool, int or float, group [S] int32 or int64 -> advantage [S] float32."""
    samples = len(lengths)
    launch = configs.elementwise(configs.ADVANTAGE, lengths.device)
    advantage = torch.empty(samples, dtype=torch.float32, device=lengths.device)
    if samples:
        advantage_kernel[(triton.cdiv(samples, launch.constants["BLOCK_S"]),)](
            lengths.contiguous(),
            correct.contiguous(),
            group.contiguous(),
            advantage,
            samples,
            float(lam),
            **launch.options(),
        )
    return advantage
