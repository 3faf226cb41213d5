"""Weights in the layout that oneDNN multiplies fastest, while a CPU samples rollouts in bf16.

A plain product of a few rows with a large matrix first copies parts of the matrix into that layout, at every call.
Packing all of them once for each call of the engine made decoding a 0.5B model a quarter faster, for a second copy of its
matrices in memory. Elsewhere (a GPU, other dtypes, a model that is large for the machine) nothing is packed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Transformer
from .memory import total_memory

ROWS = 64  # a typical count of rows, for oneDNN to choose the layout by

Product = Callable[[Tensor], Tensor]


def product(weight: Tensor, bias: Tensor | None, packed: bool) -> Product:
    """x [..., H] -> x weight^T + bias [..., O], with the weight as it is now."""
    if not packed:
        return lambda x: F.linear(x, weight, bias)
    layout = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, layout, bias, "none", [], "")


def worth_packing(model: Transformer) -> bool:
    """Whether the model computes in bf16 on a CPU whose oneDNN does, and is an eighth of the machine's memory at most.

    What is free at the moment does not count: a packed product may round otherwise, and a run that resumes must not.
    """
    weight = model.embed
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.bfloat16
        or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return False
    return 8 * sum(p.nbytes for p in model.parameters()) <= total_memory()


@contextmanager
def packed_model(model: Transformer, vocab: int) -> Iterator[Product]:
    """Inside, the model's matrices are packed; yields the head's product, logits [..., vocab] of hidden states [..., H].

    No gradient flows through packed matrices, and they do not follow an update: train after the rollouts, not between.
    """
    packed = worth_packing(model)
    linears = [module for module in model.modules() if packed and isinstance(module, nn.Linear)]
    try:
        with torch.inference_mode():
            for module in linears:
                vars(module)["forward"] = product(module.weight, module.bias, packed)
            head = product(model.lm_head[:vocab], None, packed)
        yield head
    finally:
        for module in linears:
            vars(module).pop("forward", None)
