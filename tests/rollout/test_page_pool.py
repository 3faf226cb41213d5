"""Whatever rows come and go: no page leaks, none has two owners that write to it, and a row reads what was written for it."""

from collections import Counter, deque

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from o1core.model import ModelConfig
from o1core.rollout.pages import PagedCache, pages_of
from o1core.rollout.row import Row

CONFIG = ModelConfig("Qwen2ForCausalLM", 75, 2, 2, 1, 1, 1, 2, 1e-6, 1e4, 512, True, torch.float32)
LONGEST, SLOTS = 200, 6
LENGTHS = (1, 2, 64, 65, 66, 129, 151)
PROMPTS = [[1000 * (p + 1) + t for t in range(length)] for p, length in enumerate(LENGTHS)]  # each token once


class Steps:
    """A cache and what an engine does with it, but for the model: a token's keys are its id."""

    def __init__(self, pages: int) -> None:
        self.cache = PagedCache(CONFIG, SLOTS, pages, LONGEST, torch.float32, torch.device("cpu"))
        self.waiting: deque[Row] = deque()
        self.came: list[tuple[int, int]] = []  # (prompt, sample) in the order of admission, as often as each was
        self.drawn = 10_000

    def ask(self, prompt: int, samples: int) -> None:
        tokens = PROMPTS[prompt]
        first = len({row.sample for row in self.waiting}) + len(self.came)
        limit = LONGEST - len(tokens)
        self.waiting += (Row(prompt, first + k, 0, len(tokens) - 1, tokens[-1], limit) for k in range(samples))

    def admit(self) -> None:
        cache = self.cache
        while self.waiting and not cache.full:
            row = self.waiting[0]
            prompt = PROMPTS[row.prompt]
            if cache.begin(row.prompt, prompt[:-1]) is None or not cache.add(row, (prompt + row.ids)[:-1]):
                break
            self.came.append((row.prompt, row.sample))
            self.check()
            self.waiting.popleft()
        for row in self.waiting:
            cache.begin(row.prompt, PROMPTS[row.prompt][:-1], ahead=True)

    def make_room(self) -> list[Row]:
        restarted = self.cache.make_room()
        self.waiting.extendleft(row.again(PROMPTS[row.prompt]) for row in reversed(restarted))
        self.check()
        return restarted

    def step(self, most: int) -> None:
        """A token more for every row, and up to `most` of those that are behind."""
        for row in self.cache.rows():
            self.write(self.cache._pages[row], row.length, row.token)
            row.launched()
            self.drawn += 1
            row.append(self.drawn, 0.0, None, frozenset())
        for prefix, part in self.cache.take_behind(most):
            for at in part:
                self.write(prefix.pages, at, prefix.tokens[at])
        self.check()

    def write(self, pages: list[int], at: int, token: int) -> None:
        for stored in (self.cache.keys, self.cache.values):
            stored[:, pages[at // 64], :, at % 64] = token

    def check(self) -> None:
        """Owners are counted right, free pages are those of nobody, pages after a prompt's full ones have one owner, and every
        row reads its tokens through its pages."""
        cache, owners = self.cache, Counter()
        for pages in (*cache._pages.values(), *(prompt.pages for prompt in cache.prompts.values())):
            owners.update(pages)
        assert cache.pool.owners == [owners[page] for page in range(len(cache.pool.owners))]
        assert sorted(cache.pool.free) == [page for page, count in enumerate(cache.pool.owners) if count == 0]
        assert set(cache._pages) == {*cache.rows(), *cache.returning}
        for row, pages in cache._pages.items():
            assert all(owners[page] == 1 for page in pages[(LENGTHS[row.prompt] - 1) // 64 :])
        for place, row in enumerate(cache.rows()):
            pages = cache._pages[row]
            assert cache.table[place, : len(pages)].tolist() == pages
            for stored in (cache.keys, cache.values):
                held = stored[0, pages, 0, :, 0].flatten()[: row.length]
                assert held.tolist() == (PROMPTS[row.prompt] + row.ids)[: row.length]


@settings(max_examples=40, deadline=None)
@given(st.integers(pages_of(LONGEST), 14), st.data())
def test_pages_are_never_lost_or_shared_by_two_that_write(pages, data):
    run = Steps(pages)
    for _ in range(data.draw(st.integers(1, 15), label="turns")):
        for prompt in data.draw(st.lists(st.integers(0, len(PROMPTS) - 1), max_size=2), label="arrivals"):
            run.ask(prompt, data.draw(st.integers(1, 4), label="samples"))
        run.admit()
        for _ in range(data.draw(st.sampled_from((1, 1, 20)), label="steps")):
            before = list(run.cache._pages)
            restarted = run.make_room()
            assert restarted == before[len(before) - len(restarted) :] and (not before or restarted != before)
            assert all(len(run.cache._pages[row]) * 64 > row.length for row in run.cache.rows())
            run.step(data.draw(st.integers(0, 70), label="behind"))
            run.cache.keep(lambda row: row.open and row.steps < row.limit)
        ended = data.draw(st.sets(st.integers(0, len(run.came)), max_size=3), label="ends")
        run.cache.keep(lambda row: row.sample not in ended)  # noqa: B023
        run.check()
    for _ in range(10_000):  # everybody ends
        if not run.waiting and not run.cache._pages:
            break
        run.admit()
        run.make_room()
        run.step(64)
        run.cache.keep(lambda row: row.steps < row.limit)
    else:
        pytest.fail("some rows never end")
    run.cache.clear()
    assert not any(run.cache.pool.owners) and len(run.cache.pool.free) == pages


def test_samples_share_the_full_pages_of_their_prompt():
    """150 tokens: two full pages for all, and a third one, partly filled, for each, and for the prompt while samples come."""
    run = Steps(pages=12)
    run.ask(LENGTHS.index(151), 3)
    run.admit()
    run.step(150)
    run.admit()
    assert len(run.cache.rows()) == 3 and len(run.cache.pool.free) == 12 - 2 - 1 - 3


def test_a_prompts_last_page_goes_to_a_sample_where_there_is_no_other():
    """150 tokens and their 50 new ones need four pages, and there are four: the first sample takes all three of the prompt."""
    run = Steps(pages=4)
    run.ask(LENGTHS.index(151), 2)
    run.admit()
    run.step(150)
    run.admit()  # the first copies the last page, which takes the fourth; the second takes the prompt's own
    assert len(run.cache.rows()) == 2 and not run.cache.pool.free and not run.cache.prompts
    while not (restarted := run.make_room()):
        run.step(0)
    assert [row.sample for row in restarted] == [1] and len(run.waiting[0].ids) == 192 - 150


def test_after_a_restart_nobody_comes_until_a_row_has_left():
    run = Steps(pages=5)
    for length in (129, 65):  # 3 and 2 pages
        run.ask(LENGTHS.index(length), 1)
    for _ in range(3):
        run.admit()
        run.make_room()
        run.step(200)
    run.ask(LENGTHS.index(2), 1)
    assert [row.prompt for row in run.cache.rows()] == [LENGTHS.index(129), LENGTHS.index(65)]
    while not (restarted := run.make_room()):
        run.step(0)
    assert [row.prompt for row in restarted] == [LENGTHS.index(65)]
    run.admit()
    assert len(run.cache.rows()) == 1 and not run.cache.prompts
    run.cache.keep(lambda row: False)
    known = len(run.waiting[0].ids)
    assert known > 60
    run.admit()
    run.step(200)  # the prompt's
    run.admit()
    assert [row.prompt for row in run.cache.returning] == [LENGTHS.index(65)] and run.cache.behind == known
    run.step(200)
    assert [row.prompt for row in run.cache.rows()][-1] == LENGTHS.index(65) and not run.cache.returning
