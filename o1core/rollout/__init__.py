"""Rollouts: a model and prompts in, graded samples out, in memory (engine) and as files (collect, store)."""

from .engine import MOST_SLOTS, CacheKind, Engine, cache_kind, fit_cache
from .lanes import cache_bytes
from .memory import FreedMemory, free_memory, keep_freed_memory, keep_large_tensors, map_large_tensors
from .pages import page_bytes, pages_of
from .sampling import SamplingParams
from .store import RolloutFolder, folder_or_temporary, problems_held, read_groups, write_shard
from .text import write_samples

__all__ = [
    "MOST_SLOTS",
    "CacheKind",
    "Engine",
    "FreedMemory",
    "RolloutFolder",
    "SamplingParams",
    "cache_bytes",
    "cache_kind",
    "fit_cache",
    "folder_or_temporary",
    "free_memory",
    "keep_freed_memory",
    "keep_large_tensors",
    "map_large_tensors",
    "page_bytes",
    "pages_of",
    "problems_held",
    "read_groups",
    "write_samples",
    "write_shard",
]
