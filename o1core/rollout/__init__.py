"""Rollouts: a model and prompts in, graded samples out, in memory (engine) and as files (collect, store)."""

from .collect import opening_ids, sample_problems
from .engine import CacheKind, Engine, cache_kind
from .lanes import cache_bytes
from .memory import FreedMemory, free_memory, keep_freed_memory, map_large_blocks
from .pages import page_bytes, pages_of
from .sampling import SamplingParams
from .store import problems_held, read_groups, write_shard

__all__ = [
    "CacheKind",
    "Engine",
    "FreedMemory",
    "SamplingParams",
    "cache_bytes",
    "cache_kind",
    "free_memory",
    "keep_freed_memory",
    "map_large_blocks",
    "opening_ids",
    "page_bytes",
    "pages_of",
    "problems_held",
    "read_groups",
    "sample_problems",
    "write_shard",
]
