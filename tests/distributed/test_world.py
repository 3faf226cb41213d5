"""How processes agree, and what they say when one of them does not come."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from o1core.distributed import (
    HostMemory,
    check_same,
    deal,
    gather,
    on_all_ranks,
    on_rank0,
    opened,
    split_by_cost,
    team_of,
)
from o1core.distributed.world import rank, watch_others
from o1core.distributed.world import world as open_world
from o1core.errors import UserError
from tests.distributed.worlds import run_world

ROOT = Path(__file__).parents[2]


def agree() -> list:
    """What rank 0 does is done once; what one rank cannot do, none does."""

    def fail() -> None:
        if rank() == 1:
            raise UserError("no such file")

    errors = []
    for action in (
        lambda: on_all_ranks("open", fail),
        lambda: on_rank0("write", lambda: 1 / 0 if rank() else fail_on_lead()),
        lambda: check_same("settings", {"lr": 1, "seed": rank()}),
    ):
        try:
            action()
        except UserError as error:
            errors.append(str(error))
    return [gather("count", rank()), on_rank0("ask", lambda: {"pid": os.getpid()}), errors]


def fail_on_lead() -> None:
    raise UserError("disk full")


def test_ranks_agree_on_what_one_of_them_did_or_could_not_do():
    first, second = run_world(agree, 2)
    assert first == second
    assert first[0] == [0, 1]
    assert first[2] == [
        "rank 1: no such file",
        "disk full",
        "settings: rank 1 differs from rank 0 (seed: 0 on rank 0, 1 there); give all ranks the same command",
    ]


def hang_on_rank_1(kind: str) -> str:
    """Rank 1 is stopped where rank 0 waits for it, at the store or in a collective."""
    if rank() == 1:
        gather("a first time")
        os.kill(os.getpid(), signal.SIGSTOP)
    gather("a first time")
    started = time.monotonic()
    try:
        if kind == "meeting":
            gather("the rollouts")
        else:
            torch.distributed.all_reduce(torch.ones(3))
    finally:
        assert time.monotonic() - started < 20
    return "never"


def die_on_rank_1(kind: str) -> str:
    """Rank 1 is killed where rank 0 waits for it, at the store or in a collective."""
    gather("a first time")
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "meeting":
        gather("the rollouts")
    else:
        torch.distributed.all_reduce(torch.ones(3))
    return "never"


@pytest.mark.parametrize("kind", ["meeting", "sum"])
def test_a_rank_that_was_killed_is_named_as_dead_at_once(kind):
    with pytest.raises(AssertionError, match=r"rank 1 died \(killed, or out of memory\)"):
        run_world(die_on_rank_1, 2, kind, timeout=300)  # for which this waits less


def wait_where_nothing_is_heard(rank_1_is_killed: bool, errors: str) -> str:
    """Rank 0 is as deaf as it is in a collective of a GPU whose other side has gone."""
    os.dup2(os.open(f"{errors}-{rank()}", os.O_WRONLY | os.O_CREAT), 2)
    world = open_world()
    assert world is not None
    watch_others(world, deaf=True)
    gather("a first time")
    if rank() == 1:
        if rank_1_is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return "left"
    time.sleep(60 if rank_1_is_killed else 2.5)
    return "was left alone"


def test_a_thread_tells_of_a_dead_rank_where_the_main_thread_cannot(tmp_path):
    with pytest.raises(EOFError):  # the process of rank 0 has ended
        run_world(wait_where_nothing_is_heard, 2, True, str(tmp_path / "errors"))
    line = "o1core: error: rank 1 died (killed, or out of memory); rerun the same command to continue\n"
    assert (tmp_path / "errors-0").read_text() == line
    assert run_world(wait_where_nothing_is_heard, 2, False, str(tmp_path / "none")) == ["was left alone", "left"]


ENDING = """
import threading
from datetime import timedelta
from types import SimpleNamespace
from torch.distributed import TCPStore
from o1core.distributed import world
store = TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=5))
one = SimpleNamespace(rank=0, size=1, store=store, timeout=5.0, mesh=None)
world._world, world.LOOK_EVERY, world.entered = one, 0.0, lambda world: {}
end = world.watch_others(one, deaf=False)
threading.Event().wait(0.2)
end()
"""


def test_the_thread_has_ended_before_the_interpreter_does():
    """It is in a call of the store all the time here; left alone, C++ would end the process with SIGABRT then."""
    done = subprocess.run([sys.executable, "-c", ENDING], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize(
    "kind, message", [("meeting", "rollouts: waited 1 s .* for rank 1"), ("sum", "waiting for rank 1")]
)
def test_a_rank_that_waits_gives_up_and_says_for_whom(kind, message):
    with pytest.raises(AssertionError, match=message):
        run_world(hang_on_rank_1, 2, kind, timeout=1)


def sleep_on_rank_2(deaf: bool, errors: str) -> None:
    """Ranks 0 and 1 enter a sum to which rank 2, which lives, never comes. deaf: they do not hear that it fails."""
    os.dup2(os.open(f"{errors}-{rank()}", os.O_WRONLY | os.O_CREAT), 2)
    world = open_world()
    assert world is not None
    if deaf:
        watch_others(world, deaf=True)
    gather("a first time")
    if rank() == 2:
        time.sleep(60)
    torch.distributed.all_reduce(torch.ones(3), async_op=deaf)
    time.sleep(60)


def test_a_rank_that_lives_and_never_comes_is_named_with_the_place_where_it_is(tmp_path):
    line = (
        r"gave up waiting for rank 2 after 1 s \(--timeout\), at tests/distributed/test_world.py:\d+ \({}sleep_on_rank_2\); "
        r"rank 2 was last seen at tests/distributed/test_world.py:\d+ \(sleep_on_rank_2\): look there, or raise --timeout"
    )
    with pytest.raises(AssertionError, match=line.format("all_reduce in ")):
        run_world(sleep_on_rank_2, 3, False, str(tmp_path / "heard"), timeout=1)
    with pytest.raises(EOFError):  # the process of rank 0 has ended
        run_world(sleep_on_rank_2, 3, True, str(tmp_path / "deaf"), timeout=1)
    assert re.fullmatch("o1core: error: " + line.format(""), (tmp_path / "deaf-0").read_text().strip())
    assert not (tmp_path / "deaf-1").read_text()


def dealt(count: int, members: int) -> list[list[int]]:
    return [list(deal(count, team_of(members))) for _ in range(2)]


def test_every_problem_is_dealt_to_one_team():
    for once_more in zip(*run_world(dealt, 2, 30, 1)):
        assert sorted(once_more[0] + once_more[1]) == list(range(30))
    first, second = run_world(dealt, 2, 30, 2)
    assert first == second == [list(range(30))] * 2
    assert dealt(5, 1) == [list(range(5))] * 2


def test_shares_are_even_and_whole(monkeypatch):
    monkeypatch.setattr("o1core.distributed.sums.size", lambda: 3)
    costs = [9, 1, 8, 2, 7, 3, 5]
    dealt = split_by_cost(costs)
    assert sorted(i for share in dealt for i in share) == list(range(7))
    assert max(sum(costs[i] for i in share) for share in dealt) <= 13
    assert split_by_cost([4]) == [[0], [], []]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"MASTER_PORT": None}, "MASTER_PORT"),
        ({"MASTER_PORT": "1"}, "cannot be joined"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE"),
    ],
)
def test_torchrun_without_a_store_is_refused(monkeypatch, change, message):
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    env |= {"TORCHELASTIC_USE_AGENT_STORE": "True"} | change
    for name, value in env.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), opened(torch.device("cpu"), timeout=1):
        pass


def test_offloaded_tensors_come_back_as_they_were():
    """With the rest of their storage, which a shard's padding is; in the same memory of the host the second time."""
    whole, host = torch.randn(3, 4), HostMemory()
    tensors = [whole[:2], torch.randn(5), torch.zeros(0)]
    before = [whole.clone(), *(t.clone() for t in tensors)]
    for _ in range(2):
        with host.holding([*tensors, whole]):
            assert all(t.untyped_storage().nbytes() == 0 for t in tensors)
            block = host.block.data_ptr()
        assert len(host.block) == 1024
        assert all(torch.equal(a, b) for a, b in zip((whole, *tensors), before))
    assert host.block.data_ptr() == block
