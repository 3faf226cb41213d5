"""Rollouts: a model and prompts in, graded samples out, in memory (engine) and as files (collect, store)."""

from .engine import CacheKind, Engine, cache_kind
from .lanes import cache_bytes
from .memory import FreedMemory, free_memory, keep_freed_memory, keep_large_blocks, map_large_blocks
from .pages import page_bytes, pages_of
from .sampling import SamplingParams
from .store import RolloutFolder, folder_or_temporary, problems_held, read_groups, write_shard
from .text import write_samples

__all__ = [
    "CacheKind",
    "Engine",
    "FreedMemory",
    "RolloutFolder",
    "SamplingParams",
    "cache_bytes",
    "cache_kind",
    "folder_or_temporary",
    "free_memory",
    "keep_freed_memory",
    "keep_large_blocks",
    "map_large_blocks",
    "page_bytes",
    "pages_of",
    "problems_held",
    "read_groups",
    "write_samples",
    "write_shard",
]
