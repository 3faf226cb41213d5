"""Worlds of a few processes, forked from a server that has imported torch once. Each process computes in one thread."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import TCPStore

from o1core.distributed import opened

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torch.distributed.fsdp", "o1core.training", "tests.distributed.worlds"])


def start(
    case: Callable[..., Any], size: int, *args: Any, per_node: int = 0, timeout: float = 60
) -> tuple[list, TCPStore]:
    """case(*args) in each of `size` processes of a world. Returns (process, end of its pipe) of each, and their store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's part
    started = []
    for rank in range(size):
        here, there = SERVER.Pipe(duplex=False)
        env = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": per_node or size}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
        env |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
        process = SERVER.Process(target=member, args=(there, case, env, timeout, args), daemon=True)
        process.start()
        there.close()
        started.append((process, here))
    return started, store


def run_world(case: Callable[..., Any], size: int, *args: Any, per_node: int = 0, timeout: float = 60) -> list[Any]:
    """What case(*args) returns in each process. Raises AssertionError with the traceback of one that fails."""
    started, store = start(case, size, *args, per_node=per_node, timeout=timeout)
    results = []
    try:
        for _, pipe in started:
            assert pipe.poll(120), "a process of the world hangs"
            ok, value = pickle.loads(pipe.recv_bytes())
            assert ok, value
            results.append(value)
    finally:
        for process, _ in started:
            if len(results) < size:
                process.kill()  # it may be stopped, or wait for one that has failed
            process.join()
        del store
    return results


def member(pipe: Any, case: Callable[..., Any], env: dict[str, Any], timeout: float, args: tuple[Any, ...]) -> None:
    os.environ |= {name: str(value) for name, value in env.items()}
    torch.set_num_threads(1)
    try:
        with opened(torch.device("cpu"), timeout):
            value = case(*args)
        pipe.send_bytes(pickle.dumps((True, value)))  # by value: a sharer of memory would be gone
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
