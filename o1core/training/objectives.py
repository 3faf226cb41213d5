"""The objectives, side by side: what each picks from the rollouts, what its loss is the mean over, and the loss.

    surrogate   - mean over units of min(r R, clip(r, 1 - eps_low, 1 + eps_high) R)          arXiv 2501.12570, Eq. 11
    sft         - mean over tokens of log p
    dpo         - mean over pairs of log sigmoid(beta (log-ratio of the better - log-ratio of the worse))
                                                                                             arXiv 2305.18290, Eq. 7
    crisp         mean over tokens of KL(policy || teacher), over the whole vocabulary         arXiv 2603.05433

The units of the surrogate are sequences or tokens, as its ratio says; "cispo" (arXiv 2506.13585) clips a weight instead.
GFPO (arXiv 2508.09726) retains some of the K samples, by length or by reward per token, and forgets the others. SFT picks
the m shortest right samples and DPO the shortest right one against the longest of all: the baselines of arXiv 2501.12570,
section 5. CRISP takes m at random, whatever they earned; teacher.py has its teacher. In these three nothing is clipped, and
the ratios of the metrics are those of the tokens. Log-probs, KL and the clipped surrogate come from o1core.kernels, so no
objective holds logits.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..kernels import LOG_RATIO_LIMIT, SurrogateMetrics, linear_logprob, linear_reverse_kl, linear_surrogate
from ..recipe import ObjectiveSettings
from ..rewards import advantage, standardise
from ..types import Example

Unit = list[tuple[int, float]]  # (sample, weight) pairs that are trained on together


@dataclass(frozen=True)
class RewardTable:
    """A round's rollouts as [P, K] tables: lengths int64 in tokens, correct bool, reward float32."""

    lengths: Tensor
    correct: Tensor
    reward: Tensor


@dataclass(frozen=True)
class LossInputs:
    """N completion tokens of S sequences.

    hidden [N, H]; head [V, H], ids from `vocab` on have probability 0; targets int64 [N]; reference float32 [N];
    advantage float32 [S] (DPO: 1, -1, 1, -1, ...); cu_seqlens int64 [S + 1]; mask bool [N], the tokens that count (None:
    all); teacher [N, H] and teacher_head [V, H], of CRISP alone.
    """

    hidden: Tensor
    head: Tensor
    targets: Tensor
    reference: Tensor
    advantage: Tensor
    cu_seqlens: Tensor
    vocab: int
    mask: Tensor | None = None
    teacher: Tensor | None = None
    teacher_head: Tensor | None = None


class Objective(Protocol):
    """The interface of the four objectives."""

    @property
    def unit_size(self) -> int:
        """Examples in a unit: they stay together in batches and micro-batches."""

    def pick(self, table: RewardTable, seed: int) -> list[list[Unit]]:
        """The units of each problem. seed: of what is picked at random."""

    def masks(self, examples: list[Example]) -> list[Tensor] | None:
        """bool [L] of each example: the tokens that count; None where all do."""

    def units(self, examples: list[Example], masks: list[Tensor] | None) -> int:
        """What the loss of these examples is the mean over."""

    def loss(self, inputs: LossInputs, units: int) -> tuple[Tensor, SurrogateMetrics]:
        """(loss [], metrics). units: of the whole batch, by which the loss is divided; those of the metrics are this
        micro-batch's."""


@dataclass(frozen=True)
class Surrogate:
    """The clipped surrogate on m samples of each problem, drawn at random; advantages are taken over all K. Where only a share
    is retained, both are taken over that, and m is at most its count."""

    picked: int
    advantage: str
    dynamic_sampling: bool
    ratio: str
    eps_low: float
    eps_high: float
    retained: float | None = None
    retained_by: str = "efficiency"
    truncated_importance: float | None = None
    unit_size: ClassVar[int] = 1

    def retain(self, table: RewardTable) -> Tensor:
        """int64 [P, R]: the samples of each problem that are not filtered out, in their order: GFPO,
        arXiv 2508.09726. They are those of the smallest L, or of the largest R / L; of equal ones the earlier."""
        samples = table.reward.shape[1]
        if self.retained is None:
            return torch.arange(samples).expand(table.reward.shape)
        cost = table.lengths if self.retained_by == "shortest" else -table.reward / table.lengths
        count = max(1, round(self.retained * samples))
        return cost.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values

    def pick(self, table: RewardTable, seed: int) -> list[list[Unit]]:
        """With dynamic_sampling, problems whose samples all earn the same give nothing and count for no mean or spread."""
        retained = self.retain(table)
        reward = table.reward.gather(1, retained)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(reward.shape, generator=generator).argsort(dim=1)[:, : self.picked]
        teaches = torch.ones(len(reward), dtype=torch.bool)
        if self.dynamic_sampling:
            teaches = reward.amax(1) > reward.amin(1)
        units: list[list[Unit]] = [[] for _ in reward]
        if teaches.any():
            chosen = chosen[teaches]
            value = advantage(self.advantage, reward[teaches]).gather(1, chosen)
            if self.advantage == "z-score":
                value = standardise(value)
            chosen = retained[teaches].gather(1, chosen)
            for row, ks, weights in zip(teaches.nonzero()[:, 0].tolist(), chosen.tolist(), value.tolist()):
                units[row] = [[(k, weight)] for k, weight in zip(ks, weights)]
        return units

    def masks(self, examples: list[Example]) -> list[Tensor] | None:
        """Masked importance sampling of tokens: those that the sampler and the trainer disagree about do not count. The
        policy that sampled them is not the one whose ratio would be taken. That is so for an --opening too."""
        if self.truncated_importance is None:
            return None
        return [(reference_of(e) - e.logprobs).abs() <= self.truncated_importance for e in examples]

    def units(self, examples: list[Example], masks: list[Tensor] | None) -> int:
        of_tokens = self.ratio in ("token", "cispo")
        if masks is None:
            return sum(len(e.ids) for e in examples) if of_tokens else len(examples)
        return max(1, sum(int(mask.sum()) if of_tokens else int(mask.any()) for mask in masks))

    def loss(self, inputs: LossInputs, units: int) -> tuple[Tensor, SurrogateMetrics]:
        return linear_surrogate(
            inputs.hidden,
            inputs.head,
            inputs.targets,
            inputs.reference,
            inputs.advantage,
            inputs.cu_seqlens,
            inputs.mask,
            ratio=self.ratio,
            eps_low=self.eps_low,
            eps_high=self.eps_high,
            normalizer=units,
            vocab_size=inputs.vocab,
        )


@dataclass(frozen=True)
class Likelihood:
    """SFT: the likelihood of the m shortest right samples of each problem."""

    picked: int
    unit_size: ClassVar[int] = 1

    def pick(self, table: RewardTable, seed: int) -> list[list[Unit]]:
        return [
            [[(k, 1.0)] for k in shortest_right(lengths, correct)[: self.picked]]
            for lengths, correct in zip(table.lengths, table.correct)
        ]

    def masks(self, examples: list[Example]) -> None:
        return None

    def units(self, examples: list[Example], masks: list[Tensor] | None) -> int:
        return sum(len(e.ids) for e in examples)

    def loss(self, inputs: LossInputs, units: int) -> tuple[Tensor, SurrogateMetrics]:
        logp = linear_logprob(inputs.hidden, inputs.head, inputs.targets, vocab_size=inputs.vocab)
        total = -logp.sum()
        return total / units, metrics_of(logp.detach(), inputs.reference, total.detach(), len(inputs.targets))


@dataclass(frozen=True)
class Preference:
    """DPO: each problem's shortest right sample against its longest one, if they differ in length."""

    beta: float
    unit_size: ClassVar[int] = 2

    def pick(self, table: RewardTable, seed: int) -> list[list[Unit]]:
        units: list[list[Unit]] = []
        for lengths, correct in zip(table.lengths, table.correct):
            right, longest = shortest_right(lengths, correct), int(lengths.argmax())
            differs = bool(right) and bool(lengths[right[0]] != lengths[longest])
            units.append([[(right[0], 1.0), (longest, -1.0)]] if differs else [])
        return units

    def masks(self, examples: list[Example]) -> None:
        return None

    def units(self, examples: list[Example], masks: list[Tensor] | None) -> int:
        return len(examples) // 2

    def loss(self, inputs: LossInputs, units: int) -> tuple[Tensor, SurrogateMetrics]:
        logp = linear_logprob(inputs.hidden, inputs.head, inputs.targets, vocab_size=inputs.vocab)
        total = self.pair_losses(logp, inputs.reference, inputs.cu_seqlens)
        return total / units, metrics_of(logp.detach(), inputs.reference, total.detach(), len(inputs.advantage) // 2)

    def pair_losses(self, logp: Tensor, reference: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The sum of the loss over pairs: sequences 0 and 1, 2 and 3, ..., the better one first."""
        lengths = cu_seqlens.diff()
        owner = torch.arange(len(lengths), device=logp.device).repeat_interleave(lengths)
        gap = torch.zeros(len(lengths), dtype=logp.dtype, device=logp.device).index_add(0, owner, logp - reference)
        better, worse = gap.view(-1, 2).unbind(1)
        return -F.logsigmoid(self.beta * (better - worse)).sum()


@dataclass(frozen=True)
class Distillation:
    """CRISP: reverse KL per token to the weights that the round started from, asked to be concise, on m samples of each
    problem, drawn at random. The teacher gets no gradient."""

    picked: int
    unit_size: ClassVar[int] = 1

    def pick(self, table: RewardTable, seed: int) -> list[list[Unit]]:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(table.reward.shape, generator=generator).argsort(dim=1)[:, : self.picked]
        return [[[(k, 1.0)] for k in ks] for ks in chosen.tolist()]

    def masks(self, examples: list[Example]) -> None:
        return None

    def units(self, examples: list[Example], masks: list[Tensor] | None) -> int:
        return sum(len(e.ids) for e in examples)

    def loss(self, inputs: LossInputs, units: int) -> tuple[Tensor, SurrogateMetrics]:
        assert inputs.teacher is not None and inputs.teacher_head is not None
        heads = inputs.hidden, inputs.head, inputs.teacher, inputs.teacher_head
        total = linear_reverse_kl(*heads, vocab_size=inputs.vocab).sum()
        with torch.no_grad():
            logp = linear_logprob(inputs.hidden, inputs.head, inputs.targets, vocab_size=inputs.vocab)
        return total / units, metrics_of(logp, inputs.reference, total.detach(), len(inputs.targets))


def objective_of(settings: ObjectiveSettings) -> Objective:
    """The objective that the settings name. Raises UserError for "none", which trains nothing."""
    match settings.kind:
        case "surrogate":
            return Surrogate(
                settings.picked,
                settings.advantage,
                settings.dynamic_sampling,
                settings.ratio,
                settings.eps_low,
                settings.eps_high,
                settings.retained,
                settings.retained_by,
                settings.truncated_importance,
            )
        case "sft":
            return Likelihood(settings.picked)
        case "dpo":
            return Preference(settings.dpo_beta)
        case "crisp":
            return Distillation(settings.picked)
    raise UserError(f"--objective {settings.kind}: there is nothing to train; `o1core prune` evaluates its instruction")


def reference_of(example: Example) -> Tensor:
    """The example's reference log-probs, float32 [L]."""
    assert example.reference is not None, (
        "reference log-probs come first: they are those of the policy before its first step"
    )
    return example.reference


def shortest_right(lengths: Tensor, correct: Tensor) -> list[int]:
    """The right ones among K samples, short to long."""
    return [k for k in lengths.argsort(stable=True).tolist() if correct[k]]


def metrics_of(logp: Tensor, reference: Tensor, total: Tensor, units: int) -> SurrogateMetrics:
    """Ratios and KL of the tokens, and the loss, as the surrogate reports them."""
    gap = (logp - reference).double().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = gap.exp()
    count = torch.tensor(float(units), dtype=torch.float64, device=logp.device)
    tokens = torch.full_like(count, len(logp))
    # The mean ratio is over units there and over tokens here: weighed so that it comes out right.
    sums = (count, tokens, torch.zeros_like(count), ratio.mean() * count, (ratio - 1 - gap).sum(), total.double())
    return SurrogateMetrics(torch.stack(sums), ratio.max())
