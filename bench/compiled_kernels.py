"""What the compiler makes of every Triton kernel as it is launched, without a GPU: python -m bench.compiled_kernels

Runs the launchers at real sizes (bench/kernel_launches.py) on a pretended GPU (bench/pretended_gpu.py), so that Triton's own
code decides what to compile, and reads the machine code with the tools in Triton's own wheel: registers, spills, shared memory,
occupancy, instruction counts, load widths. Then FLOPs, bytes and the roofline time on A800 and H100 at the sizes of Qwen2-7B
and -32B heads. Exit code 1 where something spills or asks for more than the chip has.

    --target 90              only these chips            --jobs 2   compiler processes
    --record                 write bench/results/compiled_kernels.json
    --sample                 compile only what that record lacks, and one of each kernel, which must come out as recorded
    --json FILE              the same as records         --table    the page's table (bench/results/kernels.md)
    --roofline-only          without compiling

Compiling everything takes minutes, and the same text for the same chip by the same release of Triton always comes out alike.
So the record keeps what was found, under a key made of all that (pretended_gpu.Build.key), and the tests read it with --sample.

Timings are arithmetic here, not measurements: the time that no kernel on that chip can beat.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import triton

from .kernel_launches import Case, cases
from .machine_code import SHARED_LIMIT, read_machine_code
from .pretended_gpu import Build, pretended_gpu
from .roofline import print_roofline

TARGETS = (80, 86, 89, 90, 100)
DELTA = ("delta_walk", "delta_solve", "delta_solve_backward", "delta_read", "delta_read_backward")
PRODUCTS = ("partial_sums", "partial_sums_tma", "logit_gradient", "paged_attention", *DELTA)
# Kernels that stream matrices, whose loads must be wide or asynchronous. The others read a few numbers a row.
ELEMENTWISE = ("rms_norm", "rms_norm_backward", "rotate", "swiglu", "swiglu_backward")
STREAMS = (*PRODUCTS, *ELEMENTWISE, "delta_step", "kept_gradient", "gather_forward", "gather_backward")
RECORD = Path(__file__).parent / "results/compiled_kernels.json"
Record = dict[str, Any]


def compile_for(capability: int, known: dict[str, Record]) -> list[Record]:
    """A record of each kernel that the cases launch on a chip, with the sizes at which it was first launched. known: those
    that need no compiling, by their keys."""
    found: dict[str, Record] = {}
    case: Case

    def launched(kernel: Any, options: dict[str, Any], build: Build) -> None:
        if build.key in found:
            return
        flags = {k: v for k, v in options.items() if k.isupper() and k not in ("ACC", "PRECISION") and "BLOCK" not in k}
        record = {
            "key": build.key,
            "kernel": kernel.fn.__name__.removesuffix("_kernel"),
            "target": f"sm_{capability}",
            "dtype": case.dtype,
            "sizes": case.sizes,
            "flags": flags,
        }
        of_before = known.get(build.key)
        found[build.key] = of_before or record | read_machine_code(build.compile(), capability)

    with pretended_gpu(capability, launched):
        for case in cases(capability):
            case.launch()
    return list(found.values())


def compile_all(targets: list[int], jobs: int, known: dict[str, Record]) -> list[Record]:
    """Processes are spawned: a fork would share the compiler's threads."""
    work = partial(compile_for, known=known)
    if jobs == 1:
        return [record for records in map(work, targets) for record in records]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return [record for records in pool.map(work, targets) for record in records]


def read_record() -> dict[str, Record]:
    """The recorded kernels by their keys."""
    return {record["key"]: record for record in json.loads(RECORD.read_text())}


def write_record(records: list[Record]) -> None:
    """A kernel a line, so that a change shows what it changed."""
    RECORD.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n")


def sample_of(recorded: dict[str, Record]) -> set[str]:
    """A key of each kernel: those whose hashes happen to be lowest, so others after a change."""
    return set({recorded[key]["kernel"]: key for key in sorted(recorded, reverse=True)}.values())


def unfit(record: Record) -> list[str]:
    """What no kernel may have: spilled registers, more shared memory than the chip has."""
    found, limit = [], SHARED_LIMIT[int(record["target"].removeprefix("sm_"))]
    instructions = record.get("spill_instructions", 0)  # where they were counted
    if record["spill_bytes"] or instructions:
        found.append(f"spills {record['spill_bytes']} bytes in {instructions} instructions")
    if record["shared_bytes"] > limit:
        found.append(f"{record['shared_bytes']} bytes of shared memory, the chip has {limit}")
    return found


def faults(record: Record) -> list[str]:
    """What would be wrong with shipping this code; empty if nothing."""
    found = unfit(record)
    if record["kernel"] in PRODUCTS and not record["tensor_core"]:
        found.append("a product without tensor-core instructions")
    aligned = not record["sizes"].endswith(" x 72")
    if record["kernel"] in STREAMS and aligned and not record["loads"]["16"] + record["async_copies"]:
        found.append("neither 16-byte loads nor asynchronous copies")
    return found


def name_of(record: Record) -> str:
    flags = [f"{key}={int(value)}" for key, value in record["flags"].items()]
    return " ".join([record["kernel"], record["dtype"], *flags])


def print_records(records: list[Record]) -> None:
    print(
        f"{'target':<7}{'kernel':<48}{'regs':>5}{'spill':>6}{'shared':>8}{'occup.':>7}{'instr':>7}{'mma':>5}{'async':>6}{'tma':>4}"
        f"{'ld16/8/4':>11}{'st16/8/4':>11}{'ex2':>5}{'bar':>5}  first at"
    )
    for r in records:
        loads, stores = ("/".join(str(r[kind][width]) for width in ("16", "8", "4")) for kind in ("loads", "stores"))
        print(
            f"{r['target']:<7}{name_of(r):<48}{r['registers']:>5}{r['spill_bytes']:>6}{r['shared_bytes']:>8}"
            f"{r['occupancy']:>7.1%}{r['instructions']:>7}{r['tensor_core']:>5}{r['async_copies']:>6}{r['tma_loads']:>4}"
            f"{loads:>11}{stores:>11}{r['exponentials']:>5}{r['barriers']:>5}  {r['sizes']}"
        )


TITLES = {
    "partial_sums": "log-probs, forward",
    "partial_sums_tma": "log-probs, forward by TMA",
    "merge": "merge of its partial sums",
    "logit_gradient": "log-probs, gradient of logits",
    "kept_gradient": "gradient from kept exponentials",
    "gather_forward": "log-probs from logits",
    "gather_backward": "their gradient",
    "surrogate": "surrogate, fp32",
    "paged_attention": "decode attention",
    "attention_merge": "merge of its splits",
    "write_pages": "rotary embedding and write of pages",
    "rms_norm": "RMSNorm",
    "rms_norm_backward": "its gradients",
    "rotate": "rotary embedding, and its gradient",
    "swiglu": "SwiGLU",
    "swiglu_backward": "its gradient",
    "delta_step": "delta rule, a decode step",
    "delta_solve": "its system within a chunk",
    "delta_solve_backward": "gradient of its system",
    "delta_walk": "its walk over chunks",
    "delta_read": "its outputs of a chunk",
    "delta_read_backward": "gradient of its outputs",
    "sample": "sampling without a filter",
    "sample_candidates": "sampling with a filter",
    "sample_row": "the same of a flat row",
}
FLAGS = {
    "ENTROPY": "entropy",
    "BACKWARD": "backwards",
    "KEEP": "kept",
    "PICK": "some rows",
    "GREEDY": "greedy",
    "TOP_K": "top-k",
    "NEED_WEIGHT": "trained",
}


def table(records: list[Record]) -> list[str]:
    """The table of bench/results/kernels.md: bf16 (surrogate and sampling: fp32), as each kernel is launched first."""
    cells: dict[str, dict[str, str]] = {}
    for r in records:
        if r["dtype"] != ("fp32" if r["kernel"].startswith(("surrogate", "sample")) else "bf16"):
            continue
        flags = [FLAGS[key] for key, value in r["flags"].items() if value and key in FLAGS]
        flags += [
            f"{key.lower()} {value}"
            for key, value in r["flags"].items()
            if key in ("LEVEL", "GROUP", "HALF", "REPEATS")
        ]
        flags += ["no mask"] if r["flags"].get("HAS_MASK") is False else []
        numbers = (
            r["registers"],
            r["spill_bytes"],
            r["shared_bytes"] // 1024,
            f"{r['instructions']:,}",
            r["tensor_core"],
        )
        of_kernel = cells.setdefault(", ".join([TITLES[r["kernel"]], *flags]), {})
        of_kernel.setdefault(r["target"], " / ".join(map(str, numbers)))
    targets = [f"sm_{capability}" for capability in TARGETS]
    lines = [" | ".join(["kernel", *targets]), " | ".join(["---"] * (1 + len(targets)))]
    lines += [" | ".join([title, *(of_kernel.get(t, "") for t in targets)]) for title, of_kernel in cells.items()]
    return [f"| {line} |" for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=int, choices=TARGETS, action="append")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--roofline-only", action="store_true")
    parser.add_argument("--no-roofline", action="store_true")
    options = parser.parse_args()
    bad = 0
    if not options.roofline_only:
        recorded = read_record() if options.sample else {}
        fresh = sample_of(recorded)
        known = {key: record for key, record in recorded.items() if key not in fresh}
        records = compile_all(options.target or list(TARGETS), options.jobs, known)
        print(f"Triton {triton.__version__}, {len(records)} compiled kernels")
        if options.table:
            print("\n".join(table(records)))
        else:
            print_records(records)
        for record in records:
            for fault in faults(record):
                bad += 1
                print(f"FAULT {record['target']} {name_of(record)} at {record['sizes']}: {fault}")
            if record["key"] in fresh and json.loads(json.dumps(record)) != recorded[record["key"]]:
                bad += 1
                print(f"FAULT {record['target']} {name_of(record)} at {record['sizes']}: not as recorded")
        if options.json:
            options.json.write_text(json.dumps(records))
        if options.record:
            write_record(records)
    if not options.no_roofline:
        print_roofline()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
