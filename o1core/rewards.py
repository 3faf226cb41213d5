"""The rewards: how much each sampled completion is worth, from its length and its correctness alone.

Pure functions of [P, K] tables: P problems, K samples of each. The length-harmonizing reward itself is a kernel
(o1core.kernels.length_harmonizing_advantage), so that the same code runs on a GPU.
"""

import torch
from torch import Tensor

from .kernels import length_harmonizing_advantage


def length_harmonizing(lengths: Tensor, correct: Tensor, lam: float) -> Tensor:
    """R = L_ref / L - 1 + lam (A - A_ref): O1-Pruner, arXiv 2501.12570, section 3.

    lengths [P, K]: generated tokens, end-of-text included, at least 1. correct [P, K]: bool, or 0 and 1. L_ref and
    A_ref are the means of a row. Returns float32 [P, K]. Raises ValueError where the tables differ in shape.

    The length term has no upper bound: where the mean is 40 tokens, a wrong answer of 4 earns 9 - 2 A_ref. A model that
    can answer without thinking is taught to guess. `clip_reward` bounds it.
    """
    if lengths.dim() != 2 or lengths.shape != correct.shape:
        raise ValueError(f"lengths {list(lengths.shape)} and correct {list(correct.shape)} must both be [P, K]")
    group = torch.arange(lengths.shape[0], device=lengths.device).repeat_interleave(lengths.shape[1])
    return length_harmonizing_advantage(lengths.reshape(-1), correct.reshape(-1), group, lam).view(lengths.shape)


def clip_reward(reward: Tensor, low: float = -2.0, high: float = 4.0) -> Tensor:
    """Bound a reward of any shape. The official code's bounds are the defaults; the paper has none."""
    return reward.clamp(low, high)


def standardise(reward: Tensor) -> Tensor:
    """z-scores over the whole set, as the official code takes them; zeros where all rewards are equal."""
    spread = reward.std(correction=0)
    return (reward - reward.mean()) / spread if spread > 0 else torch.zeros_like(reward)
