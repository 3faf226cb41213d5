"""What a step minimises, given the hidden states that predict a micro-batch's completions. Log-probs and the clipped
surrogate come from o1core.kernels, so no objective holds logits.

    surrogate   - mean over units of min(r R, clip(r, 1 - eps_low, 1 + eps_high) R)          arXiv 2501.12570, Eq. 11
    sft         - mean over tokens of log p
    dpo         - mean over pairs of log sigmoid(beta (log-ratio of the better - log-ratio of the worse))
                                                                                             arXiv 2305.18290, Eq. 7

The units of the surrogate are sequences or tokens (Recipe.ratio). In sft and dpo nothing is clipped, and the ratios of
the metrics are those of the tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import SurrogateMetrics, linear_logprob, linear_surrogate
from ..recipe.recipe import Recipe
from .picking import Example

LOG_RATIO_BOUND = 20.0  # the surrogate's own clamp


def units_of(examples: list[Example], recipe: Recipe) -> int:
    """What a batch's loss is the mean over: tokens, sequences or pairs."""
    if recipe.objective == "sft" or (recipe.objective == "surrogate" and recipe.ratio == "token"):
        return sum(len(e.ids) for e in examples)
    return len(examples) // recipe.together


def objective(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    reference: Tensor,
    advantage: Tensor,
    cu_seqlens: Tensor,
    recipe: Recipe,
    units: int,
    vocab: int,
) -> tuple[Tensor, SurrogateMetrics]:
    """(loss [], metrics) of N completion tokens of S sequences.

    hidden [N, H]; head [V, H], ids from `vocab` on have probability 0; targets int64 [N]; reference float32 [N];
    advantage float32 [S] (dpo: 1, -1, 1, -1, ...); cu_seqlens int64 [S + 1]. units: of the whole batch, by which the loss
    is divided. SurrogateMetrics: `units` counts this micro-batch's.
    """
    if recipe.objective == "surrogate":
        return linear_surrogate(
            hidden,
            head,
            targets,
            reference,
            advantage,
            cu_seqlens,
            None,
            ratio=recipe.ratio,
            eps_low=recipe.eps_low,
            eps_high=recipe.eps_high,
            normalizer=units,
            vocab_size=vocab,
        )
    logp = linear_logprob(hidden, head, targets, vocab_size=vocab)
    if recipe.objective == "sft":
        total, count = -logp.sum(), len(targets)
    else:
        total, count = dpo(logp, reference, cu_seqlens, recipe.dpo_beta), len(advantage) // 2
    return total / units, metrics_of(logp.detach(), reference, total.detach(), count)


def dpo(logp: Tensor, reference: Tensor, cu_seqlens: Tensor, beta: float) -> Tensor:
    """The sum of DPO's loss over pairs: sequences 0 and 1, 2 and 3, ..., the better one first."""
    lengths = cu_seqlens.diff()
    owner = torch.arange(len(lengths), device=logp.device).repeat_interleave(lengths)
    gap = torch.zeros(len(lengths), dtype=logp.dtype, device=logp.device).index_add(0, owner, logp - reference)
    better, worse = gap.view(-1, 2).unbind(1)
    return -F.logsigmoid(beta * (better - worse)).sum()


def metrics_of(logp: Tensor, reference: Tensor, total: Tensor, units: int) -> SurrogateMetrics:
    """Ratios and KL of the tokens, and the loss, as the surrogate reports them."""
    gap = (logp - reference).double().clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio = gap.exp()
    count = torch.tensor(float(units), dtype=torch.float64, device=logp.device)
    tokens = torch.full_like(count, len(logp))
    # The mean ratio is over units there and over tokens here: weighed so that it comes out right.
    sums = (count, tokens, torch.zeros_like(count), ratio.mean() * count, (ratio - 1 - gap).sum(), total.double())
    return SurrogateMetrics(torch.stack(sums), ratio.max())
