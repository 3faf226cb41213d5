"""What bench.kernels compares: each operation, the ways to compute it, and the inputs they get.

A provider is a function (hidden [N, H], weight [V, H], targets [N], case) -> a tensor to differentiate.
"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from o1core import kernels

CLIP: dict[str, Any] = {"eps_low": 0.2, "eps_high": 0.2, "normalizer": 16.0}
LogProb = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    hidden: Tensor  # [N, H], with gradient
    weight: Tensor  # [V, H], with gradient
    targets: Tensor  # int64 [N]
    upstream: Tensor  # float32 [N]
    logp: Tensor  # float32 [N], of targets
    surrogate: tuple[Tensor, Tensor, Tensor, None]  # see surrogate_rest


Provider = Callable[[Tensor, Tensor, Tensor, Case], Tensor]


def naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(F.linear(hidden, weight).float(), -1).gather(1, targets[:, None])[:, 0]


def torch_fused(hidden: Tensor, weight: Tensor, targets: Tensor, policy: Literal["auto", "accurate"]) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions(acc_policy=policy)
    return -F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options).float()


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Its operator with a gradient for each token: at temperature 1, without an id to ignore, with its own schedule."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    return -LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets, 1.0, -100, 1, False)[0]


def cut_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, targets, reduction="none").float()


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What its GRPO trainer takes the log-probs from since 2026, with its own chunk."""
    from trl.kernels import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0]


def surrogate_rest(tokens: int, clipped: float, device: str) -> tuple[Tensor, Tensor, Tensor, None]:
    """ref_logp minus logp, advantage, cu_seqlens, mask of 16 sequences; the fraction `clipped` of tokens and sequences
    has a ratio beyond the clip."""
    generator = torch.Generator().manual_seed(3)
    shift = 1e-4 * torch.randn(tokens, generator=generator)
    sequences = 16
    cu_seqlens = torch.linspace(0, tokens, sequences + 1).long()
    advantage = torch.where(torch.rand(sequences, generator=generator) < 0.5, 1.0, -1.0)
    for s in range(round(clipped * sequences)):
        shift[cu_seqlens[s] : cu_seqlens[s + 1]] -= advantage[s]
    return shift.to(device), advantage.to(device), cu_seqlens.to(device), None


def surrogate_of(
    logp_of: LogProb | None, ratio: str, hidden: Tensor, weight: Tensor, targets: Tensor, case: Case
) -> Tensor:
    """The loss of a provider's log-probs; ours goes through linear_surrogate, which never returns them."""
    shift, advantage, cu_seqlens, mask = case.surrogate
    rest = advantage, cu_seqlens, mask
    ref_logp = case.logp + shift
    if logp_of is None:
        return kernels.linear_surrogate(hidden, weight, targets, ref_logp, *rest, ratio=ratio, **CLIP)[0]
    logp = logp_of(hidden, weight, targets)
    return kernels.clipped_surrogate(logp, ref_logp, *rest, ratio=ratio, **CLIP)[0]


def logp_providers(device: str) -> dict[str, LogProb]:
    providers: dict[str, LogProb] = {
        "ours": kernels.linear_logprob,
        "naive": naive,
        "linear_cross_entropy": partial(torch_fused, policy="auto"),
        "linear_cross_entropy, accurate": partial(torch_fused, policy="accurate"),
    }
    for module, provider in {"trl": trl, "liger_kernel": liger, "cut_cross_entropy": cut_cross_entropy}.items():
        if (module == "trl" or device != "cpu") and importlib.util.find_spec(module):  # the others know a GPU alone
            providers[module] = provider
    return providers


def operations(device: str) -> dict[str, dict[str, Provider]]:
    """{operation: {provider: function}}"""

    def alone(logp_of: LogProb) -> Provider:
        return lambda hidden, weight, targets, case: logp_of(hidden, weight, targets)

    ops = {"linear_logprob": {name: alone(logp_of) for name, logp_of in logp_providers(device).items()}}
    ways: dict[str, LogProb | None] = {"ours": None, "naive": naive, "ours, two ops": kernels.linear_logprob}
    for ratio in ("sequence_mean", "token"):
        ops[f"linear_surrogate, {ratio}"] = {name: partial(surrogate_of, f, ratio) for name, f in ways.items()}
    return ops


def make_case(args: argparse.Namespace, tokens: int, clipped: float = 0.0) -> Case:
    """args: vocab, hidden, dtype (a name) and device. clipped: see surrogate_rest."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, args.hidden, generator=generator)
    weight = torch.randn(args.vocab, args.hidden, generator=generator) * (3 * args.hidden**-0.5)
    targets = torch.randint(0, args.vocab, (tokens,), generator=generator).to(args.device)
    upstream = torch.randn(tokens, generator=generator).to(args.device)
    hidden, weight = (x.to(args.device, getattr(torch, args.dtype)).requires_grad_() for x in (hidden, weight))
    with torch.no_grad():
        logp = kernels.linear_logprob(hidden, weight, targets)
    return Case(hidden, weight, targets, upstream, logp, surrogate_rest(tokens, clipped, args.device))
