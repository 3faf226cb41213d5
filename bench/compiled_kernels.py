"""What the compiler makes of every Triton kernel that ships, without a GPU: python -m bench.compiled_kernels

Compiles each kernel in each shipped configuration (kernels/configs.py) ahead of time and reads the machine code
with the tools in Triton's own wheel: registers, spills, shared memory, occupancy, instruction counts, load widths. Then
FLOPs, bytes and the roofline time on A800 and H100 at the sizes of Qwen2-7B and -32B heads.

    --target sm_80 --kernel linear   only what matches        --jobs 2   compiler processes
    --json FILE                      the same as records      --no-roofline, --roofline-only

Timings are arithmetic here, not measurements: the time that no kernel on that chip can beat.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import triton

from .kernel_variants import COMPUTE_CAPABILITY, Variant, shipped
from .machine_code import compile_variant, faults
from .roofline import print_roofline


def compile_all(variants: list[Variant], jobs: int) -> list[dict]:
    """Records in the order of variants. Processes are spawned: a fork would share the compiler's threads."""
    if jobs == 1:
        return [compile_variant(variant) for variant in variants]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(compile_variant, variants))


def print_records(records: list[dict]) -> None:
    print(
        f"{'target':<7}{'kernel':<48}{'regs':>5}{'spill':>6}{'shared':>8}{'occup.':>7}{'instr':>7}{'mma':>5}{'async':>6}{'tma':>4}"
        f"{'ld16/8/4':>11}{'st16/8/4':>11}{'ex2':>5}{'bar':>5}"
    )
    for r in records:
        loads, stores = ("/".join(str(r[kind][width]) for width in ("16", "8", "4")) for kind in ("loads", "stores"))
        print(
            f"{r['target']:<7}{r['name']:<48}{r['registers']:>5}{r['spill_bytes']:>6}{r['shared_bytes']:>8}"
            f"{r['occupancy']:>7.1%}{r['instructions']:>7}{r['tensor_core']:>5}{r['async_copies']:>6}{r['tma_loads']:>4}"
            f"{loads:>11}{stores:>11}{r['exponentials']:>5}{r['barriers']:>5}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=sorted(COMPUTE_CAPABILITY), action="append")
    parser.add_argument("--kernel", default="", help="a part of the kernel's name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--roofline-only", action="store_true")
    parser.add_argument("--no-roofline", action="store_true")
    options = parser.parse_args()
    bad = 0
    if not options.roofline_only:
        targets = options.target or list(COMPUTE_CAPABILITY)
        variants = [variant for variant in shipped(targets) if options.kernel in variant.name()]
        records = compile_all(variants, options.jobs)
        print(f"Triton {triton.__version__}, {len(records)} compiled kernels")
        print_records(records)
        for record in records:
            for fault in faults(record):
                bad += 1
                print(f"FAULT {record['target']} {record['name']}: {fault}")
        if options.json:
            options.json.write_text(json.dumps(records, indent=1))
    if not options.no_roofline:
        print_roofline()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
