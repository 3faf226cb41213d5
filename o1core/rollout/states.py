"""What a row of a hybrid model has beside its keys and values: the state of each delta-rule layer, of one size whatever
its length.

The samples of a prompt each begin with a copy of its state. A row keeps its place from its admission to its end, so nothing
moves when rows do; a decode step reads the states of its rows, and writes them back. The first place is nobody's: rows that
fill a batch use it.
"""

import torch
from torch import Tensor

from ..kernels import delta_step
from ..model import DeltaInputs, DeltaState, ModelConfig, Recur
from .row import Row


class DeltaStates:
    """States of up to `slots` rows: tails [L, slots + 1, C, kernel - 1], memories float32 [L, slots + 1, Hv, K, V], L the
    delta-rule layers (0: there are none, and nothing is held)."""

    def __init__(self, config: ModelConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.index = {layer: i for i, layer in enumerate(config.delta_layers)}
        tail, memory = state_shapes(config)
        layers = len(self.index)
        self.tails = torch.zeros((layers, slots + 1, *tail), dtype=dtype, device=device)
        self.memories = torch.zeros((layers, slots + 1, *memory), dtype=wide(dtype), device=device)
        self.slots = slots
        self.clear()

    def clear(self) -> None:
        self.free = list(range(self.slots, 0, -1))
        self.places: dict[Row, int] = {}

    def add(self, row: Row, state: DeltaState | None) -> None:
        """Take a row that begins with a state, tail [L, C, kernel - 1] and memory [L, Hv, K, V]."""
        if state is not None:
            place = self.places[row] = self.free.pop()
            self.tails[:, place], self.memories[:, place] = state

    def drop(self, row: Row) -> None:
        if row in self.places:
            self.free.append(self.places.pop(row))

    def place(self, row: Row) -> int:
        return self.places.get(row, 0)

    def recur(self, places: Tensor) -> Recur:
        """The `recur` of one decode step of the rows at places, int64 [R]. It moves their states on."""

        def recur(layer: int, inputs: DeltaInputs) -> Tensor:
            i, kernel = self.index[layer], inputs.kernel[:, 0]
            return delta_step(inputs.mixed, inputs.decay, inputs.beta, kernel, self.tails[i], self.memories[i], places)

        return recur


def state_shapes(config: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of one layer's tail and memory."""
    c = config.delta
    if c is None:
        return (0, 0), (0, 0, 0)
    return (sum(c.widths), c.kernel - 1), (c.value_heads, c.key_dim, c.value_dim)


def state_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one row's states in all layers."""
    (channels, kept), (heads, keys, values) = state_shapes(config)
    of_layer = channels * kept * dtype.itemsize + heads * keys * values * wide(dtype).itemsize
    return len(config.delta_layers) * of_layer


def wide(dtype: torch.dtype) -> torch.dtype:
    """What states are held in: at least float32."""
    return torch.promote_types(dtype, torch.float32)
