"""Many processes as one run: the only place that knows a rank. Without torchrun every function does one process's work."""

from .dealing import deal
from .export import export_checkpoint
from .offload import Offload, offloaded
from .sharded import is_sharded, local
from .sharding import clip_gradients, settle, trained_model
from .states import Writing, file_numbers, load_tensors, save_tensors
from .sums import any_rank, largest, own, shares, total
from .teams import ALONE, Team, allot_weights, copy_weights, drop_weights, load_part, share_tokens, team_of
from .world import PATIENCE, is_lead, meet, neighbours, once, opened, processes, processes_asked, same, together

__all__ = [
    "ALONE",
    "PATIENCE",
    "Offload",
    "Team",
    "Writing",
    "allot_weights",
    "any_rank",
    "clip_gradients",
    "copy_weights",
    "deal",
    "drop_weights",
    "export_checkpoint",
    "file_numbers",
    "is_lead",
    "is_sharded",
    "largest",
    "load_part",
    "load_tensors",
    "local",
    "meet",
    "neighbours",
    "offloaded",
    "once",
    "opened",
    "own",
    "processes",
    "processes_asked",
    "same",
    "save_tensors",
    "settle",
    "share_tokens",
    "shares",
    "team_of",
    "together",
    "total",
    "trained_model",
]
