"""The rewards: how much each sampled completion is worth, from its length and its correctness alone; and the advantages,
which hold a reward against those of the other samples.

Pure functions of [P, K] tables: P problems, K samples of each. `lengths` are generated tokens, end-of-text included, at
least 1; `correct` is bool, or 0 and 1; `limits` [P] are tokens. Every reward is float32 [P, K] and raises ValueError
where the tables differ in shape. The length-harmonizing reward itself is a kernel
(o1core.kernels.length_harmonizing_advantage), so that the same code runs on a GPU. Rewards that remember earlier rounds
are in rewards_over_rounds.py.
"""

import torch
from torch import Tensor

from .kernels import length_harmonizing_advantage

REWARDS = (
    *("length-harmonizing", "correct-only", "truncation", "arora-zanette", "kimi", "l1-exact", "l1-max"),
    *("alp", "shorter-better", "smart-thinker", "prime-rl", "overlong", "grpo-lambda", "accuracy"),
)
WITH_LAMBDA = ("length-harmonizing", "correct-only", "shorter-better", "grpo-lambda")
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
        case "alp":
            return alp(lengths, correct, limits, alpha)
        case "shorter-better":
            return shorter_better(lengths, correct, lam, alpha)
        case "smart-thinker":
            return smart_thinker(lengths, correct)
        case "prime-rl":
            return prime_rl(lengths, correct, alpha)
        case "overlong":
            return overlong(lengths, correct, limits, alpha)
        case "grpo-lambda":
            return grpo_lambda(lengths, correct, lam, alpha)
        case "accuracy":
            return check(lengths, correct)[1]
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


def alp(lengths: Tensor, correct: Tensor, limits: Tensor, alpha: float) -> Tensor:
    """R = A - alpha max(p, 1 / K) L / limit, p being a row's mean accuracy: ALP, arXiv 2506.05256. Tokens cost more where
    the problem is easy for the model."""
    lengths, right = check(lengths, correct)
    solved = right.mean(1, keepdim=True).clamp(min=1 / right.shape[1])
    return right - alpha * solved * lengths / limits[:, None]


def shorter_better(lengths: Tensor, correct: Tensor, lam: float, alpha: float) -> Tensor:
    """R = lam A - alpha |L - L*|, L* being the length of a row's shortest right answer, or its mean length where none is
    right: ShorterBetter, arXiv 2504.21370. alpha is per token."""
    lengths, right = check(lengths, correct)
    shortest = torch.where(right > 0, lengths, torch.inf).amin(1, keepdim=True)
    target = torch.where(shortest.isfinite(), shortest, lengths.mean(1, keepdim=True))
    return lam * right - alpha * (lengths - target).abs()


def smart_thinker(lengths: Tensor, correct: Tensor) -> Tensor:
    """R = A (1 - a max(0, L - L_opt)): SmartThinker, arXiv 2603.08000.

    With m, s^2 the mean and variance of a row's lengths and m_c, s_c^2 those of its right answers,
    L_opt = (s_c^2 m - s^2 m_c) / (s_c^2 - s^2), cut to the row's shortest and longest (m_c where the variances are equal).
    a = (1 - p) / (largest penalty of a right answer - mean penalty of the row), so that no right answer earns less than
    the row's mean; 0 where all are right, as in the released code, or none is too long.
    """
    lengths, right = check(lengths, correct)
    mean, variance = lengths.mean(1, keepdim=True), lengths.var(1, correction=0, keepdim=True)
    right_mean, right_std = moments_of_right(lengths, right)
    gap = right_std**2 - variance
    best = torch.where(
        gap != 0, (right_std**2 * mean - variance * right_mean) / torch.where(gap != 0, gap, 1), right_mean
    )
    best = best.clamp(lengths.amin(1, keepdim=True), lengths.amax(1, keepdim=True))
    penalty = right * (lengths - best).clamp(min=0)
    spread = penalty.amax(1, keepdim=True) - penalty.mean(1, keepdim=True)
    a = torch.where(spread > 0, (1 - right.mean(1, keepdim=True)) / spread.clamp(min=1e-6), 0.0)
    return right - a * penalty


def prime_rl(lengths: Tensor, correct: Tensor, alpha: float) -> Tensor:
    """R = A - alpha p L / max L, p and max L being a row's mean accuracy and longest length: the length penalty of
    prime-rl (github.com/PrimeIntellect-ai/prime-rl, algo/grpo.py)."""
    lengths, right = check(lengths, correct)
    return right - alpha * right.mean(1, keepdim=True) * lengths / lengths.amax(1, keepdim=True)


def overlong(lengths: Tensor, correct: Tensor, limits: Tensor, alpha: float) -> Tensor:
    """R = A + penalty: soft overlong punishment of DAPO, arXiv 2503.14476, eq. 13. The penalty is 0 up to
    (1 - alpha) limit, falls to -1 at the limit, and stays there. alpha: the fraction of the limit that is its margin."""
    lengths, right = check(lengths, correct)
    margin = (alpha * limits[:, None]).clamp(min=1e-6)
    return right + ((limits[:, None] - margin - lengths) / margin).clamp(-1, 0)


def grpo_lambda(lengths: Tensor, correct: Tensor, lam: float, alpha: float) -> Tensor:
    """`arora_zanette` in the rows of the batch that are solved most often, A elsewhere: GRPO-lambda, arXiv 2505.18086.

    lam: the share of rows, from 0 to 1, in which length counts; at equal accuracies the earlier rows come first. It
    ends where accuracy is 0.
    """
    _, right = check(lengths, correct)
    solved = right.mean(1)
    order = solved.argsort(descending=True, stable=True)
    counts = torch.zeros(len(solved), dtype=torch.bool, device=solved.device)
    counts[order[: round(min(lam, 1.0) * len(solved))]] = True
    return torch.where((counts & (solved > 0))[:, None], arora_zanette(lengths, correct, alpha), right)


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
