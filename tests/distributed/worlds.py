"""Worlds of a few processes, forked from a server that has imported torch once. Each process computes in one thread."""

import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from o1core.cli import main
from o1core.distributed import opened

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torch.distributed.fsdp", "o1core.cli.commands", "tests.distributed.worlds"])


def start(target: Callable[..., None], size: int, *args: Any, per_node: int = 0) -> tuple[list, TCPStore]:
    """target(pipe, *args) in each of `size` processes with torchrun's environment. Returns (process, end of its pipe) of
    each, and their store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's part
    started = []
    for rank in range(size):
        here, there = SERVER.Pipe(duplex=False)
        env = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": per_node or size}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
        env |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
        process = SERVER.Process(target=in_environment, args=(env, target, there, *args), daemon=True)
        process.start()
        there.close()
        started.append((process, here))
    return started, store


def run_world(case: Callable[..., Any], size: int, *args: Any, per_node: int = 0, timeout: float = 60) -> list[Any]:
    """What case(*args) returns in each process of a world. Raises AssertionError with the traceback of one that fails."""
    return gathered(size, *start(member, size, case, timeout, args, per_node=per_node))


def run_commands(commands: list[list[str]], folder: Path) -> list[tuple[int, str]]:
    """(exit status, standard error) of o1core with these arguments, a process of torchrun's for each."""
    return gathered(len(commands), *start(command, len(commands), commands, folder))


def gathered(size: int, started: list, store: TCPStore) -> list[Any]:
    """What the processes send; none is left."""
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


def in_environment(env: dict[str, Any], target: Callable[..., None], *args: Any) -> None:
    os.environ |= {name: str(value) for name, value in env.items()}
    torch.set_num_threads(1)
    target(*args)


def member(pipe: Any, case: Callable[..., Any], timeout: float, args: tuple[Any, ...]) -> None:
    try:
        with opened(torch.device("cpu"), timeout):
            value = case(*args)
        pipe.send_bytes(pickle.dumps((True, value)))  # by value: a sharer of memory would be gone
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))


def command(pipe: Any, commands: list[list[str]], folder: Path) -> None:
    rank = int(os.environ["RANK"])
    errors = os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    try:
        status = main(commands[rank])
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    pipe.send_bytes(pickle.dumps((True, (status, (folder / f"stderr-{rank}").read_text()))))
