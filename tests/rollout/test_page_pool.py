"""Whatever rows come and go: no page leaks, none has two owners that write to it, and a row reads what was written for it."""

from collections import Counter

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from o1core.model import ModelConfig
from o1core.rollout.pages import PagedCache, pages_of
from o1core.rollout.row import Row

CONFIG = ModelConfig("Qwen2ForCausalLM", 75, 2, 2, 1, 1, 1, 2, 1e-6, 1e4, 512, True, torch.float32)
LONGEST, SLOTS = 200, 6
PROMPTS = (0, 1, 63, 64, 65, 128, 150)  # tokens of a prompt that are prefilled


def prompt_values(prompt: int) -> torch.Tensor:
    """Keys and values [L, Hkv, T, D] that no other token has."""
    tokens = 1000.0 * (prompt + 1) + torch.arange(PROMPTS[prompt])
    return tokens.view(1, 1, -1, 1).expand(1, 1, -1, 2)


def check(cache: PagedCache) -> None:
    """Owners are counted right, free pages are those of nobody, pages after a prompt's full ones have one owner, and every
    row reads its prompt through its pages."""
    rows = cache.rows()
    owners = Counter(page for row in rows for page in cache._pages[row])
    owners.update(cache._prompt[1] if cache._prompt else ())
    assert cache.pool.owners == [owners[page] for page in range(len(cache.pool.owners))]
    assert sorted(cache.pool.free) == [page for page, count in enumerate(cache.pool.owners) if count == 0]
    assert set(cache._pages) == set(rows)
    for place, row in enumerate(rows):
        pages = cache._pages[row]
        assert cache.table[place, : len(pages)].tolist() == pages
        assert all(owners[page] == 1 for page in pages[PROMPTS[row.prompt] // 64 :])
        held = cache.keys[:, pages].transpose(1, 2).flatten(2, 3)[:, :, : PROMPTS[row.prompt]]
        assert torch.equal(held, prompt_values(row.prompt))


@settings(max_examples=40, deadline=None)
@given(st.integers(pages_of(LONGEST), 14), st.data())
def test_pages_are_never_lost_or_shared_by_two_that_write(pages, data):
    cache = PagedCache(CONFIG, SLOTS, pages, LONGEST, torch.float32, torch.device("cpu"))
    came: list[Row] = []
    for _ in range(data.draw(st.integers(1, 15), label="turns")):
        for prompt in data.draw(st.lists(st.integers(0, len(PROMPTS) - 1), max_size=3), label="arrivals"):
            values = prompt_values(prompt)
            row = Row(prompt, len(came), 0, PROMPTS[prompt], 0, LONGEST - PROMPTS[prompt])
            if len(cache.rows()) < SLOTS and cache.add(row, values, values):
                came.append(row)
            check(cache)
        oldest = next(iter(cache._pages), None)
        restarted = cache.make_room()
        check(cache)
        assert oldest not in restarted and [came.index(row) for row in restarted] == sorted(map(came.index, restarted))
        assert all(came.index(row) < came.index(gone) for row in cache.rows() for gone in restarted)
        for row in cache.rows():
            assert len(cache._pages[row]) * 64 > row.length  # there is room for the next token
            for _ in range(data.draw(st.sampled_from((1, 1, 20)), label="tokens")):
                if row.length + 1 < min(LONGEST, len(cache._pages[row]) * 64):
                    row.launched()
            row.launched()
        ended = data.draw(st.sets(st.integers(0, len(came) or 1), max_size=3), label="ends")
        cache.keep(lambda row: row.length < LONGEST - 1 and row.sample not in ended)  # noqa: B023
        check(cache)
    cache.keep(lambda row: False)
    cache.clear()
    assert not any(cache.pool.owners) and len(cache.pool.free) == pages


def test_samples_share_the_full_pages_of_their_prompt():
    """150 tokens: two full pages for all, and a third one, partly filled, for each."""
    cache = PagedCache(CONFIG, 4, 12, LONGEST, torch.float32, torch.device("cpu"))
    values = prompt_values(PROMPTS.index(150))
    for sample in range(3):
        assert cache.add(Row(PROMPTS.index(150), sample, 0, 150, 0, 9), values, values)
    check(cache)
    assert len(cache.pool.free) == 12 - 2 - 3


def test_after_a_restart_nobody_comes_until_a_row_has_left():
    cache = PagedCache(CONFIG, 4, 5, LONGEST, torch.float32, torch.device("cpu"))
    rows = [Row(PROMPTS.index(n), n, 0, n, 0, 9) for n in (128, 64, 1)]  # 3, 2 and 1 pages
    for row in rows[:2]:
        assert cache.add(row, prompt_values(row.prompt), prompt_values(row.prompt))
    rows[0].length = 192
    assert cache.make_room() == [rows[1]]
    newcomer = prompt_values(rows[2].prompt)
    assert not cache.add(rows[2], newcomer, newcomer)
    cache.keep(lambda row: row is not rows[0])
    assert cache.add(rows[2], newcomer, newcomer)
