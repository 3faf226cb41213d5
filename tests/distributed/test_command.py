"""The command under torchrun: killed and restarted, and refused in one line where it cannot work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.worlds import run_commands

SETTINGS = (
    "--samples 4 --picked 3 --problems 10 --rounds 1 --max-new-tokens 24 --temperature 1 --top-p 1 --ratio token "
    "--lr 1e-3 --batch 4 --save-every 2 --eval-problems 3 --slots 4 --device cpu --timeout 60"
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory, build_checkpoint):
    folder = tmp_path_factory.mktemp("command")
    build_checkpoint(folder / "model")
    rows = [{"problem": f"{a} + 5 = ?", "answer": str(a + 5)} for a in range(14)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", str(folder / "model"), "--data", str(folder / "problems.jsonl"), *SETTINGS.split(" ")]


def torchrun(arguments: list[str], restarts: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "-m", "o1core", *arguments], env=env, stderr=subprocess.DEVNULL)


def second_rank(launcher: int) -> int:
    """The process id of rank 1 below torchrun; 0 where there is none."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"LOCAL_RANK=1" in (path / "environ").read_bytes().split(b"\0"):
                return int(path.name)
        except OSError:
            continue
    return 0


def kill_second_rank(launcher: subprocess.Popen, condition) -> None:
    """kill -9 of rank 1 once condition() holds."""
    deadline = time.monotonic() + 120
    while not condition():
        assert launcher.poll() is None and time.monotonic() < deadline, (
            "never came to the point where it was to be killed"
        )
        time.sleep(0.002)
    os.kill(second_rank(launcher.pid), signal.SIGKILL)


def test_a_run_whose_second_rank_is_killed_twice_ends_with_the_same_bits(flags, tmp_path):
    """While it samples and while it trains; torchrun restarts all, and they resume."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert torchrun(["prune", *flags, "--out", str(whole)]).wait(240) == 0
    launcher = torchrun(["prune", *flags, "--out", str(killed)], restarts=2)
    kill_second_rank(launcher, lambda: any((killed / "round-00").glob("rollouts")))
    lines = killed / "log.jsonl"
    kill_second_rank(launcher, lambda: lines.exists() and len(lines.read_text().splitlines()) >= 3)
    assert launcher.wait(240) == 0
    expected, found = (load_file(run / "pruned" / "model.safetensors") for run in (whole, killed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    states = list(killed.glob("state-*"))
    assert states and all(len(list(state.glob("*.safetensors"))) == 2 for state in states)
    for path in (p for run in (whole, killed) for p in run.rglob("*") if p.is_file()):
        start = path.read_bytes()[:4]
        assert not start.startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")), f"{path} is a pickle"
        assert path.name != ".metadata"


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            (["--lr", "1e-3"], ["--lr", "2e-3"]),
            "the settings: rank 1 differs from rank 0 (lr: 0.001 on rank 0, 0.002 there)",
        ),
        (([], ["--model", "nowhere"]), "rank 1: nowhere"),
        ((["--tensor-parallel", "4"],) * 2, "--tensor-parallel: 4 does not divide the 2 processes"),
        ((["--samples", "1"],) * 2, "--samples: 1 is below 2"),
    ],
    ids=["other settings", "no checkpoint on one", "team", "both wrong"],
)
def test_what_cannot_work_is_one_line_of_rank_0_and_status_2(flags, tmp_path, changes, message):
    commands = [["prune", *flags, "--out", str(tmp_path / "run"), *change] for change in changes]
    (status, told), (other, silent) = run_commands(commands, tmp_path)
    assert (status, other) == (2, 2)
    assert message in told and told.count("\n") == 1, told
    assert silent == ""
    assert not (tmp_path / "run").exists()
