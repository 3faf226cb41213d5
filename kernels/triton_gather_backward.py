"""The gradient of stored logits: one program a row and block of columns, in place of the logits where asked for."""

import torch
import triton
import triton.language as tl

from . import configs
from .configs import FLOOR
from .row_coefficients import RowNumbers, row_coefficients


@triton.jit
def gather_backward_kernel(
    logits: tl.tensor,
    targets: tl.tensor,
    top: tl.tensor,
    at_target: tl.tensor,
    constant: tl.tensor,
    linear: tl.tensor,
    d_logits: tl.tensor,
    vocab_size: tl.tensor,
    columns: tl.tensor,
    blocks: tl.tensor,
    row_stride: tl.tensor,
    d_row_stride: tl.tensor,
    inv_temperature: tl.float64,
    ENTROPY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """One block of one row: logits -> d_logits, zero from vocab_size on. Both may be the same memory."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK_V + tl.arange(0, BLOCK_V)
    inv_temperature = tl.full((), inv_temperature, ACC)
    z = tl.load(logits + row * row_stride + column, mask=column < columns, other=0.0).to(ACC) * inv_temperature
    z = tl.where(column < vocab_size, z - tl.load(top + row), float("-inf"))
    factor = tl.load(constant + row)
    if ENTROPY:
        factor += tl.load(linear + row) * tl.maximum(z, FLOOR)
    dz = tl.where(column == tl.load(targets + row), tl.load(at_target + row), tl.exp(z) * factor)
    dz = dz.to(d_logits.dtype.element_ty)
    tl.store(d_logits + row * d_row_stride + column, dz, mask=column < columns)


def gather_backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    known: RowNumbers,
    logp_grad: torch.Tensor,
    entropy_grad: torch.Tensor | None,
    inv_temperature: float,
    vocab_size: int,
    inplace: bool,
) -> torch.Tensor:
    """-> d_logits [N, V] in the dtype of logits; with inplace it is logits, written over."""
    rows, columns = logits.shape
    row = row_coefficients(known, logp_grad, entropy_grad, inv_temperature)
    launch = configs.elementwise(configs.GATHER, logits.device)
    d_logits = logits if inplace else torch.empty_like(logits, memory_format=torch.contiguous_format)
    blocks = triton.cdiv(columns, launch.constants["BLOCK_V"])
    if rows:
        gather_backward_kernel[(rows * blocks,)](
            logits,
            targets.contiguous(),
            known.top,
            row.at_target,
            row.constant,
            row.constant if row.linear is None else row.linear,
            d_logits,
            vocab_size,
            columns,
            blocks,
            logits.stride(0),
            d_logits.stride(0),
            inv_temperature,
            ENTROPY=row.linear is not None,
            ACC=configs.accumulator(logits.dtype),
            **launch.options(),
        )
    return d_logits
