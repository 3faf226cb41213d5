"""Rewards that remember earlier rounds of sampling: HAPO, A-DLP and LEAD, and how their memory follows a round.

Pure functions of [P, K] tables, as in rewards.py: P problems, K samples of each; `lengths` are tokens, `correct` is bool,
or 0 and 1. Their papers update the memory after each optimiser step on fresh samples; here a round is such a step, because
all samples of a round are drawn from one policy. training/memory.py keeps the memory and saves it with the run.
"""

import math

import torch
from torch import Tensor

from .rewards import advantage, check, moments_of_right

OVER_ROUNDS = ("lead", "hapo", "a-dlp")
LEAST_SHARE = 0.3  # of accuracy in LEAD's advantage


def hapo(lengths: Tensor, correct: Tensor, shortest: Tensor, alpha: float) -> Tensor:
    """R = A + alpha f, with f = cos(min(L / h, 2) pi / 2), at least -0.7 for right answers and at most 0 for wrong ones:
    HAPO, arXiv 2505.11225. float32 [P, K].

    shortest: h, float32 [P], the length of the problem's shortest right answer of all earlier rounds, infinite where there
    is none yet; there f is 0. So the first round counts accuracy alone.
    """
    lengths, right = check(lengths, correct)
    length = ((lengths / shortest[:, None]).clamp(max=2) * (math.pi / 2)).cos()
    length = torch.where(right > 0, length.clamp(min=-0.7), length.clamp(max=0.0))
    return right + alpha * torch.where(shortest.isfinite()[:, None], length, 0.0)


def shortest_right(lengths: Tensor, correct: Tensor) -> Tensor:
    """float32 [P]: the length of each problem's shortest right answer, infinite where none is right."""
    lengths, right = check(lengths, correct)
    return torch.where(right > 0, lengths, torch.inf).amin(1)


def a_dlp(lengths: Tensor, correct: Tensor, penalty: float) -> Tensor:
    """R = A - penalty L: the direct length penalty of A-DLP, arXiv 2505.18298. penalty is per token. float32 [P, K]."""
    lengths, right = check(lengths, correct)
    return right - penalty * lengths


def a_dlp_penalty(penalty: float, accuracy: float, reference: float, rate: float) -> float:
    """The penalty of the next round: max(0, penalty + rate (accuracy - reference)) (A-DLP, arXiv 2505.18298, Eq. 3)."""
    return max(0.0, penalty + rate * (accuracy - reference))


def lead(lengths: Tensor, correct: Tensor, longest: Tensor, shortest: float, share: float) -> Tensor:
    """share z(A) + (1 - share) z(E), z being the z-score within a row (0 where the row is even): LEAD, arXiv 2605.09806.
    float32 [P, K], which the advantage "batch" then divides by its spread over all rows, as LEAD does.

    E = max(-1, 1 - |L - L*| / L*) is the efficiency around the target L* (lead_target). share: lead_share's, at least 0.3.
    """
    _, right = check(lengths, correct)
    efficiency = lead_efficiency(lengths, lead_target(lengths, correct, longest, shortest))
    share = max(share, LEAST_SHARE)
    return share * advantage("group", right) + (1 - share) * advantage("group", efficiency)


def lead_target(lengths: Tensor, correct: Tensor, longest: Tensor, shortest: float) -> Tensor:
    """L*, float32 [P]: the mean length of a row's right answers, cut to [shortest, longest]; longest where none is right."""
    lengths, right = check(lengths, correct)
    mean = moments_of_right(lengths, right)[0][:, 0]
    return torch.where(right.any(1), mean.clamp(min=shortest).minimum(longest), longest)


def lead_efficiency(lengths: Tensor, target: Tensor) -> Tensor:
    """max(-1, 1 - |L - L*| / L*), float32 [P, K]."""
    return (1 - (lengths.float() - target[:, None]).abs() / target[:, None]).clamp(min=-1)


def lead_share(lengths: Tensor, correct: Tensor, longest: Tensor, shortest: float, before: float, rate: float) -> float:
    """The share of accuracy after a round: (1 - rate) before + rate D_c / (D_c + D_e) (LEAD, arXiv 2605.09806).

    D is a reward's coefficient of variation times its headroom: D_c of A over all samples, with headroom 1 - mean, and D_e
    of the efficiency E over the right ones, with headroom (1 - mean) / 2. Their mean is that of the rows' means, their
    variance the mean of the rows' variances plus the variance of the rows' means. D_e is 0 where nothing is right, and the
    share stays as it is where both are 0. before: 1/2 before the first round; rate: 1 - 0.95 in the paper.
    """
    _, right = check(lengths, correct)
    efficiency = lead_efficiency(lengths, lead_target(lengths, correct, longest, shortest))
    mean, spread = mean_and_spread(right, torch.ones_like(right))
    of_accuracy = spread / max(mean, 1e-8) * (1 - mean)
    of_efficiency = 0.0
    solved = right.any(1)
    if solved.any():
        mean, spread = mean_and_spread(efficiency[solved], right[solved])
        of_efficiency = spread / max(abs(mean), 1e-8) * (1 - mean) / 2
    both = of_accuracy + of_efficiency
    return before if both == 0 else (1 - rate) * before + rate * of_accuracy / both


def mean_and_spread(values: Tensor, counted: Tensor) -> tuple[float, float]:
    """The mean of the rows' means, and the standard deviation within and between rows, of the counted values (0 and 1, at
    least one a row). values, counted: [P, K]."""
    values, counted = values.double(), counted.double()
    count = counted.sum(1, keepdim=True)
    means = (values * counted).sum(1, keepdim=True) / count
    within = (counted * (values - means) ** 2).sum(1, keepdim=True) / count
    return means.mean().item(), math.sqrt(within.mean().item() + means.var(correction=0).item())
