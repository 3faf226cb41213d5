"""What a worker lets an answer do."""

import os
import subprocess
import sys

import pytest

from o1core.grading import worker as grading_worker


def test_the_guard_refuses_what_reaches_out(tmp_path):
    program = f"""
import os, socket, subprocess, sys
sys.path.insert(0, {os.path.dirname(grading_worker.__file__)!r})
import worker
sys.addaudithook(worker._refuse)
eval("1 + 1")
with worker._guarded(may_compile=False):
    for reach in (
        lambda: eval("1 + 1"),
        lambda: os.system("true"),
        lambda: subprocess.run(["true"]),
        lambda: socket.socket(),
        lambda: open({str(tmp_path / "new")!r}, "w"),
        lambda: os.mkdir({str(tmp_path / "folder")!r}),
        lambda: os.kill(os.getpid(), 0),
    ):
        try:
            reach()
            print("reached out")
        except PermissionError:
            print("refused")
    open({__file__!r}).close()
with worker._guarded(may_compile=True):
    assert eval("1 + 1") == 2
os.mkdir({str(tmp_path / "allowed")!r})
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.stderr, run.stdout.split("\n")) == ("", ["refused"] * 7 + [""])
    assert [path.name for path in tmp_path.iterdir()] == ["allowed"]


@pytest.mark.parametrize("text", ["3*(4+5)/2", "0xAcc4", "x**2/2 + sin(3*x) + C", "-1.5e3", "24 - 2\n"])
def test_plain_expressions(text):
    assert grading_worker.is_plain_expression(text)


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "exit(1)", "x.__class__", "[1, 2]", "1or exit", "lambda: 1", "ｅxit", "'a'", "x_y", "0xfexit"],
)
def test_text_that_is_no_plain_expression(text):
    assert not grading_worker.is_plain_expression(text)
