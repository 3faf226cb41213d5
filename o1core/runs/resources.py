"""Where a run computes and with whom, how many completions it decodes at once, and who else receives its log."""

from dataclasses import dataclass

import torch

from ..distributed import ALONE, Offload, Team, meet, neighbours
from ..model import Tokenizer, Transformer
from ..rollout import Engine, cache_bytes, free_memory
from ..training import check_installed

LONG_PROMPT, MOST_SLOTS = 1024, 256  # what a slot is sized for besides the completion; more slots gain little


@dataclass(frozen=True)
class Resources:
    """device; slots: completions decoded at once (None: as many as fit into half of the free memory); tracker: one of
    training.TRACKERS; team: the ranks that share a model to sample from; offload: what waits in the host's memory
    meanwhile. Nothing here may change a result, only its speed."""

    device: torch.device
    slots: int | None = None
    tracker: str | None = None
    team: Team = ALONE
    offload: Offload = "none"

    def __post_init__(self) -> None:
        if self.tracker is not None:
            check_installed(self.tracker)

    def engine(self, model: Transformer, tokenizer: Tokenizer, max_new_tokens: int) -> Engine:
        """An engine for completions of at most max_new_tokens."""
        slots = self.slots
        if slots is None:
            tokens = min(max_new_tokens + LONG_PROMPT, model.config.max_positions)
            sharing = neighbours() if self.device.type == "cpu" else 1
            fit = free_memory(self.device) // 2 // sharing // cache_bytes(model.config, tokens, model.embed.dtype)
            slots = min(meet("the rollout engine", max(1, min(MOST_SLOTS, fit))))  # a team decodes in step
        return Engine(model, tokenizer, slots, self.team)
