"""Log-probs of a large vocabulary, the clipped length-harmonizing loss, paged decode attention and what a transformer computes
beside its products: the public ops.

Triton runs on a GPU, torch elsewhere; O1CORE_KERNELS=torch|triton overrides that (with TRITON_INTERPRET=1 the
Triton kernels run on a CPU). Arguments are checked before any launch: a wrong one is a ValueError that names it.
What a backend supplies: dispatch.py.
Letters: N tokens, H hidden, V vocabulary, S sequences.

no_sync, an argument of every loss and log-prob: nothing waits for the device between the call and the end of its
backward pass, and no shape depends on values, so that torch.compile and CUDA graphs can take it whole. Then targets and
cu_seqlens are not held against their range (a wrong one reads outside the logits), and rows whose gradient is zero are
not left out of the products. The results are the same.
"""

from typing import Any, Literal, overload

from torch import Tensor

from . import autograd, checks, torch_loss
from .autograd import ClippedSurrogate, GatherLogprob, LinearLogprob
from .decode import paged_attention, refused_heads, runs_triton, sample_tokens, write_pages
from .delta import delta_read, delta_solve, delta_step, delta_walk
from .dispatch import primitives
from .elementwise import rms_norm, rotate, swiglu
from .linear_kl import LinearKL
from .numbers import LOG_RATIO_LIMIT, PAGE_TOKENS, SPLIT_TOKENS, Clip, Sequences, Softmax, SurrogateMetrics

__all__ = [
    "LOG_RATIO_LIMIT",
    "PAGE_TOKENS",
    "SPLIT_TOKENS",
    "SurrogateMetrics",
    "clipped_surrogate",
    "delta_read",
    "delta_solve",
    "delta_step",
    "delta_walk",
    "gather_logprob",
    "length_harmonizing_advantage",
    "linear_logprob",
    "linear_reverse_kl",
    "linear_surrogate",
    "paged_attention",
    "refused_heads",
    "rms_norm",
    "rotate",
    "runs_triton",
    "sample_tokens",
    "swiglu",
    "write_pages",
]


@overload
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: Literal[False] = False,
    no_sync: bool = False,
) -> Tensor: ...


@overload
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: Literal[True],
    no_sync: bool = False,
) -> tuple[Tensor, Tensor]: ...


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: bool = False,
    no_sync: bool = False,
) -> Any:
    """log softmax(hidden weight^T / temperature)[target], without storing logits.

    hidden [..., H], weight [V, H] contiguous and of the same dtype, targets [...] int32 or int64. Ids from vocab_size
    on (padding of the weight) have probability 0. Returns logp [...] and, where asked, the entropy [...] of each
    distribution in nats, both float32 (float64 for float64 inputs); differentiable in hidden and weight through both.
    2NVH FLOPs forward, 6NVH backward (4NVH if the weight is frozen). In Triton a row's results have the same bits alone
    and in any batch. Raises ValueError naming the wrong argument.
    """
    checks.head(hidden, weight)
    checks.temperature(temperature)
    vocab_size = checks.vocabulary(vocab_size, weight.shape[0], "weight")
    checks.targets(targets, hidden.shape[:-1], vocab_size, hidden.device, values=not no_sync)
    rows, softmax = hidden.reshape(-1, hidden.shape[-1]), Softmax(1.0 / temperature, vocab_size)
    result = LinearLogprob.apply(rows, weight, targets.reshape(-1), softmax, entropy, primitives(hidden.device))
    return tuple(part.view(targets.shape) for part in result) if entropy else result.view(targets.shape)


@overload
def gather_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: Literal[False] = False,
    inplace_gradient: bool = False,
    no_sync: bool = False,
) -> Tensor: ...


@overload
def gather_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: Literal[True],
    inplace_gradient: bool = False,
    no_sync: bool = False,
) -> tuple[Tensor, Tensor]: ...


def gather_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    entropy: bool = False,
    inplace_gradient: bool = False,
    no_sync: bool = False,
) -> Any:
    """log softmax(logits / temperature)[target] in one read of the logits.

    logits [N, V] with any row stride, targets [N] int32 or int64; a logit of -inf is an impossible id, whose gradient is
    0. Returns as linear_logprob. With inplace_gradient the backward pass writes the gradient over the logits, which must
    not be needed by anything else. Raises ValueError naming the wrong argument.
    """
    checks.logits(logits)
    checks.temperature(temperature)
    vocab_size = checks.vocabulary(vocab_size, logits.shape[1], "logits")
    checks.targets(targets, logits.shape[:1], vocab_size, logits.device, values=not no_sync)
    softmax = Softmax(1.0 / temperature, vocab_size)
    return GatherLogprob.apply(logits, targets, softmax, entropy, inplace_gradient, primitives(logits.device))


def length_harmonizing_advantage(lengths: Tensor, correct: Tensor, group: Tensor, lam: float) -> Tensor:
    """R = L_ref / L - 1 + lam (A - A_ref), the O1-Pruner reward (arXiv 2501.12570, section 3).

    lengths [S] in tokens, correct [S] (bool, int or float) and group [S] int32 or int64, the problem of each sample:
    L_ref and A_ref are the means over the samples of the same group. Returns [S] float32. Raises ValueError naming the
    wrong argument.
    """
    checks.advantage_inputs(lengths, correct, group, lam)
    return torch_loss.length_harmonizing_advantage(lengths, correct, group, lam)


def clipped_surrogate(
    logp: Tensor,
    ref_logp: Tensor,
    advantage: Tensor,
    cu_seqlens: Tensor,
    mask: Tensor | None,
    *,
    ratio: str,
    eps_low: float,
    eps_high: float,
    normalizer: float,
    no_sync: bool = False,
) -> tuple[Tensor, SurrogateMetrics]:
    """loss = - sum over units of min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) / normalizer (O1-Pruner, Eq. 11).

    logp, ref_logp [N] and mask [N] bool (True counts; None: all) of S sequences laid end to end: sequence s is tokens
    cu_seqlens[s] to cu_seqlens[s + 1]; advantage [S]. A unit is a sequence with an unmasked token, with
    r = exp(sum of (logp - ref_logp)) for ratio "sequence" (the paper) or exp(mean) for "sequence_mean" (the official
    code, GSPO); for "token" and "cispo" a unit is an unmasked token. "cispo" (arXiv 2506.13585, Eq. 4) is another loss,
    - sum of clip(r, 1 - eps_low, 1 + eps_high) A logp / normalizer, in which the clipped ratio is a weight without a
    gradient of its own, so that no token loses its gradient. normalizer is the count of units of the whole batch over all
    micro-batches and ranks, so that their losses add up. Returns the loss [] (float32, or float64 if logp is; its
    gradient flows to logp alone) and SurrogateMetrics. Raises ValueError naming the wrong argument.
    """
    checks.floating("logp", logp)
    checks.require(logp.dim() == 1, f"logp: shape {tuple(logp.shape)}, expected [N]")
    sequences, clip = Sequences(ref_logp, advantage, cu_seqlens, mask), Clip(ratio, eps_low, eps_high, normalizer)
    checks.surrogate(logp, sequences, clip, values=not no_sync)
    loss, sums, ratio_max = ClippedSurrogate.apply(logp, primitives(logp.device), clip, *sequences)
    return loss, SurrogateMetrics(sums, ratio_max)


def linear_surrogate(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ref_logp: Tensor,
    advantage: Tensor,
    cu_seqlens: Tensor,
    mask: Tensor | None,
    *,
    ratio: str,
    eps_low: float,
    eps_high: float,
    normalizer: float,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    no_sync: bool = False,
) -> tuple[Tensor, SurrogateMetrics]:
    """linear_logprob followed by clipped_surrogate: same loss, same gradients of hidden and weight, fewer FLOPs.

    Rows whose coefficient is exactly zero (masked, clipped, zero advantage) cost nothing in the backward pass.
    Arguments and results as in the two ops. Raises ValueError naming the wrong argument.
    """
    checks.head(hidden, weight)
    checks.temperature(temperature)
    vocab_size = checks.vocabulary(vocab_size, weight.shape[0], "weight")
    checks.targets(targets, hidden.shape[:-1], vocab_size, hidden.device, values=not no_sync)
    sequences, clip = Sequences(ref_logp, advantage, cu_seqlens, mask), Clip(ratio, eps_low, eps_high, normalizer)
    checks.surrogate(targets, sequences, clip, values=not no_sync)
    head, softmax = (
        (hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1)),
        Softmax(1 / temperature, vocab_size),
    )
    return autograd.linear_surrogate(head, softmax, sequences, clip, primitives(hidden.device), no_sync)


def linear_reverse_kl(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, *, vocab_size: int | None = None
) -> Tensor:
    """KL(softmax(hidden weight^T) || softmax(teacher_hidden teacher_weight^T)) of each row, without storing logits.

    hidden [N, H] and weight [V, H]; the teacher's [N, H'] and [V', H'], of the same dtype, get no gradient. Ids from
    vocab_size on (None: V) have probability 0 in both. Returns kl [N], float32 (float64 for float64 inputs), in nats;
    differentiable in hidden and weight. Raises ValueError naming the wrong argument.
    """
    checks.head(hidden, weight)
    checks.teacher(hidden, teacher_hidden, teacher_weight)
    vocab_size = checks.vocabulary(vocab_size, weight.shape[0], "weight")
    checks.vocabulary(vocab_size, teacher_weight.shape[0], "teacher_weight")
    return LinearKL.apply(hidden, weight, teacher_hidden, teacher_weight, vocab_size)
