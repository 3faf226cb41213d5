"""What a surrogate step reports: sums (and one maximum) that add up over micro-batches and ranks.

Only sums are kept, in float64, so that counts stay exact and the order of merging does not matter. Ratios of sums are
taken once, at the end, by `finalize`. Across ranks: all-reduce `sums` with SUM and `ratio_max` with MAX.
"""

from dataclasses import dataclass

import torch

FIELDS = ("units", "tokens", "clipped", "ratio_sum", "kl_sum", "loss_sum")


@dataclass(frozen=True)
class SurrogateMetrics:
    """sums: [6] float64, in the order of FIELDS; ratio_max: [] float64, 0 where there is no unit.

    units      sequences with at least one unmasked token (ratios "token" and "cispo": unmasked tokens)
    tokens     unmasked tokens
    clipped    units whose clip bound is active, so that their gradient is zero: ratio > 1 + eps_high and advantage > 0,
               or ratio < 1 - eps_low and advantage < 0; ratio "cispo": tokens whose weight is cut, which keep a gradient
    ratio_sum  sum of the units' ratios (after the clamp of the log-ratio)
    kl_sum     sum over unmasked tokens of r - 1 - log r, r = exp(logp - ref_logp) with the log-ratio clamped: since the
               tokens were drawn from the reference, its mean is an unbiased estimate of KL(reference || policy) that is
               never negative (Schulman's k3)
    loss_sum   the loss times its normaliser
    """

    sums: torch.Tensor
    ratio_max: torch.Tensor

    def merge(self, other: "SurrogateMetrics") -> "SurrogateMetrics":
        """The metrics of both batches together."""
        return SurrogateMetrics(self.sums + other.sums, torch.maximum(self.ratio_max, other.ratio_max))

    def finalize(self) -> dict[str, float]:
        """Python floats (this waits for the device): units, tokens, clip_fraction, ratio_mean, ratio_max, approx_kl
        (per token) and loss (per unit). A mean over nothing is 0."""
        total = dict(zip(FIELDS, self.sums.tolist()))
        units, tokens = max(total["units"], 1.0), max(total["tokens"], 1.0)
        return {
            "units": total["units"],
            "tokens": total["tokens"],
            "clip_fraction": total["clipped"] / units,
            "ratio_mean": total["ratio_sum"] / units,
            "ratio_max": self.ratio_max.item(),
            "approx_kl": total["kl_sum"] / tokens,
            "loss": total["loss_sum"] / units,
        }
