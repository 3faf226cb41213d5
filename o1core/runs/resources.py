"""Where a run computes and with whom, how many completions it decodes at once, and who else receives its log."""

from dataclasses import dataclass

import torch

from ..distributed import ALONE, Offload, Team, gather, neighbours
from ..model import ModelConfig, Tokenizer, Transformer
from ..rollout import Engine, cache_bytes, cache_kind, free_memory, page_bytes, pages_of
from ..training import check_installed

LONG_PROMPT, MOST_SLOTS = 1024, 256  # what a slot is sized for besides the completion; more lanes gain little
BLOCK_SLOTS, MOST_PAGED_SLOTS = 256, 512  # rows that a GPU computes at once; two blocks of them read the weights twice
MEAN_SHARE = (
    4  # rows are taken to be a quarter as long as they may be; Marco-o1's are an eighth (1,200 of 9,216 tokens)
)


@dataclass(frozen=True)
class Resources:
    """device; slots: completions decoded at once (None: as many as fit into half of the free memory); pages: of a paged KV
    cache, for all of them (None: what half of the free memory holds); tracker: one of training.TRACKERS; team: the ranks
    that share a model to sample from; offload: what waits in the host's memory meanwhile. Nothing here may change a result,
    only its speed."""

    device: torch.device
    slots: int | None = None
    tracker: str | None = None
    team: Team = ALONE
    offload: Offload = "none"
    pages: int | None = None

    def __post_init__(self) -> None:
        if self.tracker is not None:
            check_installed(self.tracker)

    def engine(self, model: Transformer, tokenizer: Tokenizer, max_new_tokens: int) -> Engine:
        """An engine for completions of at most max_new_tokens."""
        config, dtype = model.config, model.embed.dtype
        paged = cache_kind(config, self.device) == "pages"
        slots, pages = self.slots, self.pages if paged else None
        if slots is None or (paged and pages is None):
            tokens = min(max_new_tokens + LONG_PROMPT, config.max_positions)
            sharing = neighbours() if self.device.type == "cpu" else 1
            room = min(gather("the rollout engine", free_memory(self.device) // 2 // sharing))  # a team decodes in step
            if paged:
                slots, pages = fit_pages(config, tokens, dtype, room, slots)
            else:
                slots = max(1, min(MOST_SLOTS, room // cache_bytes(config, tokens, dtype)))
        return Engine(model, tokenizer, slots, self.team, pages)


def fit_pages(
    config: ModelConfig, longest: int, dtype: torch.dtype, room: int, slots: int | None = None
) -> tuple[int, int]:
    """(slots, pages) of a paged cache of `room` bytes for rows of up to `longest` tokens: slots, where they are not given,
    by the mean length of a row, in whole blocks of rows where there is more than one; pages for all of them at their longest
    where there is room, and never fewer than one row may need."""
    pages = room // page_bytes(config, dtype)
    if slots is None:
        slots = max(1, min(MOST_PAGED_SLOTS, pages // pages_of(-(-longest // MEAN_SHARE))))
        if slots > BLOCK_SLOTS:
            slots -= slots % BLOCK_SLOTS
    return slots, max(pages_of(longest), min(pages, slots * pages_of(longest)))
