"""The gradient of a row of logits as a few numbers a row, once for every backend.

With z the logits over the temperature, top their maximum, log_total = log sum_j exp(z_j - top), log p_j = z_j - top -
log_total and H the entropy:

    d logits_j = inv_temperature (logp_grad ([j = target] - p_j) - entropy_grad p_j (log p_j + H))
               = exp(z_j - top) (constant + linear (z_j - top))                                for j other than the target
               = at_target                                                                     for the target

top and log_total stay apart: their sum, the log-sum-exp, has lost the digits that a likely token's 1 - p is made of. The
target's own entry comes from its log-prob: 1 - exp(logp) is -expm1(logp).
"""

from typing import NamedTuple

import torch

from .precision import FLOOR


class RowNumbers(NamedTuple):
    """What a forward pass finds of each row [N], float32 or float64; entropy is None where nobody asked for it."""

    logp: torch.Tensor
    top: torch.Tensor
    log_total: torch.Tensor
    entropy: torch.Tensor | None


class RowCoefficients(NamedTuple):
    """Each [N], in the dtype of logp; linear is None where there is no gradient of the entropy."""

    at_target: torch.Tensor
    constant: torch.Tensor
    linear: torch.Tensor | None

    def of(self, part: slice) -> "RowCoefficients":
        """Those of some rows."""
        return RowCoefficients(
            self.at_target[part], self.constant[part], None if self.linear is None else self.linear[part]
        )


def row_coefficients(
    known: RowNumbers, logp_grad: torch.Tensor, entropy_grad: torch.Tensor | None, inv_temperature: float
) -> RowCoefficients:
    logp, _, log_total, entropy = known
    slope = logp_grad.to(logp.dtype) * -inv_temperature
    share = log_total.neg().exp()
    if entropy_grad is None or entropy is None:
        return RowCoefficients(slope * logp.expm1(), slope * share, None)
    entropy_slope = entropy_grad.to(logp.dtype) * -inv_temperature
    at_target = slope * logp.expm1() + entropy_slope * logp.exp() * (logp.clamp(min=FLOOR) + entropy)
    return RowCoefficients(at_target, (slope + entropy_slope * (entropy - log_total)) * share, entropy_slope * share)
