"""The two KV caches behind one interface, and which of them a device gets.

Lanes (lanes.py) are rows side by side, which a CPU's products read in place. Pages (pages.py) hold as many rows as their
tokens fit, which is what a GPU needs. O1CORE_CACHE=lanes|pages chooses; without it a GPU has pages and a CPU lanes.
"""

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import UserError
from ..kernels import refused_heads, runs_triton
from ..model import ModelConfig
from .row import Row

log = logging.getLogger(__name__)

CacheKind = Literal["lanes", "pages"]


class Cache(Protocol):
    """Keys and values of the rows that are decoded. Each cache has its own decode_attention, for its own decoder."""

    def rows(self) -> list[Row]:
        """All rows in the order in which a decode step computes them."""
        ...

    def add(self, row: Row, keys: Tensor, values: Tensor) -> bool:
        """Take a row whose first tokens have keys and values [L, Hkv, T, D]; False where there is no room for it now."""
        ...

    def make_room(self) -> list[Row]:
        """Room for the next token of every row. Returns the rows that had to leave for it and start again."""
        ...

    def keep(self, is_live: Callable[[Row], bool]) -> None:
        """Drop the rows for which is_live(row) is false."""
        ...

    def clear(self) -> None:
        """Forget all rows."""
        ...


def cache_kind(config: ModelConfig, device: torch.device) -> CacheKind:
    """The cache for a model on a device, which need not be there. Raises UserError where O1CORE_CACHE names none.

    A GPU whose pages the Triton kernels do not take has lanes, with one line that says so: the torch twins of the kernels
    wait for the device in every layer.
    """
    asked = os.environ.get("O1CORE_CACHE") or None
    if asked == "lanes":
        return "lanes"
    if asked == "pages":
        return "pages"
    if asked is not None:
        raise UserError(f"O1CORE_CACHE: {asked!r} is no KV cache; use lanes or pages, or unset it")
    if device.type != "cuda" or (torch.cuda.is_available() and not runs_triton(device)):
        return "lanes"
    reason = refused_heads(config.num_heads, config.num_kv_heads, config.head_dim)
    if reason is None:
        return "pages"
    _warn_once(reason)
    return "lanes"


@cache
def _warn_once(reason: str) -> None:
    log.warning("KV cache: %s, which the Triton kernels take; lanes run instead of pages, with fewer slots", reason)
