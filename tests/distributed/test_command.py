"""The command under torchrun: killed and restarted, and refused in one line where it cannot work."""

import json
import re
import shlex
import signal
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

from o1core.cli.entry import parser
from tests.distributed.launched import Torchrun
from tests.distributed.worlds import run_commands
from tests.hub import serve

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "--samples 4 --picked 3 --problems 10 --rounds 1 --max-new-tokens 24 --temperature 1 --top-p 1 --ratio token "
    "--lr 1e-3 --batch 4 --save-every 2 --eval-problems 3 --slots 1 --device cpu --timeout 60"
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory, build_checkpoint):
    folder = tmp_path_factory.mktemp("command")
    build_checkpoint(folder / "model")
    rows = [{"problem": f"{a} + 5 = ?", "answer": str(a + 5)} for a in range(14)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", str(folder / "model"), "--data", str(folder / "problems.jsonl"), *SETTINGS.split(" ")]


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    """The folder of a whole run on two processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert [status for status, _ in run_commands([["prune", *flags, "--out", str(folder / "run")]] * 2, folder)] == [
        0,
        0,
    ]
    return folder / "run"


def assert_same_end(found: Path, expected: Path) -> None:
    weights, wanted = (load_file(run / "pruned" / "model.safetensors") for run in (found, expected))
    assert all(torch.equal(wanted[name], weights[name]) for name in wanted)
    assert [len(list(state.glob("*.safetensors"))) for state in found.glob("state-*")] == [2]
    for path in (p for p in found.rglob("*") if p.is_file()):
        start = path.read_bytes()[:4]
        assert not start.startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")), f"{path} is a pickle"
        assert path.name != ".metadata"


def test_a_run_whose_second_rank_is_killed_twice_ends_with_the_same_bits(flags, undisturbed, tmp_path):
    """In the middle of its sampling and of its training; torchrun restarts all, and they resume."""
    run = tmp_path / "run"
    torchrun = Torchrun(
        tmp_path / "torchrun", ["--nproc-per-node", "2", "--max-restarts", "2"], ["prune", *flags, "--out", str(run)]
    )
    torchrun.until(lambda: re.search(r"sample, round 1 of 1: +[1-9][0-9]?%", torchrun.told()) is not None)
    assert not list(run.glob("round-00/rollouts/shard*")), "it has sampled everything"
    torchrun.signal(1, signal.SIGKILL)
    torchrun.until(lambda: (run / "log.jsonl").exists() and (run / "log.jsonl").read_text().count("\n") >= 3)
    torchrun.signal(1, signal.SIGKILL)
    assert torchrun.end() == 0, torchrun.told()
    assert_same_end(run, undisturbed)


def test_a_state_that_one_rank_cannot_write_ends_all_and_the_run_resumes(flags, undisturbed, tmp_path):
    """It is written while the next step makes its gradient; the state before it stays."""
    run = tmp_path / "run"
    torchrun = Torchrun(tmp_path / "torchrun", ["--nproc-per-node", "2"], ["prune", *flags, "--out", str(run)])
    torchrun.until(lambda: "sample, round 1 of 1" in torchrun.told())
    torchrun.fill_disk(1, 25_000)  # room for rollouts
    assert torchrun.end() == 1
    (told,) = (line for line in torchrun.told().splitlines() if line.startswith("o1core: error: "))
    assert re.search(r"state-000002-00: cannot be written \(.*File too large.*\); finished work is kept", told), told
    assert [path.name for path in run.glob("*state-*")] == ["state-000000-00"]
    assert [status for status, _ in run_commands([["prune", *flags, "--out", str(run)]] * 2, tmp_path)] == [0, 0]
    assert_same_end(run, undisturbed)


def test_rollouts_that_one_rank_cannot_write_end_all(flags, tmp_path):
    run = tmp_path / "run"
    torchrun = Torchrun(tmp_path / "torchrun", ["--nproc-per-node", "2"], ["prune", *flags, "--out", str(run)])
    torchrun.until(lambda: "sample, round 1 of 1" in torchrun.told())
    torchrun.fill_disk(1, 1000)  # room for an error message
    assert torchrun.end() == 1
    (told,) = (line for line in torchrun.told().splitlines() if line.startswith("o1core: error: "))
    assert re.search(r"rank 1: .*shard-.*: cannot be written \(File too large\); finished work is kept", told), told
    assert [path.name for path in run.glob("*state-*")] == ["state-000000-00"]


def test_a_rank_that_hangs_is_named_by_the_one_that_waits(flags, tmp_path):
    """The model is one of the hub's, which rank 0 alone downloads."""
    arguments = ["prune", *flags, "--model", "a/model", "--timeout", "2", "--out", str(tmp_path / "run")]
    with serve({"a/model": Path(flags[1])}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        torchrun = Torchrun(tmp_path / "torchrun", ["--nproc-per-node", "2"], arguments, **environment)
        torchrun.until(lambda: "sample, round 1 of 1" in torchrun.told())
    assert "model.safetensors" in hub.downloaded() and len(set(hub.downloaded())) == len(hub.downloaded())
    torchrun.signal(1, signal.SIGSTOP)
    torchrun.until(lambda: "o1core: error: " in torchrun.told())
    torchrun.signal(1, signal.SIGKILL)  # torchrun itself would wait 30 s before it did
    assert torchrun.end() == 1
    (told,) = (line for line in torchrun.told().splitlines() if line.startswith("o1core: error: "))
    assert "sample, round 1 of 1: waited 2 s (--timeout) for rank 1" in told, told


def test_two_nodes_meet_by_torchruns_rendezvous_and_end_as_one_node_of_two(flags, undisturbed, tmp_path):
    """Weights are replicated over the nodes, so the sums are those of two ranks too, in another order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    where = ["--nnodes", "2", "--nproc-per-node", "1", *meeting]
    nodes = [
        Torchrun(tmp_path / f"node-{i}", where, ["prune", *flags, "--out", str(tmp_path / "run")]) for i in range(2)
    ]
    assert [node.end() for node in nodes] == [0, 0], nodes[0].told() + nodes[1].told()
    weights, wanted = (load_file(run / "pruned" / "model.safetensors") for run in (tmp_path / "run", undisturbed))
    assert all((weights[name] - wanted[name]).norm() <= 1e-5 * wanted[name].norm() for name in wanted)


def test_crisp_on_two_processes_ends_as_on_one(flags, tmp_path):
    ends = []
    for size in (1, 2):
        run = tmp_path / str(size)
        command = ["train", *flags, "--method", "crisp", "--rounds", "2", "--problems", "4", "--out", str(run)]
        assert [status for status, _ in run_commands([command] * size, tmp_path)] == [0] * size
        assert not list(run.glob("round-*/*teacher*"))
        ends.append(load_file(run / "pruned" / "model.safetensors"))
    assert all((ends[1][name] - weight).norm() <= 1e-5 * weight.norm() for name, weight in ends[0].items())


def test_a_teacher_that_one_rank_cannot_write_ends_all(flags, tmp_path):
    run = tmp_path / "run"
    command = ["prune", *flags, "--method", "crisp", "--out", str(run)]
    torchrun = Torchrun(tmp_path / "torchrun", ["--nproc-per-node", "2"], command)
    torchrun.until(lambda: "sample, round 1 of 1" in torchrun.told())
    torchrun.fill_disk(1, 12_000)  # room for rollouts, not for hidden states of 64 numbers a token
    assert torchrun.end() == 1
    (told,) = (line for line in torchrun.told().splitlines() if line.startswith("o1core: error: "))
    assert re.search(r"rank 1: .*round-00/teacher: cannot be written \(.*File too large.*\)", told), told
    assert [path.name for path in run.rglob("*teacher*")] == []
    assert [path.name for path in run.glob("*state-*")] == ["state-000000-00"]


def test_the_lines_that_the_documents_give_are_understood():
    """Those for 1, 4 and 8 GPUs and 2 nodes: torchrun's part by its own parser, the rest by ours."""
    block = re.search(r"```sh\n(.*?)```", (ROOT / "bench" / "results" / "scale.md").read_text(), re.S)[1]
    lines = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    launched = [line[1:] for line in lines if line[0] == "torchrun"]
    assert len(lines) == 4 and len(launched) == 3
    for words in launched:
        torchrun = get_args_parser().parse_args(words)
        assert torchrun.module and torchrun.training_script == "o1core"
        parser(torchrun.training_script_args[0]).parse_args(torchrun.training_script_args)
    assert lines[0][0] == "o1core"
    parser("prune").parse_args(lines[0][1:])


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
