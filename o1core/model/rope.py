"""The rotary embedding (Su et al., arXiv 2104.09864) and the three ways in which published models stretch it.

linear divides all frequencies; llama3 (Llama 3.1 and its distillations) divides the low ones; yarn (Peng et al., arXiv
2309.00071; long-context Qwen) does so by the number of rotations within the original context, and scales queries and
keys. All are fixed when a model is made. Left out on purpose: "dynamic" and "longrope", whose frequencies change with
the length of the text, so that a cached key is no longer what training would compute.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels


@dataclass(frozen=True)
class Llama3:
    """Wavelengths above original_positions / low_freq_factor are stretched by `factor`, those below original_positions
    / high_freq_factor stay, and those between are interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class Yarn:
    """Dimensions of less than beta_slow rotations in original_positions are stretched by `factor`, those of more than
    beta_fast stay, with a ramp between them, whose ends are whole dimensions if `truncate`. attention_factor scales
    queries and keys."""

    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    original_positions: int
    truncate: bool


@dataclass(frozen=True)
class Linear:
    """All wavelengths are stretched by `factor`."""

    factor: float


Scaling = Llama3 | Yarn | Linear


def rotary(positions: Tensor, head_dim: int, theta: float, scaling: Scaling | None) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [..., 1, D/2], of the rotary embedding at int64 positions [...]."""
    angle = positions[..., None, None].float() * frequencies(head_dim, theta, scaling, positions.device)
    cos, sin = angle.cos(), angle.sin()
    if isinstance(scaling, Yarn):
        return cos * scaling.attention_factor, sin * scaling.attention_factor
    return cos, sin


def frequencies(head_dim: int, theta: float, scaling: Scaling | None, device: torch.device) -> Tensor:
    """Radians a position, float32 [D/2], operation by operation as transformers computes them."""
    powers = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    plain = 1.0 / powers
    match scaling:
        case None:
            return plain
        case Linear():
            return plain / scaling.factor
        case Llama3():
            return llama3_frequencies(plain, scaling)
        case Yarn():
            ramp = 1 - yarn_ramp(head_dim, theta, scaling, device)  # 1: as it was, 0: stretched
            return (1.0 / (scaling.factor * powers)) * (1 - ramp) + plain * ramp


def llama3_frequencies(plain: Tensor, s: Llama3) -> Tensor:
    """float32 [D/2] of unscaled frequencies [D/2]."""
    longest, shortest = s.original_positions / s.low_freq_factor, s.original_positions / s.high_freq_factor
    wavelength = 2 * math.pi / plain
    scaled = torch.where(wavelength > longest, plain / s.factor, plain)
    smooth = (s.original_positions / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    between = ~(wavelength < shortest) & ~(wavelength > longest)
    return torch.where(between, (1 - smooth) * scaled / s.factor + smooth * scaled, scaled)


def yarn_ramp(head_dim: int, theta: float, s: Yarn, device: torch.device) -> Tensor:
    """float32 [D/2]: from 0 at the dimension of beta_fast rotations to 1 at that of beta_slow."""

    def dimension(rotations: float) -> float:
        return head_dim * math.log(s.original_positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    return torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32, device=device) - low) / (high - low), 0, 1)


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """Where config.json states none: 0.1 ln(factor) + 1, or the quotient of the two that DeepSeek's files state."""

    def of(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + R/2}) of the first R numbers of x [..., heads, D] by their position's angle, where cos and
    sin are [..., 1, R/2]. The other numbers stay."""
    turned = 2 * cos.shape[-1]
    if turned == x.shape[-1]:
        return kernels.rotate(x, cos, sin)
    return torch.cat((kernels.rotate(x[..., :turned], cos, sin), x[..., turned:]), dim=-1)
