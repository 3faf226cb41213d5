"""Many processes as one run: the only place that knows a rank. Without torchrun every function does one process's work."""

from .sharding import clip_gradients, settle, trained_model, whole_units
from .sums import largest, own, shares, total
from .world import is_lead, meet, once, opened, same, sign_of_life, together

__all__ = [
    "clip_gradients",
    "is_lead",
    "largest",
    "meet",
    "once",
    "opened",
    "own",
    "same",
    "settle",
    "shares",
    "sign_of_life",
    "together",
    "total",
    "trained_model",
    "whole_units",
]
