"""What a run says of itself: what it will do, its phases, how many threads compute, and how long it took in all."""

import logging
import os
import re
import time

import torch

from o1core.cli import main
from o1core.files import read_record
from o1core.run_folder import RunFolder
from o1core.runs import choose_threads, threads


def test_a_run_says_what_it_does_and_counts_its_phases_and_seconds(flags, tmp_path, caplog, capfd):
    run = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        assert main(["prune", *flags, "--out", str(run)]) == 0
    (first,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith("Prune"))
    assert first == "Prune model (1 M) on 10 problems x 4 samples, 2 rounds, method o1-pruner; evaluate 2"
    bars = capfd.readouterr().err
    seen = list(dict.fromkeys(re.findall(r"(\d/6 [a-z]+(?: the [a-z]+)?(?:, round \d of 2)?)", bars)))
    assert seen == [
        "1/6 evaluate the base",
        *(f"{2 * n + at}/6 {what}, round {n} of 2" for n in (1, 2) for at, what in ((0, "sample"), (1, "train"))),
        "6/6 evaluate the pruned",
    ]
    assert re.search(r"6/6 evaluate.*\d tokens, \d+% right", bars)
    assert re.search(r"3/6 train.*reward -?[\d.]+, \d+ tokens", bars)


def test_seconds_add_up_over_processes_that_ended_and_that_were_killed(tmp_path, monkeypatch):
    def work(seconds, killed=False):
        run = RunFolder(tmp_path)
        run.claim({"rounds": 1}, frozenset(), {}, {})
        (tmp_path / "log.jsonl").write_text("{}")
        run._opened -= seconds
        if not killed:
            run.__exit__(None, None, None)
            return read_record(run.clock)["seconds"]
        os.close(run._lock)
        last = time.time() + seconds
        os.utime(tmp_path / "log.jsonl", (last, last))
        return None

    assert 100 <= work(100) < 101
    work(50, killed=True)  # its last line was written 50 s after its start
    assert 160 <= work(10) < 163


def test_small_models_compute_in_one_thread(monkeypatch, caplog):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "cores_free", lambda: 8)
    try:
        for environment, weights, expected in (({}, 1e6, 1), ({}, 1e9, 2), ({"OMP_NUM_THREADS": "2"}, 1e6, 2)):
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            torch.set_num_threads(2)
            choose_threads(int(weights), torch.device("cpu"))
            assert torch.get_num_threads() == expected
        assert caplog.text == ""
        monkeypatch.setattr(threads, "cores_free", lambda: 1)
        choose_threads(int(1e9), torch.device("cpu"))
        assert "2 threads compute, and about 1 of" in caplog.text and "OMP_NUM_THREADS=1 may be faster" in caplog.text
    finally:
        torch.set_num_threads(before)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(threads, "CGROUP", tmp_path / "cpu.max")
    for text, cores, load, free in (
        ("200000 100000", 2, 1.0, 2),
        ("max 100000", 64, 60.2, 4),
        ("50000 100000", 1, 70, 1),
        (None, 64, 0, 64),
    ):
        (tmp_path / "cpu.max").unlink(missing_ok=True)
        if text:
            (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0, 0))
        assert (threads.cores_here(), threads.cores_free()) == (cores, free)
