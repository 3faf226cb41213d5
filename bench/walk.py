"""How far a reader has to walk: the files and calls of one small prune of tiny-o1, traced in this process.

    python -m bench.walk [--list]

A call is distinct by its caller and what it calls. Who reads the distinct calls in the order in which they first happen,
from `prune` on, moves from the caller's file to the callee's, then to the next caller's, and so on: `moves` counts those
steps that lead to another file, `up` those of them that lead to a higher layer, where a reader has come from. --list prints
the files in the order in which they are entered.

Left out on purpose: what happens while a file is imported (class bodies, tables made of calls), and the stream that every
line to the terminal goes through, since nobody follows a `print` there. And time: a profile says where that goes; this says
where the reader goes.
"""

import argparse
import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import o1core
from o1core.cli import main as command_line

ROOT = Path(o1core.__file__).resolve().parent.parent
OURS = ("o1core/", "kernels/")
LAYERS = (  # from the lowest to the highest; the modules at the top of o1core/ come after kernels/
    *("kernels", "", "grading", "problems", "model", "distributed", "rollout"),
    *("recipe", "training", "evaluation", "report", "runs", "studies", "cli"),
)
PRUNE = (
    *("prune", "--problems", "6", "--samples", "4", "--picked", "4", "--eval-problems", "4", "--eval-samples", "2"),
    *("--rounds", "2", "--batch", "8", "--max-new-tokens", "440", "--device", "cpu"),
)

Place = tuple[str, str]  # a file below ROOT, and a function in it


def place_of(frame: FrameType) -> Place | None:
    """Where a frame is, if it is in one of our files."""
    code = frame.f_code
    if not code.co_filename.startswith(f"{ROOT}/"):
        return None
    file = code.co_filename[len(str(ROOT)) + 1 :]
    return (file, code.co_qualname) if file.startswith(OURS) else None


@contextlib.contextmanager
def traced(calls: dict[tuple[Place | None, Place], None]) -> Iterator[None]:
    """Add every call of a function of ours: (the nearest caller that is ours, itself), in the order of their first time."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        callee = place_of(frame) if event == "call" else None
        if callee is None or callee[1] == "<module>" or callee[1].startswith("Lasting."):
            return
        caller, above = None, frame.f_back
        while above is not None:
            place = place_of(above)
            if place is not None and place[1] == "<module>":
                return
            caller, above = caller or place, above.f_back
        calls.setdefault((caller, callee))

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def layer(file: str) -> int:
    """The height of a file's layer."""
    parts = file.split("/")
    return LAYERS.index("kernels" if "kernels" in parts[:2] else parts[1] if len(parts) > 2 else "")


def way(calls: list[tuple[Place | None, Place]]) -> list[str]:
    """The files that a reader of the calls stands in, one after the other, from the function `prune` of runs/ on."""
    start = next(i for i, (_, (file, name)) in enumerate(calls) if name == "prune" and file.startswith("o1core/runs/"))
    return [place[0] for call in calls[start:] for place in call if place is not None]


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--list", action="store_true", help="print the files that are entered")
    args = ap.parse_args()
    calls: dict[tuple[Place | None, Place], None] = {}
    with tempfile.TemporaryDirectory() as folder, traced(calls), contextlib.redirect_stdout(sys.stderr):
        status = command_line([*PRUNE, "--out", f"{folder}/run"])
    if status:
        return status
    files = dict.fromkeys(callee[0] for _, callee in calls)
    moves = [(here, there) for here, there in pairwise(way(list(calls))) if here != there]
    up = sum(layer(there) > layer(here) for here, there in moves)
    print(
        f"{len(files)} files entered, {len(calls):,} distinct calls; from prune on {len(moves)} moves, {up} of them up"
    )
    if args.list:
        print("\n".join(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
