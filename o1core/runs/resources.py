"""Where a run computes, how many completions it decodes at once, and who else receives its log."""

from dataclasses import dataclass

import torch

from ..model import Tokenizer, Transformer
from ..rollout import Engine, cache_bytes, free_memory
from ..training import check_installed

LONG_PROMPT, MOST_SLOTS = 1024, 256  # what a slot is sized for besides the completion; more slots gain little


@dataclass(frozen=True)
class Resources:
    """device; slots: completions decoded at once (None: as many as fit into half of the free memory); tracker: one of
    training.TRACKERS. Nothing here may change a result, only its speed."""

    device: torch.device
    slots: int | None = None
    tracker: str | None = None

    def __post_init__(self) -> None:
        if self.tracker is not None:
            check_installed(self.tracker)

    def engine(self, model: Transformer, tokenizer: Tokenizer, max_new_tokens: int) -> Engine:
        """An engine for completions of at most max_new_tokens."""
        slots = self.slots
        if slots is None:
            tokens = min(max_new_tokens + LONG_PROMPT, model.config.max_positions)
            fit = free_memory(self.device) // 2 // cache_bytes(model.config, tokens, model.embed.dtype)
            slots = max(1, min(MOST_SLOTS, fit))
        return Engine(model, tokenizer, slots)
