"""Many processes as one run: the only place that knows a rank. Without torchrun every function does one process's work."""

from .dealing import deal
from .export import export_checkpoint
from .offload import HostMemory
from .sharded import is_sharded, local
from .sharding import clip_gradients, reshard, trained_model
from .states import BackgroundSave, damaged_by_all, digests_by_all, file_numbers, load_tensors, save_tensors
from .sums import deferred, largest, of_this_rank, split_by_cost, total
from .teams import (
    ALONE,
    Team,
    allot_weights,
    check_tensors,
    copy_weights,
    drop_weights,
    load_part,
    share_tokens,
    team_of,
)
from .world import (
    at_work,
    check_same,
    gather,
    is_lead,
    neighbours,
    on_all_ranks,
    on_rank0,
    opened,
    processes,
    processes_asked,
)

__all__ = [
    "ALONE",
    "BackgroundSave",
    "HostMemory",
    "Team",
    "allot_weights",
    "at_work",
    "check_same",
    "check_tensors",
    "clip_gradients",
    "copy_weights",
    "damaged_by_all",
    "deal",
    "deferred",
    "digests_by_all",
    "drop_weights",
    "export_checkpoint",
    "file_numbers",
    "gather",
    "is_lead",
    "is_sharded",
    "largest",
    "load_part",
    "load_tensors",
    "local",
    "neighbours",
    "of_this_rank",
    "on_all_ranks",
    "on_rank0",
    "opened",
    "processes",
    "processes_asked",
    "reshard",
    "save_tensors",
    "share_tokens",
    "split_by_cost",
    "team_of",
    "total",
    "trained_model",
]
