"""Worlds of a few processes, forked from a server that has imported torch once. Each process computes in one thread."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from o1core.distributed import meet, opened

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torch.distributed.fsdp", "o1core.training", "tests.distributed.worlds"])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(case: Callable[..., Any], size: int, *args: Any, per_node: int = 0, timeout: float = 60) -> list[Any]:
    """case(*args) in each of `size` processes of a world. Returns the processes and the ends of their pipes."""
    port = free_port()
    started = []
    for rank in range(size):
        here, there = SERVER.Pipe(duplex=False)
        env = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": per_node or size}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = SERVER.Process(target=member, args=(there, case, env, timeout, args), daemon=True)
        process.start()
        there.close()
        started.append((process, here))
    return started


def run_world(case: Callable[..., Any], size: int, *args: Any, per_node: int = 0, timeout: float = 60) -> list[Any]:
    """What case(*args) returns in each process. Raises AssertionError with the traceback of one that fails."""
    results = []
    for process, pipe in start(case, size, *args, per_node=per_node, timeout=timeout):
        assert pipe.poll(120), "a process of the world hangs"
        ok, value = pickle.loads(pipe.recv_bytes())
        assert ok, value
        results.append(value)
        process.join()
    return results


def member(pipe: Any, case: Callable[..., Any], env: dict[str, Any], timeout: float, args: tuple[Any, ...]) -> None:
    os.environ |= {name: str(value) for name, value in env.items()}
    torch.set_num_threads(1)
    try:
        with opened(torch.device("cpu"), timeout):
            value = case(*args)
            meet("the end")  # rank 0 holds the store: it leaves last
        pipe.send_bytes(pickle.dumps((True, value)))  # by value: a sharer of memory would be gone
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
