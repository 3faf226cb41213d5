"""The rewards: how much each sampled completion is worth; and the advantages, which hold a reward against the others.

A reward is a function of [P, K] tables: P problems, K samples of each. It takes `lengths` (generated tokens, end-of-text
included, at least 1) and `correct` (0 and 1), both float32, and by the name of its parameters whatever else it needs:

    limits              float32 [P] tokens: the budgets that the prompts state, or --length-limit
    truncated           bool [P, K]: ran out of tokens
    problems            the P problems' ids
    lam, alpha, length_floor, memory_rate, accuracy_reference: the settings of these names
    state               what it returned last round, a JSON object; {} in the first round

It returns float32 [P, K]; one that takes `state` returns (reward, state for the next round), and the state is saved with
the run. A reward of your own, --reward FILE.py:function, is the same thing; REWARDS are ours by their names. They raise
ValueError where the tables differ in shape. The papers update a state after each optimiser step on fresh samples. Here a
round is such a step, because all samples of a round are drawn from one policy.

The length-harmonizing reward itself comes from o1core.kernels, so that the same code runs on a GPU.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .choices import ADVANTAGES
from .errors import UserError
from .kernels import length_harmonizing_advantage

State = dict[str, Any]
Reward = Callable[..., Tensor | tuple[Tensor, State]]

WITH_LAMBDA = ("length-harmonizing", "correct-only", "shorter-better", "grpo-lambda", "drpo")
LEAST_SHARE = 0.3  # of accuracy in LEAD's advantage


def score(function: Reward, named: Mapping[str, Any], name: str = "the reward") -> tuple[Tensor, State]:
    """Call a reward with those of `named` that its parameters ask for. Returns (float32 [P, K], the next round's state).

    named: lengths, correct and the rest of the list above. name: of the reward, for messages. Raises UserError where it
    asks for something else, raises, or returns anything but finite numbers of the tables' shape.
    """
    asked = inspect.signature(function).parameters
    if unknown := [
        n for n, p in asked.items() if n not in named and p.default is p.empty and p.kind < p.VAR_POSITIONAL
    ]:
        raise UserError(f"--reward {name}: asks for {unknown[0]!r}; a reward may have {', '.join(named)}")
    try:
        found = function(**{n: named[n] for n in asked if n in named})
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"--reward {name}: {reason}") from error
    state = named.get("state") or {}
    if isinstance(found, tuple) and len(found) == 2:
        found, state = found
    shape = list(named["lengths"].shape)
    if not isinstance(found, Tensor) or list(found.shape) != shape:
        what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"--reward {name}: returns {what}; it must be a tensor {shape}, one number a sample")
    try:
        json.dumps(state, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"--reward {name}: its state cannot be saved as JSON: {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"--reward {name}: its state is {type(state).__name__}; it must be a dict")
    if not found.isfinite().all():
        raise UserError(f"--reward {name}: returns numbers that are not finite")
    return found.float(), state


def reward(kind: str, lengths: Tensor, correct: Tensor, limits: Tensor, lam: float, alpha: float) -> Tensor:
    """One of the REWARDS by its name, with what an empty state gives. float32 [P, K]."""
    check(lengths, correct)
    if kind not in REWARDS:
        raise ValueError(f"{kind} is none of {tuple(REWARDS)}")
    named = {"lengths": lengths, "correct": correct, "limits": limits, "lam": lam, "alpha": alpha, "state": {}}
    named |= {"problems": list(map(str, range(len(lengths)))), "length_floor": 1.0, "memory_rate": 0.05}
    return score(REWARDS[kind], named, kind)[0]


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
    L_opt = (s_c^2 m - s^2 m_c) / (s_c^2 - s^2), cut to the row's shortest and longest. Where s_c^2 is at least s^2 that
    point is a minimum of the two normal densities' ratio and no optimum: there L_opt is the shortest, as in the released code.
    a = (1 - p) / (largest penalty of a right answer - mean penalty of the row), so that no right answer earns less than
    the row's mean; 0 where all are right, as in the released code, or none is too long.
    """
    lengths, right = (t.double() for t in check(lengths, correct))  # in float32 a penalty of 0 comes out as 1e-5
    mean, variance = lengths.mean(1, keepdim=True), lengths.var(1, correction=0, keepdim=True)
    right_mean, right_std = moments_of_right(lengths, right)
    gap = variance - right_std**2
    best = (variance * right_mean - right_std**2 * mean) / torch.where(gap > 0, gap, 1)
    shortest = lengths.amin(1, keepdim=True)
    best = torch.where(gap > 0, best, shortest).clamp(shortest, lengths.amax(1, keepdim=True))
    penalty = right * (lengths - best).clamp(min=0)
    spread = penalty.amax(1, keepdim=True) - penalty.mean(1, keepdim=True)
    a = torch.where(spread > 1e-6, (1 - right.mean(1, keepdim=True)) / spread.clamp(min=1e-6), 0.0)
    return (right - a * penalty).float()


def prime_rl(lengths: Tensor, correct: Tensor, alpha: float) -> Tensor:
    """R = A - alpha p L / max L, p and max L being a row's mean accuracy and longest length: the length penalty of
    prime-rl (github.com/PrimeIntellect-ai/prime-rl, algo/grpo.py)."""
    lengths, right = check(lengths, correct)
    return right - alpha * right.mean(1, keepdim=True) * lengths / lengths.amax(1, keepdim=True)


def prime_rl_gate(lengths: Tensor, correct: Tensor) -> Tensor:
    """R = A (1 + clip(1 - L / L_right, 0, 1)), L_right being the mean length of a row's right answers: a right answer that
    is shorter than the usual one earns up to twice as much, and none earns less (github.com/PrimeIntellect-ai/prime-rl,
    pull request 2265, in its code from April to June 2026)."""
    lengths, right = check(lengths, correct)
    mean, _ = moments_of_right(lengths, right)
    return right * (1 + (1 - lengths / mean.clamp(min=1)).clamp(0, 1))


def dot(lengths: Tensor, correct: Tensor) -> Tensor:
    """R = A, but 0 for the outliers of a solved problem: where all K answers of a row are right, those that are 32 tokens or
    more above T = floor(mean + 3 std), std with K - 1: dynamic outlier truncation, arXiv 2601.03969.

    The released code cuts an outlier to T tokens and grades what is left. Without its end it has no answer, which is wrong
    here as everywhere; the whole of it is trained on, and not its first T tokens alone. Of K numbers none lies more than
    (K - 1) / sqrt(K) deviations above the mean: with ten samples or fewer there are no outliers.
    """
    lengths, right = check(lengths, correct)
    exact = lengths.double()
    limit = (exact.mean(1, keepdim=True) + 3 * exact.std(1, keepdim=True)).floor()
    return right * ~(right.bool().all(1, keepdim=True) & (exact - limit >= 32))


def drpo(lengths: Tensor, correct: Tensor, limits: Tensor, lam: float) -> Tensor:
    """R = K w for right answers, w being the softmax of (1 - L / C) / lam over a row's right ones; -K / n for its n wrong
    ones, and 0 where none is right: DRPO, arXiv 2510.04474, C being the most tokens allowed.

    The length moves weight among right answers alone, so that none is pushed away for being long. Taken as an advantage it
    gives the gradient of the paper's first term less the wrong ones' mean score, to which its log-mean-exp over them comes
    as its temperature grows; the paper's constraint on the KL is the surrogate's clip here.
    """
    lengths, right = check(lengths, correct)
    short = (1 - lengths / limits[:, None]) / max(lam, 1e-6)
    weight = torch.where(right > 0, short, -torch.inf).softmax(1)
    wrong = (1 - right) / (1 - right).sum(1, keepdim=True).clamp(min=1)
    earned = lengths.shape[1] * torch.where(right > 0, weight, -wrong)
    return torch.where(right.any(1, keepdim=True), earned, 0.0)


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


def accuracy(lengths: Tensor, correct: Tensor) -> Tensor:
    """R = A: what GRPO was made for (arXiv 2402.03300), without a word on length."""
    return check(lengths, correct)[1]


def hapo(lengths: Tensor, correct: Tensor, problems: list[str], state: State, alpha: float) -> tuple[Tensor, State]:
    """R = A + alpha f, with f = cos(min(L / h, 2) pi / 2), at least -0.7 for right answers and at most 0 for wrong ones:
    HAPO, arXiv 2505.11225.

    h is the length of the problem's shortest right answer of all earlier rounds, state["shortest"] by problem. Where there
    is none yet, f is 0, so the first round counts accuracy alone.
    """
    lengths, right = check(lengths, correct)
    known = state.get("shortest", {})
    shortest = torch.tensor([known.get(problem, torch.inf) for problem in problems], dtype=torch.float32)
    length = ((lengths / shortest[:, None]).clamp(max=2) * (math.pi / 2)).cos()
    length = torch.where(right > 0, length.clamp(min=-0.7), length.clamp(max=0.0))
    earned = right + alpha * torch.where(shortest.isfinite()[:, None], length, 0.0)
    now = torch.where(right > 0, lengths, torch.inf).amin(1).minimum(shortest).tolist()
    known = known | {problem: int(tokens) for problem, tokens in zip(problems, now) if tokens != torch.inf}
    return earned, {"shortest": known} if known else {}


def a_dlp(
    lengths: Tensor,
    correct: Tensor,
    state: State,
    alpha: float,
    memory_rate: float,
    accuracy_reference: float | None = None,
) -> tuple[Tensor, State]:
    """R = A - penalty L: the direct length penalty of A-DLP, arXiv 2505.18298.

    The penalty, per token, is alpha in the first round; then max(0, penalty + rate (accuracy - reference)), Eq. 3, the
    reference being accuracy_reference or else the first round's accuracy. state: "penalty" and "reference".
    """
    lengths, right = check(lengths, correct)
    penalty, accuracy = state.get("penalty", alpha), correct.double().mean().item()
    reference = state.get("reference", accuracy if accuracy_reference is None else accuracy_reference)
    later = max(0.0, penalty + memory_rate * (accuracy - reference))
    return right - penalty * lengths, {"penalty": later, "reference": reference}


def lead(
    lengths: Tensor, correct: Tensor, limits: Tensor, state: State, length_floor: float, memory_rate: float
) -> tuple[Tensor, State]:
    """share z(A) + (1 - share) z(E), z being the z-score within a row (0 where the row is even): LEAD, arXiv 2605.09806.

    E = max(-1, 1 - |L - L*| / L*) is the efficiency around the target L* (lead_target). The advantage "batch" then divides by
    the spread over all rows, as LEAD does. share is at least 0.3; it follows each round by lead_share, this one included.
    """
    _, right = check(lengths, correct)
    share = lead_share(lengths, correct, limits, length_floor, state.get("share", 0.5), memory_rate)
    efficiency = lead_efficiency(lengths, lead_target(lengths, correct, limits, length_floor))
    weight = max(share, LEAST_SHARE)
    return weight * advantage("group", right) + (1 - weight) * advantage("group", efficiency), {"share": share}


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


REWARDS: dict[str, Reward] = {
    "length-harmonizing": length_harmonizing,
    "correct-only": correct_only,
    "truncation": truncation,
    "arora-zanette": arora_zanette,
    "kimi": kimi,
    "l1-exact": l1_exact,
    "l1-max": l1_max,
    "alp": alp,
    "shorter-better": shorter_better,
    "smart-thinker": smart_thinker,
    "prime-rl": prime_rl,
    "prime-rl-gate": prime_rl_gate,
    "dot": dot,
    "drpo": drpo,
    "overlong": overlong,
    "grpo-lambda": grpo_lambda,
    "accuracy": accuracy,
    "lead": lead,
    "hapo": hapo,
    "a-dlp": a_dlp,
}


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


def mean_and_spread(values: Tensor, counted: Tensor) -> tuple[float, float]:
    """The mean of the rows' means, and the standard deviation within and between rows, of the counted values (0 and 1, at
    least one a row). values, counted: [P, K]."""
    values, counted = values.double(), counted.double()
    count = counted.sum(1, keepdim=True)
    means = (values * counted).sum(1, keepdim=True) / count
    within = (counted * (values - means) ** 2).sum(1, keepdim=True) / count
    return means.mean().item(), math.sqrt(within.mean().item() + means.var(correction=0).item())
