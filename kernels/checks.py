"""Arguments checked before any launch: each fault is a ValueError that begins with the argument's name.

A check of values (targets, cu_seqlens, lengths) reads two numbers back, which on a GPU waits for the device. That is
microseconds beside products of milliseconds, and the alternative is a read outside the weights.
"""

import math

import torch
from torch import Tensor

from .numbers import Clip, Sequences

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RATIOS = ("sequence", "sequence_mean", "token", "cispo")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def floating(name: str, tensor: Tensor) -> None:
    require(tensor.dtype in FLOATS, f"{name}: dtype {tensor.dtype}, expected float16, bfloat16, float32 or float64")


def same_device(name: str, tensor: Tensor, device: torch.device) -> None:
    require(tensor.device == device, f"{name}: on {tensor.device}, expected {device} like the other tensors")


def vocabulary(vocab_size: int | None, columns: int, owner: str) -> int:
    """The number of ids that have a probability: vocab_size, or all the columns."""
    require(columns > 0, f"{owner}: an empty vocabulary (0 rows of logits per token)")
    if vocab_size is None:
        return columns
    require(isinstance(vocab_size, int), f"vocab_size: {vocab_size!r}, expected an int or None")
    require(0 < vocab_size <= columns, f"vocab_size: {vocab_size}, expected 1 to {columns} (the vocabulary of {owner})")
    return vocab_size


def temperature(value: float) -> None:
    require(math.isfinite(value) and value > 0, f"temperature: {value}, expected a finite number above 0")


def targets(tensor: Tensor, shape: torch.Size, vocab_size: int, device: torch.device, values: bool = True) -> None:
    """Ids of the given shape. values: each of them from 0 to vocab_size - 1, which waits for the device."""
    require(tensor.dtype in (torch.int32, torch.int64), f"targets: dtype {tensor.dtype}, expected int32 or int64")
    require(tensor.shape == shape, f"targets: shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    same_device("targets", tensor, device)
    if values and tensor.numel():
        low, high = torch.stack(torch.aminmax(tensor)).tolist()
        require(low >= 0 and high < vocab_size, f"targets: ids {low} to {high}, expected 0 to {vocab_size - 1}")


def head(hidden: Tensor, weight: Tensor) -> None:
    """hidden [..., H] and weight [V, H] belong together."""
    floating("hidden", hidden)
    require(hidden.dim() >= 2, f"hidden: shape {tuple(hidden.shape)}, expected [N, H] or [..., H]")
    require(weight.dim() == 2, f"weight: shape {tuple(weight.shape)}, expected [V, H]")
    require(
        weight.shape[1] == hidden.shape[-1] and weight.shape[1] > 0,
        f"weight: shape {tuple(weight.shape)}, expected [V, {hidden.shape[-1]}] to match hidden, with H > 0",
    )
    require(weight.dtype == hidden.dtype, f"weight: dtype {weight.dtype}, expected {hidden.dtype} like hidden")
    require(weight.is_contiguous(), "weight: not contiguous, call .contiguous() once and keep it")
    same_device("weight", weight, hidden.device)


def teacher(hidden: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> None:
    """Another head's inputs for the same rows."""
    rows, width = hidden.shape[0], teacher_weight.shape[-1]
    require(hidden.dim() == 2, f"hidden: shape {tuple(hidden.shape)}, expected [N, H]")
    require(teacher_weight.dim() == 2, f"teacher_weight: shape {tuple(teacher_weight.shape)}, expected [V, H]")
    require(
        teacher_hidden.shape == (rows, width),
        f"teacher_hidden: shape {tuple(teacher_hidden.shape)}, expected ({rows}, {width}) to match the other tensors",
    )
    for name, tensor in (("teacher_hidden", teacher_hidden), ("teacher_weight", teacher_weight)):
        require(tensor.dtype == hidden.dtype, f"{name}: dtype {tensor.dtype}, expected {hidden.dtype} like hidden")
        same_device(name, tensor, hidden.device)


def logits(tensor: Tensor) -> None:
    floating("logits", tensor)
    require(tensor.dim() == 2, f"logits: shape {tuple(tensor.shape)}, expected [N, V]")
    require(tensor.stride(1) == 1 or tensor.shape[1] <= 1, f"logits: stride {tensor.stride(1)} in a row, expected 1")


def surrogate(logp: Tensor, sequences: Sequences, clip: Clip, values: bool) -> None:
    """The surrogate's inputs beside the log-probs, or what has their shape [N] and device. values: cu_seqlens rises from 0 to
    N, which waits for the device."""
    tokens, device = logp.numel(), logp.device
    ref_logp, advantage, cu_seqlens, mask = sequences
    ratio, eps_low, eps_high, normalizer = clip
    require(ratio in RATIOS, f"ratio: {ratio!r}, expected one of {', '.join(RATIOS)}")
    require(eps_low >= 0, f"eps_low: {eps_low}, expected 0 or more")
    require(eps_high >= 0, f"eps_high: {eps_high}, expected 0 or more")
    require(
        math.isfinite(normalizer) and normalizer > 0,
        f"normalizer: {normalizer}, expected the global number of units, above 0",
    )
    floating("ref_logp", ref_logp)
    require(ref_logp.shape == (tokens,), f"ref_logp: shape {tuple(ref_logp.shape)}, expected ({tokens},)")
    same_device("ref_logp", ref_logp, device)
    require(
        cu_seqlens.dtype in (torch.int32, torch.int64), f"cu_seqlens: dtype {cu_seqlens.dtype}, expected int32 or int64"
    )
    require(
        cu_seqlens.dim() == 1 and len(cu_seqlens) > 0, f"cu_seqlens: shape {tuple(cu_seqlens.shape)}, expected [S + 1]"
    )
    same_device("cu_seqlens", cu_seqlens, device)
    floating("advantage", advantage)
    count = len(cu_seqlens) - 1
    require(advantage.shape == (count,), f"advantage: shape {tuple(advantage.shape)}, expected ({count},)")
    same_device("advantage", advantage, device)
    if mask is not None:
        require(mask.dtype == torch.bool, f"mask: dtype {mask.dtype}, expected bool")
        require(mask.shape == (tokens,), f"mask: shape {tuple(mask.shape)}, expected ({tokens},)")
        same_device("mask", mask, device)
    if values:
        _rising(tokens, cu_seqlens)


def _rising(tokens: int, cu_seqlens: Tensor) -> None:
    shortest = cu_seqlens.diff().amin() if len(cu_seqlens) > 1 else cu_seqlens[0]
    first, last, shortest = torch.stack((cu_seqlens[0], cu_seqlens[-1], shortest)).tolist()
    require(
        first == 0 and last == tokens and shortest >= 0,
        f"cu_seqlens: from {first} to {last}, expected to rise from 0 to {tokens} tokens",
    )


def advantage_inputs(lengths: Tensor, correct: Tensor, group: Tensor, lam: float) -> None:
    require(lengths.dim() == 1, f"lengths: shape {tuple(lengths.shape)}, expected [S]")
    require(correct.shape == lengths.shape, f"correct: shape {tuple(correct.shape)}, expected {tuple(lengths.shape)}")
    require(group.shape == lengths.shape, f"group: shape {tuple(group.shape)}, expected {tuple(lengths.shape)}")
    require(group.dtype in (torch.int32, torch.int64), f"group: dtype {group.dtype}, expected int32 or int64")
    same_device("correct", correct, lengths.device)
    same_device("group", group, lengths.device)
    require(math.isfinite(lam), f"lam: {lam}, expected a finite number")
    if len(lengths):
        require(lengths.min().item() > 0, "lengths: a length of 0 or less, expected at least one token")
        require(group.min().item() >= 0, "group: a negative id, expected 0 or more")
