"""One table for all differentiable kernels: the op, plain torch for the same, and inputs. test_every_kernel.py walks over it.

A new kernel gets a row here and with it: gradcheck, an error against float64 that is at most torch's own in every dtype, and
bits that do not depend on the rows beside it. What is peculiar to a kernel is tested in a file of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from o1core import kernels
from tests.kernels import reference
from tests.kernels.kernel_cases import CLIP, RATIOS, TEMPERATURES, upstream
from tests.kernels.triton_cases import BLOCK_N, BLOCK_V, DEVICE, head, ids, normal

EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """ours and plain take (*leaves, *rest) and return a tensor or several; leaves are differentiated.

    rows: whether the first leaf's rows are computed apart, as those of `rest` are. wide: whether what comes out has the
    accumulator's dtype, and not the inputs'. on: the backends that have the op.
    """

    name: str
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    leaves: tuple[Tensor, ...]
    rest: tuple[Tensor, ...] = ()
    rows: bool = False
    wide: bool = True
    on: tuple[str, ...] = field(default=("torch", "triton"))

    def inputs(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Leaves and rest in a dtype; ids and masks stay what they are."""
        leaves, rest = (
            [t.to(dtype) if t.is_floating_point() else t for t in part] for part in (self.leaves, self.rest)
        )
        return leaves, rest


def outputs(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def results(op: Callable[..., Any], leaves: list[Tensor], rest: list[Tensor]) -> tuple[Tensor, ...]:
    """The outputs, and the leaves' gradients under ones from above that differ from number to number."""
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]
    found = outputs(op(*leaves, *rest))
    above = [upstream(o.shape, seed, torch.float64).to(o) for seed, o in enumerate(found, 1)]
    return *(o.detach() for o in found), *torch.autograd.grad(found, leaves, above)


def plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def plain_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def angles(*shape: int) -> tuple[Tensor, Tensor]:
    angle = normal(*shape, seed=3)
    return angle.cos(), angle.sin()


def elementwise() -> list[Case]:
    """Rows beyond one block, widths that no power of two is, heads that lie inside a wider product, and angles of one sequence
    for all of a batch."""
    wide = normal(2, 3, 5 * 12, seed=7).unflatten(-1, (5, 12))[..., 1:4, :10]  # [2, 3, 3, 10], heads 12 apart

    def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
        return kernels.rms_norm(x, weight, EPS)

    case = partial(Case, rows=True, wide=False)
    return [
        case("rms_norm", rms_norm, plain_rms_norm, (normal(3, 5, 24), normal(24, seed=1))),
        case("rms_norm, one wide row", rms_norm, plain_rms_norm, (normal(1, 130), normal(130, seed=1))),
        case("rotate", kernels.rotate, plain_rotate, (wide,), angles(3, 1, 5)),
        case("rotate, an angle a row", kernels.rotate, plain_rotate, (normal(4, 2, 16),), angles(4, 1, 8)),
        case("swiglu", kernels.swiglu, plain_swiglu, (normal(2, 3, 2 * 70, scale=3.0),)),
    ]


def log_probs() -> list[Case]:
    """Rows and columns on both sides of a block's edge, a padded vocabulary, one row, logits around 90 and -120."""
    found = []
    for temperature in TEMPERATURES:
        for n, v, h, known in (
            (3, 5, 2, 4),
            (1, 11, 3, 6),
            (3, 1, 3, None),
            (BLOCK_N + 1, BLOCK_V + 7, 19, BLOCK_V + 6),
        ):
            options = {"temperature": temperature, "vocab_size": known, "entropy": True}
            name = f"{n} x {v} of {known or v}, temperature {temperature}"
            hidden, weight, _ = head(n, v, h)
            ops = (partial(of.linear_logprob, **options) for of in (kernels, reference))
            found.append(Case(f"linear_logprob {name}", *ops, (hidden, weight), (ids(n, known or v),), rows=True))
            ops = (partial(of.gather_logprob, **options) for of in (kernels, reference))
            found.append(
                Case(f"gather_logprob {name}", *ops, (normal(n, v, scale=3.0),), (ids(n, known or v),), rows=True)
            )
    hidden, weight, targets = head(3, BLOCK_V + 5, 3)
    ops = (of.linear_logprob for of in (kernels, reference))
    found.append(Case("linear_logprob without entropy", *ops, (hidden, weight), (targets,), rows=True))
    ops = (of.gather_logprob for of in (kernels, reference))
    found.append(Case("gather_logprob without entropy", *ops, (normal(7, 13),), (ids(7, 13),), rows=True))
    for n, v, known in ((37, 301, 290), (64, 257, None)):
        hidden, weight, _ = head(n, v, 48)
        ops = (partial(of.linear_logprob, vocab_size=known, entropy=True) for of in (kernels, reference))
        inputs = (hidden, 3 * weight), (ids(n, known or v),)
        found.append(Case(f"linear_logprob {n} x {v} around 0, far apart", *ops, *inputs, rows=True, on=("torch",)))
    ops = (partial(of.gather_logprob, temperature=0.7, vocab_size=200, entropy=True) for of in (kernels, reference))
    inputs = (normal(33, 205, scale=40.0),), (ids(33, 200),)
    found.append(Case("gather_logprob 33 x 205 around 0, far apart", *ops, *inputs, rows=True, on=("torch",)))
    for level in (0.0, 90.0, -120.0):
        hidden, weight, targets = head(21, 3 * BLOCK_V - 5, 24, level=level)
        ops = (partial(of.linear_logprob, entropy=True) for of in (kernels, reference))
        found.append(Case(f"linear_logprob around {level:g}", *ops, (hidden, weight), (targets,), rows=True))
        ops = (partial(of.gather_logprob, temperature=0.7, entropy=True) for of in (kernels, reference))
        found.append(
            Case(f"gather_logprob around {level:g}", *ops, (normal(9, 131) + level,), (ids(9, 131),), rows=True)
        )
    return found


def losses() -> list[Case]:
    """Four sequences, one empty and one of a single token; log-ratios on both sides of every edge, one beyond the clamp."""
    n, settings = 13, {**CLIP, "normalizer": 5.0}
    cu_seqlens = torch.tensor([0, 9, 9, n - 1, n], device=DEVICE)
    advantage = torch.tensor([1.3, 2.0, -0.8, 0.6], dtype=torch.float64, device=DEVICE)
    mask = normal(n, seed=2) > -0.8
    mask[-1] = True
    ref_logp = -normal(n).abs()
    hidden, weight, targets = head(n, BLOCK_V + 3, 2)
    found = []
    for ratio in RATIOS:
        for spread in (0.02, 0.3, 2.0):
            logp = ref_logp + normal(n, seed=1, scale=spread)
            logp[-1] = ref_logp[-1] - 25
            ops = (partial(first, of.clipped_surrogate, ratio=ratio, **settings) for of in (kernels, reference))
            rest = (ref_logp, advantage, cu_seqlens, mask)
            found.append(Case(f"clipped_surrogate {ratio}, spread {spread}", *ops, (logp,), rest))
        for temperature in TEMPERATURES:
            options = {"ratio": ratio, "temperature": temperature, **settings}
            ops = (partial(first, of.linear_surrogate, **options) for of in (kernels, reference))
            near = reference.linear_logprob(hidden, weight, targets, temperature=temperature)
            rest = (targets, near + normal(n, seed=6, scale=0.25), advantage, cu_seqlens, mask)
            found.append(Case(f"linear_surrogate {ratio}, temperature {temperature}", *ops, (hidden, weight), rest))
    return found


def first(op: Callable[..., Any], *inputs: Tensor, **settings: Any) -> Tensor:
    """The loss without its metrics."""
    loss: Tensor = op(*inputs, **settings)[0]
    return loss


def divergence() -> list[Case]:
    """Against a teacher of another width and another padding."""
    teacher = normal(7, 6, seed=5), normal(15, 6, seed=6, scale=6**-0.5)
    ops = (partial(of.linear_reverse_kl, vocab_size=11) for of in (kernels, reference))
    student = normal(7, 5, seed=2), normal(13, 5, seed=3, scale=5**-0.5)
    return [Case("linear_reverse_kl", *ops, student, teacher, on=("torch",))]


TABLE = {case.name: case for case in (*elementwise(), *log_probs(), *losses(), *divergence())}
