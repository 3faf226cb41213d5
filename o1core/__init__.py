"""O1-Pruner from scratch: make a long-thought model think shorter and no worse.

Names are imported when they are first asked for, so that `o1core --help` and `o1core.__version__` need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import grading, kernels, metrics, rewards, rewards_over_rounds
    from .model import Tokenizer, Transformer, load
    from .rollout import Engine, SamplingParams
    from .types import Completion

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "Engine",
    "SamplingParams",
    "Tokenizer",
    "Transformer",
    "__version__",
    "grading",
    "kernels",
    "load",
    "metrics",
    "rewards",
    "rewards_over_rounds",
]

_ROOMS = {"grading", "kernels", "metrics", "rewards", "rewards_over_rounds"}
_ROOM_OF = {
    "Completion": "types",
    "Engine": "rollout",
    "SamplingParams": "rollout",
    "Tokenizer": "model",
    "Transformer": "model",
    "load": "model",
}


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _ROOM_OF:
        return getattr(import_module(f".{_ROOM_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
