"""The rewards: how much each sampled completion is worth, from its length and its correctness alone; and the advantages,
which hold a reward against those of the other samples.

Pure functions of [P, K] tables: P problems, K samples of each. `lengths` are generated tokens, end-of-text included, at
least 1; `correct` is bool, or 0 and 1; `limits` [P] are tokens. Every reward is float32 [P, K] and raises ValueError
where the tables differ in shape. The length-harmonizing reward itself is a kernel
(o1core.kernels.length_harmonizing_advantage), so that the same code runs on a GPU.
"""

import torch
from torch import Tensor

from .kernels import length_harmonizing_advantage

REWARDS = ("length-harmonizing", "correct-only", "truncation", "arora-zanette", "kimi", "l1-exact", "l1-max")
WITH_LAMBDA = ("length-harmonizing", "correct-only")
BUDGETED = ("l1-exact", "l1-max")  # their limits are budgets stated in the prompt
ADVANTAGES = ("reward", "z-score", "centred", "rloo", "group", "batch")


def reward(kind: str, lengths: Tensor, correct: Tensor, limits: Tensor, lam: float, alpha: float) -> Tensor:
    """One of the REWARDS. Each takes of the settings what its formula has."""
    match kind:
        case "length-harmonizing":
            return length_harmonizing(lengths, correct, lam)
        case "correct-only":
            return correct_only(lengths, correct, lam)
        case "truncation":
            return truncation(lengths, correct, limits)
        case "arora-zanette":
            return arora_zanette(lengths, correct, alpha)
        case "kimi":
            return kimi(lengths, correct, alpha)
        case "l1-exact":
            return l1_exact(lengths, correct, limits, alpha)
        case "l1-max":
            return l1_max(lengths, correct, limits, alpha)
    raise ValueError(f"{kind} is none of {REWARDS}")


def length_harmonizing(lengths: Tensor, correct: Tensor, lam: float) -> Tensor:
    """R = L_ref / L - 1 + lam (A - A_ref): O1-Pruner, arXiv 2501.12570, section 3.

    L_ref and A_ref are the means of a row.

    The length term has no upper bound: where the mean is 40 tokens, a wrong answer of 4 earns 9 - 2 A_ref. A model that
    can answer without thinking is taught to guess. `clip_reward` bounds it.
    """
    check(lengths, correct)
    group = torch.arange(lengths.shape[0], device=lengths.device).repeat_interleave(lengths.shape[1])
    return length_harmonizing_advantage(lengths.reshape(-1), correct.reshape(-1), group, lam).view(lengths.shape)


def correct_only(lengths: Tensor, correct: Tensor, lam: float) -> Tensor:
    """R = A (L_right / L - 1) + lam (A - A_ref): the length-harmonizing reward with its length term among right answers
    only, L_right being the mean length of a row's right ones. Our own reading of what O1-Pruner's successors share
    (LC-R1, arXiv 2506.14755, among them): to be short earns a wrong answer nothing, which closes the paper's hole.
    """
    lengths, right = check(lengths, correct)
    mean, _ = moments_of_right(lengths, right)
    return right * (mean / lengths - 1) + lam * (right - right.mean(1, keepdim=True))


def truncation(lengths: Tensor, correct: Tensor, limits: Tensor) -> Tensor:
    """R = A [L <= limit]: the plain length penalty of DLER, arXiv 2510.15110: what is not finished in time is wrong."""
    lengths, right = check(lengths, correct)
    return right * (lengths <= limits[:, None])


def arora_zanette(lengths: Tensor, correct: Tensor, alpha: float) -> Tensor:
    """R = A (1 - alpha sigmoid((L - mean) / std)), mean and std over the right answers of a row: arXiv 2502.04463.

    Where the right answers are all of one length, (L - mean) / std is 0.
    """
    lengths, right = check(lengths, correct)
    mean, std = moments_of_right(lengths, right)
    z = torch.where(std > 0, (lengths - mean) / std.clamp(min=1e-6), 0.0)
    return right * (1 - alpha * z.sigmoid())


def kimi(lengths: Tensor, correct: Tensor, alpha: float) -> Tensor:
    """R = A + alpha l, l = 0.5 - (L - min) / (max - min) over a row, at most 0 for wrong answers: Kimi k1.5, arXiv
    2501.12599. l is 0 where all lengths of a row are equal."""
    lengths, right = check(lengths, correct)
    low, high = lengths.amin(1, keepdim=True), lengths.amax(1, keepdim=True)
    length = torch.where(high > low, 0.5 - (lengths - low) / (high - low).clamp(min=1), 0.0)
    return right + alpha * torch.where(right > 0, length, length.clamp(max=0.0))


def l1_exact(lengths: Tensor, correct: Tensor, limits: Tensor, alpha: float) -> Tensor:
    """R = A - alpha |L - budget|: L1-Exact (LCPO), arXiv 2503.04697, eq. 1. The prompt states the budget."""
    lengths, right = check(lengths, correct)
    return right - alpha * (lengths - limits[:, None]).abs()


def l1_max(lengths: Tensor, correct: Tensor, limits: Tensor, alpha: float) -> Tensor:
    """R = A clip(alpha (budget - L) + 0.5, 0, 1): L1-Max, arXiv 2503.04697, eq. 2."""
    lengths, right = check(lengths, correct)
    return right * (alpha * (limits[:, None] - lengths) + 0.5).clamp(0, 1)


def check(lengths: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Both tables as float32."""
    if lengths.dim() != 2 or lengths.shape != correct.shape:
        raise ValueError(f"lengths {list(lengths.shape)} and correct {list(correct.shape)} must both be [P, K]")
    return lengths.float(), correct.float()


def moments_of_right(lengths: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [P, 1] of the lengths of right answers; 0 where there is none."""
    count = right.sum(1, keepdim=True).clamp(min=1)
    mean = (right * lengths).sum(1, keepdim=True) / count
    return mean, ((right * (lengths - mean) ** 2).sum(1, keepdim=True) / count).sqrt()


def clip_reward(reward: Tensor, low: float | None = -2.0, high: float | None = 4.0) -> Tensor:
    """Bound a reward of any shape. The official code's bounds are the defaults; the paper has none."""
    return reward if low is None and high is None else reward.clamp(low, high)


def advantage(kind: str, reward: Tensor) -> Tensor:
    """One of the ADVANTAGES but "z-score" (`standardise`, which is taken over what was picked) of a reward [P, K].

    reward   as it is: O1-Pruner, whose reward is taken against the reference already
    centred  less the row's mean (Kimi k1.5's policy gradient; Dr. GRPO, arXiv 2503.20783)
    rloo     less the mean of the row's others (arXiv 2402.14740)
    group    centred, over the row's standard deviation (GRPO, arXiv 2402.03300); 0 where the row is even
    batch    centred, over the standard deviation of the whole table (DLER; REINFORCE++, arXiv 2501.03262)
    """
    centred = reward - reward.mean(1, keepdim=True)
    samples = reward.shape[1]
    match kind:
        case "reward" | "z-score":
            return reward
        case "centred":
            return centred
        case "rloo":
            return centred * samples / (samples - 1)
        case "group":
            spread = reward.std(1, correction=0, keepdim=True)
            return torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6), 0.0)
        case "batch":
            return standardise(centred)
    raise ValueError(f"{kind} is none of {ADVANTAGES}")


def standardise(reward: Tensor) -> Tensor:
    """z-scores over the whole set, as the official code takes them; zeros where all rewards are equal."""
    spread = reward.std(correction=0)
    return (reward - reward.mean()) / spread if spread > 1e-6 else torch.zeros_like(reward)
