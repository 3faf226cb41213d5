"""The KV cache of the rollout engine in pages: memory by the tokens that rows have, not by those that they may have.

A page holds 64 tokens of all layers. A row takes its next page when its tokens fill the last one; the host knows all
lengths, so it allots pages without asking the device. The full pages of a prompt are shared by its samples, and counted;
the last, partly filled one is written for each sample anew. A page is free when nobody owns it any more.

Where no page is free, the row that came last gives up its own and starts again later. Its bits depend on its key alone,
so the second start finds the same tokens, and the row that came first always ends. After that nobody is admitted until a
row has left. Left out on purpose: pages swapped out to the host's memory (a restart costs less than it seems: the row
that came last has done least), and a prompt's pages found again by their contents (each prompt comes once).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..kernels import PAGE_TOKENS, SPLIT_TOKENS, paged_attention, write_pages
from ..model import Attend, ModelConfig, Transformer
from .row import Row


class PagePool:
    """Which pages are free, and how many owners the others have."""

    def __init__(self, pages: int) -> None:
        self.owners = [0] * pages
        self.free = list(reversed(range(pages)))  # the page that came back last is taken first

    def take(self) -> int:
        page = self.free.pop()
        self.owners[page] = 1
        return page

    def share(self, pages: list[int]) -> list[int]:
        """The same pages, with one more owner each."""
        for page in pages:
            assert self.owners[page] > 0
            self.owners[page] += 1
        return list(pages)

    def give_back(self, pages: list[int]) -> None:
        """One owner less for each of the pages."""
        for page in pages:
            self.owners[page] -= 1
            assert self.owners[page] >= 0
            if self.owners[page] == 0:
                self.free.append(page)


class PagedCache:
    """`pages` pages for up to `slots` rows of at most `max_length` tokens each.

    A row's place in rows() is its row of `table`, int32 [slots, width], which names its pages in order; entries past its
    last page mean nothing. keys and values are [L, pages, Hkv, 64, D]. Raises UserError where one row may need more
    pages than there are.
    """

    def __init__(
        self, config: ModelConfig, slots: int, pages: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        if pages < pages_of(max_length):
            raise UserError(
                f"KV cache: {pages} pages of {PAGE_TOKENS} tokens do not hold one completion of {max_length} tokens with "
                "its prompt; lower --max-new-tokens or free some memory"
            )
        shape = (config.num_layers, pages, config.num_kv_heads, PAGE_TOKENS, config.head_dim)
        # Not cleared: attention reads no slot that was not written, so that memory is touched by the pages in use alone.
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        self.splits = max(1, -(-max_length // SPLIT_TOKENS))  # of attention, for the longest row
        self.table = np.zeros((slots, self.splits * SPLIT_TOKENS // PAGE_TOKENS), dtype=np.int32)
        self.pool = PagePool(pages)
        self.clear()

    def holds(self, pages: int, max_length: int) -> bool:
        """Whether there are so many pages, and rows may have so many tokens."""
        return len(self.pool.owners) >= pages and self.splits * SPLIT_TOKENS >= max_length

    def clear(self) -> None:
        """Forget all rows."""
        self.pool = PagePool(len(self.pool.owners))
        self._rows: list[Row] = []
        self._pages: dict[Row, list[int]] = {}  # in the order in which the rows came
        self._prompt: tuple[int, list[int]] | None = None  # the prompt whose samples come, and its full pages
        self._crowded = False  # whether a row had to start again and none has left since

    def rows(self) -> list[Row]:
        """All rows in the order in which a decode step computes them."""
        return list(self._rows)

    @torch.inference_mode()
    def add(self, row: Row, keys: Tensor, values: Tensor) -> bool:
        """Take a row whose first tokens have keys and values [L, Hkv, T, D]; False where there is no room for it now."""
        if self._crowded and self._rows:
            return False
        if self._prompt is not None and self._prompt[0] != row.prompt:
            self._leave_prompt()
        full = row.length // PAGE_TOKENS
        needed = 1 if self._prompt else full + 1
        if len(self.pool.free) < needed:
            return False
        if self._prompt is None:
            self._prompt = row.prompt, [self.pool.take() for _ in range(full)]
            self._write(self._prompt[1], keys, values, 0)
        pages = self.pool.share(self._prompt[1])
        pages.append(self.pool.take())
        if row.length % PAGE_TOKENS:
            self._write(pages[full:], keys, values, full * PAGE_TOKENS)
        self.table[len(self._rows), : len(pages)] = pages
        self._rows.append(row)
        self._pages[row] = pages
        return True

    def make_room(self) -> list[Row]:
        """A page for the next token of every row. Returns the rows that had to leave for it, oldest first: they start again."""
        restarted: list[Row] = []
        places = {row: i for i, row in enumerate(self._rows)}
        for row in list(self._pages):
            if row.restarted or row.length < PAGE_TOKENS * len(self._pages[row]):
                continue
            while not self.pool.free:
                if self._prompt is not None:
                    self._leave_prompt()
                    continue
                newest = next(r for r in reversed(self._pages) if not r.restarted)
                newest.restarted = self._crowded = True
                restarted.append(newest)
                self.pool.give_back(self._pages[newest])
                self._pages[newest] = []
            if not row.restarted:
                page = self.pool.take()
                self.table[places[row], len(self._pages[row])] = page
                self._pages[row].append(page)
        if restarted:
            self._drop(lambda row: not row.restarted)
        return restarted[::-1]

    def keep(self, is_live: Callable[[Row], bool]) -> None:
        """Drop the rows for which is_live(row) is false."""
        if self._drop(is_live):
            self._crowded = False

    def decode_attention(self, model: Transformer, table: Tensor, lengths: Tensor, max_length: int) -> Attend:
        """The `attend` of one decode step, which turns queries and keys itself (give the model no positions).

        table int32 [R, width] and lengths int32 [R] are on the device: rows of `table`, and each row's tokens with the new
        one (0: a row that fills the batch); max_length is at least the longest of them. It writes the new tokens' keys and
        values to their pages, then attends over them.
        """
        rotation = model.rotation((lengths - 1).clamp(min=0), self.keys.dtype)
        cos, sin = (part.squeeze(1) for part in rotation)
        still = (torch.ones_like(cos), torch.zeros_like(sin)) if model.config.nope_layers else None
        turned = [(cos, sin) if block.rotates else still for block in model.blocks]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values, angle = self.keys[layer], self.values[layer], turned[layer]
            assert angle is not None
            q = write_pages(q, k, v, *angle, keys, values, table, lengths)
            return paged_attention(q, keys, values, table, lengths, max_length)

        return attend

    def _write(self, pages: list[int], keys: Tensor, values: Tensor, start: int) -> None:
        """Fill pages with the tokens from `start` on of keys and values [L, Hkv, T, D], as far as they go."""
        for page in pages:
            end = min(start + PAGE_TOKENS, keys.shape[2])
            self.keys[:, page, :, : end - start] = keys[:, :, start:end]
            self.values[:, page, :, : end - start] = values[:, :, start:end]
            start = end

    def _drop(self, is_live: Callable[[Row], bool]) -> bool:
        """Drop rows, the last one taking the place of each; whether there was one to drop."""
        before = len(self._rows)
        for i in reversed(range(before)):
            row = self._rows[i]
            if not is_live(row):
                self.pool.give_back(self._pages.pop(row))
                self._rows[i] = self._rows[-1]
                self.table[i] = self.table[len(self._rows) - 1]
                self._rows.pop()
        return len(self._rows) < before

    def _leave_prompt(self) -> None:
        assert self._prompt is not None
        self.pool.give_back(self._prompt[1])
        self._prompt = None


def pages_of(tokens: int) -> int:
    """Pages that so many tokens of one row take."""
    return math.ceil(tokens / PAGE_TOKENS)


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one page: keys and values of 64 tokens in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * PAGE_TOKENS * config.head_dim * dtype.itemsize
