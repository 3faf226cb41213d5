"""Tokens from logits on a GPU: the public op. A CPU's sampler is the rollout engine's; both draw the same tokens."""

import math

import torch

from .checks import logits as check_logits
from .checks import require, same_device


def sample_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One token a row, with nothing read back. Triton alone: a GPU, or the interpreter.

    logits [R, V] with any row stride, uniforms float64 [R] in [0, 1); temperature 0 is greedy, top_k 0 and top_p 1 are no
    filter. Returns ids int64 [R], log-probs float32 [R] and flags int32 [R], 1 where the row's logits are not finite and its
    id means nothing. The log-prob is the model's own, before temperature and filters. Raises ValueError naming the wrong
    argument.
    """
    check_logits(logits)
    require(logits.shape[1] > 0, "logits: an empty vocabulary")
    require(
        uniforms.dtype == torch.float64 and uniforms.shape == logits.shape[:1] and uniforms.is_contiguous(),
        f"uniforms: {uniforms.dtype} {tuple(uniforms.shape)}, expected float64 ({logits.shape[0]},)",
    )
    same_device("uniforms", uniforms, logits.device)
    require(math.isfinite(temperature) and temperature >= 0, f"temperature: {temperature}, expected 0 (greedy) or more")
    require(top_k >= 0, f"top_k: {top_k}, expected 0 (no filter) or more")
    require(0 < top_p <= 1, f"top_p: {top_p}, expected above 0 and at most 1 (no filter)")
    from .triton_sample import sample

    return sample(logits, uniforms, temperature, top_k, top_p)
