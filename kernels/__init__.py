"""Log-probs of a large vocabulary and the clipped length-harmonizing loss: the public ops and their one dispatch.

Triton runs on a GPU, chunked torch elsewhere; O1CORE_KERNELS=torch|triton overrides that (with TRITON_INTERPRET=1 the
Triton kernels run on a CPU). Arguments are checked before any launch: a wrong one is a ValueError that names it.
Letters: N tokens, H hidden, V vocabulary, S sequences.

What a backend supplies
-----------------------
Primitives, tensors in and tensors out, no autograd and no checks (dispatch.py lists them). torch: chunked.py. Triton:
triton_linear.py (forward, backward), triton_kept.py (forward, logit_gradient), triton_gather.py (forward, backward),
triton_surrogate.py (surrogate), triton_advantage.py (length_harmonizing_advantage). The files are not named after the
ops, because importing a submodule `linear_logprob` would replace the function of that name in this package.

    forward(hidden [N, H], weight [V, H], targets [N] int32/int64, inv_temperature, vocab_size, want_entropy)
        -> logp [N], lse [N], entropy [N] or None
    backward(hidden, weight, targets, lse, logp_grad [N], entropy_grad [N] or None, entropy [N] or None,
             inv_temperature, vocab_size, need_hidden, need_weight)
        -> d_hidden [N, H] or None, d_weight [V, H] or None           (dtypes of hidden and weight)

with z = inv_temperature * hidden weight^T, columns from vocab_size on left out, p = exp(z - lse):

    lse = log sum_j exp z_j      logp = z_target - lse      entropy = lse - sum_j p_j z_j
    d z_j = logp_grad ([j = target] - p_j) - entropy_grad p_j (z_j - lse + entropy)

logp, lse and entropy are float32 (float64 for float64 inputs). hidden may be non-contiguous. N may be 0. The upstream
gradients are float32 (float64), any value a row, any stride. Rows of d_weight from vocab_size on are zero.

    kept_forward(hidden, weight, targets, inv_temperature, vocab_size)
        -> logp [N], lse [N], kept [N, vocab_size], maxima [any, N]      (what the backend needs to form p again)
    kept_gradient(kept, maxima, targets, logp, lse, logp_grad, inv_temperature, picked [n] int64 or None)
        -> the gradient of hidden weight^T: of all rows [N, vocab_size], or of the picked rows [n, vocab_size], in that
           order; may be written over kept

    gather_forward(logits [N, V] any row stride, targets, inv_temperature, vocab_size, want_entropy)
        -> logp, lse, entropy or None
    gather_backward(logits, targets, lse, logp_grad, entropy_grad or None, entropy or None, inv_temperature, vocab_size,
                    inplace) -> d_logits [N, V] in the dtype of logits; with inplace it is written over logits
    (named forward and backward in triton_gather.py)

    surrogate(logp [N], ref_logp [N], advantage [S], cu_seqlens [S + 1] int32/int64, mask [N] bool or None,
              ratio, eps_low, eps_high, normalizer)
        -> loss [], d_logp [N], SurrogateMetrics                      (loss and d_logp float32, or float64 if logp is)
    length_harmonizing_advantage(lengths [S], correct [S] bool/int/float, group [S] int32/int64, lam) -> [S] float32

A masked token's logp and ref_logp may be anything, NaN included. The clip compares the ratio strictly: at 1 +- eps
exactly the gradient is kept. The log-ratio of a unit is clamped to +-20, with zero gradient outside and the gradient
kept on it. SurrogateMetrics (surrogate_metrics.py) says what each sum means.
"""

import torch

from . import checks, fused_surrogate
from .autograd import ClippedSurrogate, GatherLogprob, LinearLogprob
from .dispatch import primitives
from .surrogate_metrics import SurrogateMetrics

__all__ = [
    "SurrogateMetrics",
    "clipped_surrogate",
    "gather_logprob",
    "length_harmonizing_advantage",
    "linear_logprob",
    "linear_surrogate",
]


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden weight^T / temperature)[target], without storing logits.

    hidden [..., H], weight [V, H] contiguous and of the same dtype, targets [...] int32 or int64. Ids from vocab_size
    on (padding of the weight) have probability 0. Returns logp [...] and, where asked, the entropy [...] of each
    distribution in nats, both float32 (float64 for float64 inputs); differentiable in hidden and weight through both.
    2NVH FLOPs forward, 6NVH backward (4NVH if the weight is frozen). Raises ValueError naming the wrong argument.
    """
    checks.head(hidden, weight)
    checks.temperature(temperature)
    vocab_size = checks.vocabulary(vocab_size, weight.shape[0], "weight")
    checks.targets(targets, hidden.shape[:-1], vocab_size, hidden.device)
    result = LinearLogprob.apply(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        targets.reshape(-1),
        1.0 / temperature,
        vocab_size,
        entropy,
        primitives(hidden.device),
    )
    return tuple(part.view(targets.shape) for part in result) if entropy else result.view(targets.shape)


def gather_logprob(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: bool = False,
    inplace_gradient: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log softmax(logits / temperature)[target] in one read of the logits.

    logits [N, V] with any row stride, targets [N] int32 or int64. Returns as linear_logprob. With inplace_gradient the
    backward pass writes the gradient over the logits, which must not be needed by anything else. Raises ValueError
    naming the wrong argument.
    """
    checks.logits(logits)
    checks.temperature(temperature)
    vocab_size = checks.vocabulary(vocab_size, logits.shape[1], "logits")
    checks.targets(targets, logits.shape[:1], vocab_size, logits.device)
    return GatherLogprob.apply(
        logits, targets, 1.0 / temperature, vocab_size, entropy, inplace_gradient, primitives(logits.device)
    )


def length_harmonizing_advantage(
    lengths: torch.Tensor, correct: torch.Tensor, group: torch.Tensor, lam: float
) -> torch.Tensor:
    """R = L_ref / L - 1 + lam (A - A_ref), the O1-Pruner reward (arXiv 2501.12570, section 3).

    lengths [S] in tokens, correct [S] (bool, int or float) and group [S] int32 or int64, the problem of each sample:
    L_ref and A_ref are the means over the samples of the same group. Returns [S] float32. Raises ValueError naming the
    wrong argument.
    """
    checks.advantage_inputs(lengths, correct, group, lam)
    return primitives(lengths.device).length_harmonizing_advantage(lengths, correct, group, lam)


def clipped_surrogate(
    logp: torch.Tensor,
    ref_logp: torch.Tensor,
    advantage: torch.Tensor,
    cu_seqlens: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    ratio: str,
    eps_low: float,
    eps_high: float,
    normalizer: float,
) -> tuple[torch.Tensor, SurrogateMetrics]:
    """loss = - sum over units of min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) / normalizer (O1-Pruner, Eq. 11).

    logp, ref_logp [N] and mask [N] bool (True counts; None: all) of S sequences laid end to end: sequence s is tokens
    cu_seqlens[s] to cu_seqlens[s + 1]; advantage [S]. A unit is a sequence with an unmasked token, with
    r = exp(sum of (logp - ref_logp)) for ratio "sequence" (the paper) or exp(mean) for "sequence_mean" (the official
    code, GSPO); for "token" a unit is an unmasked token. normalizer is the count of units of the whole batch over all
    micro-batches and ranks, so that their losses add up. Returns the loss [] (float32, or float64 if logp is; its
    gradient flows to logp alone) and SurrogateMetrics. Raises ValueError naming the wrong argument.
    """
    checks.floating("logp", logp)
    checks.require(logp.dim() == 1, f"logp: shape {tuple(logp.shape)}, expected [N]")
    checks.surrogate(
        len(logp), ref_logp, advantage, cu_seqlens, mask, ratio, eps_low, eps_high, normalizer, logp.device
    )
    return ClippedSurrogate.apply(
        logp, primitives(logp.device), ref_logp, advantage, cu_seqlens, mask, ratio, eps_low, eps_high, normalizer
    )


def linear_surrogate(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ref_logp: torch.Tensor,
    advantage: torch.Tensor,
    cu_seqlens: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    ratio: str,
    eps_low: float,
    eps_high: float,
    normalizer: float,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> tuple[torch.Tensor, SurrogateMetrics]:
    """linear_logprob followed by clipped_surrogate: same loss, same gradients of hidden and weight, fewer FLOPs.

    Rows whose coefficient is exactly zero (masked, clipped, zero advantage) cost nothing in the backward pass.
    Arguments and results as in the two ops. Raises ValueError naming the wrong argument.
    """
    checks.head(hidden, weight)
    checks.temperature(temperature)
    vocab_size = checks.vocabulary(vocab_size, weight.shape[0], "weight")
    checks.targets(targets, hidden.shape[:-1], vocab_size, hidden.device)
    checks.surrogate(
        targets.numel(), ref_logp, advantage, cu_seqlens, mask, ratio, eps_low, eps_high, normalizer, hidden.device
    )
    return fused_surrogate.linear_surrogate(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        targets.reshape(-1),
        1.0 / temperature,
        vocab_size,
        primitives(hidden.device),
        ref_logp,
        advantage,
        cu_seqlens,
        mask,
        ratio,
        eps_low,
        eps_high,
        normalizer,
    )
