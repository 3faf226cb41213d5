"""Everything that this project promises of a GPU, measured in ten minutes on one H100 (none has run it yet).

    python -m bench.gpu [--only ROW] [--minutes 10] [--out bench/results] [--dry]

Weights are random and made on the device; nothing is downloaded. Each row is a promise with its bar (met, missed, or
skipped and why). Bars are an H100's, and follow the FLOP/s or the bytes a second of another card that is known. Rows run one
after another in a process of their own, which is replaced after a row that fails or overruns, so that no row takes
another down. gpu.json and gpu.md in --out are written after each row; --only measures one row again and keeps the rest.
Without a GPU it says what it would run, and with --dry it runs the rows' code on a pretended one (dry.py).
"""

import argparse
import gc
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import triton

from o1core.files import read_json, write_atomic, write_json

from . import decode, engine, head, peers, sharded, training
from .measure import TINY, Row, Sizes, card_of

ROWS: dict[str, Row] = {row.name: row for part in (head, decode, engine, training, sharded, peers) for row in part.ROWS}
SIZES = {"full": Sizes(), "tiny": TINY}
START_SECONDS = 120  # that a process may take to import torch and find the device


def run_row(name: str, sizes: Sizes) -> dict[str, Any]:
    """{"found": figures} or {"error": one line}, and the seconds it took."""
    start = time.perf_counter()
    try:
        result: dict[str, Any] = {"found": ROWS[name].measure(sizes)}
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
    if sizes.device == "cuda" and "error" not in result:
        gc.collect()
        torch.cuda.empty_cache()
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def serve(pipe: Connection, sizes: Sizes) -> None:
    """Run the rows that are asked for, until the other end closes."""
    pipe.send({})
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        pipe.send(run_row(name, sizes))


class Worker:
    """Runs rows in a process, and starts another after a row that failed or overran: a fault of the device outlives it."""

    def __init__(self, sizes: Sizes, target: Callable[[Connection, Sizes], None] = serve) -> None:
        self.sizes, self.target = sizes, target
        self.start()

    def start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=self.target, args=(theirs, self.sizes), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()

    def run(self, name: str, limit: float) -> dict[str, Any]:
        """What run_row returns, or an error of the process."""
        if not self.ready:
            result = self.answer(START_SECONDS)
            self.ready = "error" not in result
        if self.ready:
            self.pipe.send(name)
            result = self.answer(limit)
        if "error" in result:
            self.stop()
            self.start()
        return result

    def answer(self, limit: float) -> dict[str, Any]:
        try:
            if self.pipe.poll(limit):
                return self.pipe.recv()
        except (EOFError, OSError):
            return {"error": "the process ended", "seconds": 0.0}
        return {"error": f"took over {limit:.0f} s", "seconds": limit}


def print_plan(sizes: Sizes) -> None:
    print("What bench.gpu runs on a GPU; the bars are an H100's:\n")
    for row in ROWS.values():
        print(f"  {row.name:30} {row.describe(sizes)}\n  {'':30} {row.bars_in_words()}; at most {row.limit} s")
    print("\nNo GPU here: nothing was measured.")


def measure(rows: list[Row], sizes: Sizes, minutes: float, out: Path, record: dict[str, Any]) -> None:
    """Fill record["rows"], saved after each row."""
    deadline = time.monotonic() + 60 * minutes
    card = card_of(record["card"])
    worker = Worker(sizes) if sizes.device == "cuda" else None
    for number, row in enumerate(rows, 1):
        left = deadline - time.monotonic()
        print(f"[{number}/{len(rows)}] {row.name}: {row.describe(sizes)} ({max(left, 0):.0f} s left)", flush=True)
        if left < 5:
            result: dict[str, Any] = {"skipped": "no time left; measure it with --only", "seconds": 0.0}
        elif worker:
            result = worker.run(row.name, min(row.limit, left))
        else:
            result = run_row(row.name, sizes)
        figures = row.judge(result, card)
        record["rows"][row.name] = {"what": row.describe(sizes), "seconds": result["seconds"], "figures": figures}
        for figure in figures:
            print("    " + " | ".join(in_words(figure)), flush=True)
        save(record, out)
    if worker:
        worker.stop()


def in_words(figure: dict[str, Any]) -> list[str]:
    """Figure, value, bar, verdict."""
    value = "" if figure["value"] is None else f"{figure['value']:,.4g}"
    return [figure["figure"], value, figure["bar"] or "", figure["verdict"]]


def save(record: dict[str, Any], out: Path) -> None:
    """gpu.json and gpu.md, each whole or not at all."""
    write_json(out / "gpu.json", record)
    lines = [f"# {record['card']}", "", f"`python -m bench.gpu`, {record['date']}, {record['versions']}.", ""]
    lines += ["| row | figure | value | bar | verdict |", "|---|---|---|---|---|"]
    for name, row in record["rows"].items():
        for place, figure in enumerate(row["figures"]):
            first = f"{name}: {row['what']}" if place == 0 else ""
            lines.append("| " + " | ".join([first, *in_words(figure)]) + " |")
    lines += ["", totals(record), ""]
    write_atomic(out / "gpu.md", lambda path: path.write_text("\n".join(lines), encoding="utf-8"))


def verdicts(record: dict[str, Any]) -> Counter[str]:
    """How many bars were met, missed and skipped."""
    figures = [figure for row in record["rows"].values() for figure in row["figures"]]
    return Counter(figure["verdict"].split(" ")[0] for figure in figures if figure["verdict"])


def totals(record: dict[str, Any]) -> str:
    count = verdicts(record)
    return ", ".join(f"{count[verdict]} {verdict}" for verdict in ("met", "missed", "skipped"))


def new_record(card: str) -> dict[str, Any]:
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Triton {triton.__version__}"
    return {"card": card, "date": time.strftime("%Y-%m-%d"), "versions": versions, "rows": {}}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROWS, metavar="ROW", help=f"one of: {', '.join(ROWS)}")
    parser.add_argument("--minutes", type=float, default=10, help="rows that would start later are skipped")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--sizes", choices=SIZES, default="full", help=argparse.SUPPRESS)
    parser.add_argument(
        "--dry", action="store_true", help="run every row's code on a pretended GPU and measure nothing"
    )
    args = parser.parse_args(argv)
    rows = [ROWS[args.only]] if args.only else list(ROWS.values())
    if args.dry:
        from .dry import walk_all  # it switches Triton's interpreter off for the whole process

        return walk_all(rows)
    sizes = SIZES[args.sizes]
    if sizes.device == "cuda" and not torch.cuda.is_available():
        print_plan(sizes)
        return 0
    record = new_record(torch.cuda.get_device_name() if sizes.device == "cuda" else "CPU")
    path = args.out / "gpu.json"
    if args.only and path.exists() and (before := read_json(path))["card"] == record["card"]:
        record["rows"] = before["rows"]
    args.out.mkdir(parents=True, exist_ok=True)
    measure(rows, sizes, args.minutes, args.out, record)
    print(f"\n{totals(record)}; {path} and gpu.md")
    return 1 if verdicts(record)["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
