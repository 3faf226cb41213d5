"""Which experts computed the rows of a decode step: kept for the update, which compares or takes them (model/experts.py)."""

import torch
from torch import Tensor

from ..model import Choose, ModelConfig, keep_choice


def empty_routes(config: ModelConfig, rows: int, device: torch.device) -> Tensor | None:
    """Room for them: uint8, or int16 where there are more than 256 experts, [rows, layers with experts, chosen]; None where
    there are none."""
    experts = config.experts
    if experts is None:
        return None
    dtype = torch.uint8 if experts.count <= 256 else torch.int16
    return torch.zeros(rows, len(experts.layers), experts.chosen, dtype=dtype, device=device)


def noted(routes: Tensor | None, config: ModelConfig) -> Choose:
    """`choose` of a decode step that leaves the router's choice in `routes`."""
    if routes is None or config.experts is None:
        return keep_choice
    index = {layer: i for i, layer in enumerate(config.experts.layers)}

    def choose(layer: int, chosen: Tensor) -> Tensor:
        routes[:, index[layer]] = chosen.to(routes.dtype)
        return chosen

    return choose
