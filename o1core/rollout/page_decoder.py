"""Decode steps over the paged cache: the host says what to compute and does not look at what comes out.

A step's tokens are taken on the device from what the step before has sampled, its random numbers are made there, and its
results are read when the next step is under way. What the host knows is sent with every step in two small copies: each
row's key, number of tokens and place in the step before, and the pages. So one row too many is computed where a row ends
with its end-of-text token: the host learns of it a step later, and drops what was sampled after it.

Rows are computed in blocks of a fixed number of rows (blocks.py), so that every product has the same shape: 256 on a GPU,
where a smaller block would read the weights for as long. On a CPU the same code runs with the kernels' torch twins and
reads its results at once. Graphs (graphs.py) need Triton's kernels, which nothing has to wait for; a team of ranks runs
without them, because an all-reduce inside of a graph is not tried.
"""

import numpy as np
import torch

from ..distributed import Team, share_tokens
from ..errors import UserError
from ..kernels import SPLIT_TOKENS, refused_heads, runs_triton, sample_tokens
from ..model import Transformer
from .blocks import Blocks
from .decoder import Read, sent
from .graphs import Captured, rounded_splits
from .packing import Product
from .pages import PagedCache
from .row import Row
from .sampling import NOT_FINITE, SamplingParams, device_uniforms, sample

FIELDS = ("key", "length", "steps", "place in the step before", "token of a row's first step")  # of what is sent


class PageDecoder:
    """Decode steps of `model` for the rows of `cache`. head: hidden states -> logits; team: the ranks that hold the model.

    behind: how many steps the host may launch before it reads the first one's results.
    """

    def __init__(
        self, model: Transformer, head: Product, cache: PagedCache, blocks: Blocks, params: SamplingParams, team: Team
    ) -> None:
        self.model, self.head, self.cache, self.blocks, self.params = model, head, cache, blocks, params
        self.team = team
        device, config = model.embed.device, model.config
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        self.triton = runs_triton(device) and refused_heads(*heads) is None
        self.behind = int(device.type == "cuda")
        self.graphs = Captured() if device.type == "cuda" and self.triton and team.members == 1 else None
        rows = -(-len(cache.table) // blocks.base) * blocks.base
        self.live = 0  # rows of the step that are not there to fill a block
        self._places: dict[Row, int] = {}  # of the rows of the step before
        with torch.inference_mode():
            self.sent = torch.zeros(len(FIELDS), rows, dtype=torch.int64, device=device)
            self.table = torch.zeros(rows, cache.table.shape[1], dtype=torch.int32, device=device)
            self.tokens, self.ids = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
            self.lengths, self.flags = (torch.zeros(rows, dtype=torch.int32, device=device) for _ in range(2))
            self.logprobs = torch.zeros(rows, dtype=torch.float32, device=device)

    @torch.inference_mode()
    def launch(self, rows: list[Row]) -> Read:
        """Start one step for all rows of the cache, which have room for a token. Returns what reads its ids and log-probs."""
        self._send(rows)
        sizes = self.blocks.cut(len(rows)) if self.ids.device.type == "cpu" else self._whole_blocks(len(rows))
        first = 0
        for size in sizes:
            longest = max((row.length + 1 for row in rows[first : first + size]), default=1)
            numbers = first, size, rounded_splits(longest, SPLIT_TOKENS, self.cache.splits)
            if self.graphs is None:
                self._compute(*numbers)
            else:
                self.graphs(self._compute, *numbers)
            first += size
        share_tokens(self.ids, self.team)
        self._places = {row: i for i, row in enumerate(rows)}
        return self._results(len(rows))

    def _whole_blocks(self, rows: int) -> list[int]:
        return [self.blocks.base] * -(-rows // self.blocks.base)

    def _send(self, rows: list[Row]) -> None:
        """What the step needs to know, and the tokens that it is fed."""
        self.live = len(rows)
        facts = np.zeros(self.sent.shape, dtype=np.int64)
        columns = [(row.length + 1, row.steps, self._places.get(row, -1), row.token) for row in rows]
        facts[1:, : self.live] = np.array(columns, dtype=np.int64).T
        facts[0, : self.live] = np.array([row.key for row in rows], dtype=np.uint64).view(np.int64)
        device = self.ids.device
        self.sent.copy_(sent(torch.from_numpy(facts), device))
        self.table[: self.live] = sent(torch.from_numpy(self.cache.table[: self.live]), device)
        _, lengths, _, places, prompt_tokens = self.sent
        self.lengths.copy_(lengths)
        torch.where(places < 0, prompt_tokens, self.ids[places.clamp(min=0)], out=self.tokens)

    def _compute(self, first: int, rows: int, splits: int) -> None:
        """The step of a block: hidden states, logits, random numbers, tokens. Writes nothing that it reads, but pages."""
        own = slice(first, first + rows)
        attend = self.cache.decode_attention(self.model, self.table[own], self.lengths[own], splits * SPLIT_TOKENS)
        logits = self.head(self.model(self.tokens[own], None, attend))
        u = device_uniforms(self.sent[0, own], self.sent[2, own])
        if self.triton:
            p = self.params
            found = sample_tokens(logits, u, temperature=p.temperature, top_k=p.top_k, top_p=p.top_p)
            self.ids[own], self.logprobs[own], self.flags[own] = found
        else:
            own = slice(first, min(first + rows, self.live))
            count = own.stop - own.start
            self.ids[own], self.logprobs[own] = sample(logits[:count], u[:count], self.params)

    def _results(self, count: int) -> Read:
        """A copy of the results on its way to the host, and what waits for it."""
        on_gpu = self.ids.device.type == "cuda"
        copies = [torch.empty(count, dtype=t.dtype, pin_memory=on_gpu) for t in (self.ids, self.logprobs, self.flags)]
        for copy, source in zip(copies, (self.ids, self.logprobs, self.flags)):
            copy.copy_(source[:count], non_blocking=on_gpu)
        done = torch.cuda.Event() if on_gpu else None
        if done is not None:
            done.record()

        def read() -> tuple[list[int], list[float]]:
            if done is not None:
                done.synchronize()
            ids, logprobs, flags = (copy.tolist() for copy in copies)
            if any(flags):
                raise UserError(NOT_FINITE)
            return ids, logprobs

        return read
