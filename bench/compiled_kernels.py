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
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from o1core.kernels import configs, triton_advantage, triton_gather, triton_kept, triton_linear, triton_surrogate

KERNELS = {
    "linear.partial_sums": triton_linear.partial_sums_kernel,
    "linear.merge": triton_linear.merge_kernel,
    "linear.logit_gradient": triton_linear.logit_gradient_kernel,
    "kept.keep": triton_kept.keep_kernel,
    "kept.gradient": triton_kept.kept_gradient_kernel,
    "gather.forward": triton_gather.forward_kernel,
    "gather.backward": triton_gather.backward_kernel,
    "surrogate": triton_surrogate.surrogate_kernel,
    "advantage": triton_advantage.advantage_kernel,
}
PRODUCTS = ("linear.partial_sums", "linear.logit_gradient", "kept.keep")
# Kernels that stream matrices, whose loads must be wide or asynchronous. The others read a few numbers a row.
STREAMS = (*PRODUCTS, "kept.gradient", "gather.forward", "gather.backward")
COMPUTE_CAPABILITY = {"sm_80": 80, "sm_90": 90, "other": 86}
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "other": 99 * 1024}  # bytes a block may ask for
WARPS_AN_SM = {"sm_80": 64, "sm_90": 64, "other": 48}
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}

# Arguments divisible by 16, beside all pointers, in every launch at the sizes that matter. The number of rows is not,
# nor is the size of a vocabulary without its padding.
POINTERS_OF_INPUT = ("hidden", "weight", "logits", "d_logits", "kept")
INT64_POINTERS = ("targets", "picked", "cu_seqlens", "lengths", "group")
DIVISIBLE = (
    "room",
    "width",
    "hidden_stride",
    "weight_stride",
    "d_logits_stride",
    "kept_stride",
    "row_stride",
    "d_row_stride",
)
PHYSICAL_COLUMNS = ("gather.forward", "gather.backward")  # there, columns is what a row holds, padding included
INT_SCALARS = ("rows", "columns", "tiles", "blocks", "first_column", "vocab_size", "sequences", "samples", "kept_rows")
FLOAT_SCALARS = ("inv_temperature", "low", "high", "per_unit", "lam")


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched: target chip, dtype of the inputs, compile-time flags beside the launch's own. Sizes
    of 1 are compile-time constants to Triton; ones is the launch where all of them are."""

    kernel: str
    target: str
    dtype: str
    flags: tuple[tuple[str, int], ...] = ()
    ones: bool = False

    def name(self) -> str:
        flags = [f"{key}={int(value)}" for key, value in self.flags]
        return " ".join([self.kernel, self.dtype, *flags, *(["sizes=1"] if self.ones else [])])

    def launch(self) -> configs.Launch:
        size = DTYPES[self.dtype]
        if self.kernel in PRODUCTS:
            return configs.LINEAR[self.target][size]
        table = {
            "linear.merge": configs.MERGE,
            "kept.gradient": configs.KEPT,
            "gather.forward": configs.GATHER,
            "gather.backward": configs.GATHER,
            "surrogate": configs.SURROGATE,
            "advantage": configs.ADVANTAGE,
        }[self.kernel]
        launch = table["gpu"]
        if self.kernel == "kept.gradient":
            block_v = configs.LINEAR[self.target][size].constants["BLOCK_V"]
            launch = launch._replace(constants={**launch.constants, "BLOCK_V": block_v})
        return launch


_KEPT_FLAGS = {"kept.keep": (), "kept.gradient": (("PICK", True),)}


def shipped(targets: list[str]) -> list[Variant]:
    """Every configuration that a launcher can ask for, less what compiles to nothing new: fp16 (bf16 with another name
    of an instruction) only where there is a product; fp16, fp64 and other chips with the entropy only; and on other chips
    not the kernels whose configuration does not depend on the chip."""
    found = []
    for target in targets:
        for dtype in DTYPES:
            with_and_without = dtype in ("bf16", "fp32") and target != "other"
            for entropy in (False, True) if with_and_without else (True,):
                flags = (("ENTROPY", entropy),)
                kernels = ["linear.partial_sums", "linear.logit_gradient"]
                if target != "other" and dtype != "fp16":
                    kernels += ["gather.forward", "gather.backward"]
                found += [Variant(kernel, target, dtype, flags) for kernel in kernels]
            kept = ["kept.keep"] if dtype == "fp16" else ["kept.keep", "kept.gradient"]
            found += [Variant(kernel, target, dtype, _KEPT_FLAGS[kernel]) for kernel in kept]
        if target == "other":
            continue
        for dtype in ("fp32", "fp64"):
            found.append(Variant("linear.merge", target, dtype, (("ENTROPY", dtype == "fp32"),)))
            for level in triton_surrogate.LEVELS.values() if dtype == "fp32" else (triton_surrogate.LEVELS["token"],):
                found.append(Variant("surrogate", target, dtype, (("LEVEL", level), ("HAS_MASK", True))))
        found.append(Variant("linear.merge", target, "fp32", (("ENTROPY", False),)))
        found.append(Variant("surrogate", target, "fp32", (("LEVEL", 2), ("HAS_MASK", False))))
        found.append(Variant("advantage", target, "fp32"))
    one_a_kernel = {variant.kernel: variant for variant in found if variant.dtype == "fp32"}
    return found + [replace(variant, ones=True) for variant in one_a_kernel.values()]


def _signature(variant: Variant, constants: dict) -> dict[str, str]:
    acc = "fp64" if variant.dtype == "fp64" else "fp32"

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in POINTERS_OF_INPUT:
            return f"*{variant.dtype}"
        if name in INT64_POINTERS:
            return "*i64"
        if name in ("mask", "correct"):
            return "*i1"
        if name in FLOAT_SCALARS:
            return "fp32"
        return "i32" if name in INT_SCALARS or name in DIVISIBLE else f"*{acc}"

    return {name: kind(name) for name in KERNELS[variant.kernel].arg_names}


def _constants(variant: Variant) -> dict:
    names = KERNELS[variant.kernel].arg_names
    constants = {**variant.launch().constants, **dict(variant.flags)}
    if "ACC" in names:
        constants["ACC"] = tl.float64 if variant.dtype == "fp64" else tl.float32
    if variant.ones:
        constants |= dict.fromkeys((*INT_SCALARS, *DIVISIBLE), 1)
    return {name: constants[name] for name in names if name in constants}


def compile_variant(variant: Variant) -> dict:
    """Compiles one variant and returns a record of what the machine code holds."""
    kernel, launch = KERNELS[variant.kernel], variant.launch()
    constants = _constants(variant)
    signature = _signature(variant, constants)
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
        or (name in DIVISIBLE and not variant.ones)
        or (name == "columns" and variant.kernel in PHYSICAL_COLUMNS and not variant.ones)
    }
    options = {key: value for key, value in launch.options().items() if key not in launch.constants}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", COMPUTE_CAPABILITY[variant.target], 32),
        options=options,
    )
    return {**asdict(variant), "name": variant.name(), **_read_machine_code(compiled, variant, launch.num_warps)}


def _read_machine_code(compiled: Any, variant: Variant, num_warps: int) -> dict:
    code = _disassemble(compiled.asm["cubin"])
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", code))
    registers, stack, local = (int(used[key]) for key in ("REG", "STACK", "LOCAL"))
    # "/*0a10*/  @!P0 LDG.E.128 R4, ..." -> LDG.E.128
    instructions = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code))

    def count(pattern: str) -> int:
        return sum(number for name, number in instructions.items() if re.match(pattern, name))

    shared = compiled.metadata.shared
    warps = num_warps * _blocks_an_sm(variant.target, registers, shared, num_warps)
    return {
        "registers": registers,
        "spill_bytes": stack + local,
        "spill_instructions": count(r"(LDL|STL)\b"),
        "shared_bytes": shared,
        "occupancy": warps / WARPS_AN_SM[variant.target],
        "instructions": sum(instructions.values()),
        "tensor_core": count(r"(HMMA|HGMMA|DMMA)\b"),
        "async_copies": count(r"(LDGSTS|UTMALDG|UBLKCP)\b"),
        "loads": {str(width): count(_access("LDG", width)) for width in (16, 8, 4)},
        "stores": {str(width): count(_access("STG", width)) for width in (16, 8, 4)},
        "exponentials": count(r"MUFU\.EX2\b"),
        "barriers": count(r"BAR\b"),
        "atomics": count(r"(ATOM|ATOMG|ATOMS|RED)\b"),
    }


def _access(name: str, width: int) -> str:
    suffix = {16: r"\.E(\.\w+)*\.128\b", 8: r"\.E(\.\w+)*\.64\b", 4: r"\.E(?!.*\.(64|128|[US](8|16)))"}
    return name + suffix[width]


def _disassemble(cubin: bytes) -> str:
    """Resource usage and machine code, as the disassembler in Triton's wheel prints them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", "-sass", file.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _blocks_an_sm(target: str, registers: int, shared: int, num_warps: int) -> int:
    """Blocks resident on one multiprocessor. Registers come in 256 a warp; each block takes 1 KB of shared memory more."""
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * num_warps)
    by_shared = (SHARED_LIMIT[target] + 1024) // (shared + 1024)
    return min(by_registers, by_shared, WARPS_AN_SM[target] // num_warps)


def compile_all(variants: list[Variant], jobs: int) -> list[dict]:
    """Records in the order of variants. Processes are spawned: a fork would share the compiler's threads."""
    if jobs == 1:
        return [compile_variant(variant) for variant in variants]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(compile_variant, variants))


def faults(record: dict) -> list[str]:
    """What would be wrong with shipping this code; empty if nothing."""
    found = []
    if record["spill_bytes"] or record["spill_instructions"]:
        found.append(f"spills {record['spill_bytes']} bytes in {record['spill_instructions']} instructions")
    if record["shared_bytes"] > SHARED_LIMIT[record["target"]]:
        found.append(f"{record['shared_bytes']} bytes of shared memory, the chip has {SHARED_LIMIT[record['target']]}")
    double_without_units = record["dtype"] == "fp64" and record["target"] == "other"
    if record["kernel"] in PRODUCTS and not record["tensor_core"] and not double_without_units:
        found.append("a product without tensor-core instructions")
    if record["kernel"] in STREAMS and not record["ones"] and not record["loads"]["16"] + record["async_copies"]:
        found.append("neither 16-byte loads nor asynchronous copies")
    return found


KEPT_WAVE = 2048  # rows whose exponentials are kept at a time: 0.6 GB in bf16
CHIPS = {"A800": (312e12, 2.039e12), "H100": (989e12, 3.35e12)}  # dense bf16 FLOP/s, bytes/s


def work(n: int, h: int, v: int) -> dict[str, tuple[float, float]]:
    """FLOPs and bytes of global memory of each op in bf16, every operand read once a product (L2 makes up the rest)."""
    tiles = -(-v // int(configs.LINEAR["sm_90"][2].constants["BLOCK_V"]))
    operands = 2 * h * (n + v)
    _, chunk = triton_linear.split(n, v, h, 2)
    chunks = -(-v // chunk)
    one_gradient_pass = 3 * 2 * n * v  # dZ written once, read by two products
    add_to_d_hidden = 2 * 4 * n * h
    waves = -(-n // KEPT_WAVE)
    add_to_d_weight = 2 * 4 * v * h if waves > 1 else 2 * v * h
    return {
        "linear_logprob forward": (2 * n * v * h, operands + 2 * 2 * 4 * tiles * n),
        "linear_logprob backward": (
            6 * n * v * h,
            3 * operands + one_gradient_pass + chunks * (add_to_d_hidden + 2 * 2 * n * h),
        ),
        "kept exponentials, all": (
            6 * n * v * h,
            6 * n * h + waves * (3 * 2 * v * h + add_to_d_weight) + one_gradient_pass + 2 * 2 * n * v,
        ),
        "gather_logprob forward": (0, 2 * n * v),
        "gather_logprob backward": (0, 2 * 2 * n * v),
    }


def print_roofline(v: int = 152064) -> None:
    print(f"\nRoofline, bf16, V {v}: larger of FLOPs / peak and bytes / bandwidth, in ms (arithmetic, not measured)")
    print(f"{'op':<26}{'H':>6}{'N':>8}{'TFLOP':>9}{'GB':>8}" + "".join(f"{chip:>9}" for chip in CHIPS))
    for h in (3584, 5120):
        for n in (8192, 65536):
            for op, (flops, moved) in work(n, h, v).items():
                times = "".join(f"{1e3 * max(flops / peak, moved / band):>9.2f}" for peak, band in CHIPS.values())
                print(f"{op:<26}{h:>6}{n:>8}{flops / 1e12:>9.1f}{moved / 1e9:>8.1f}{times}")


def print_records(records: list[dict]) -> None:
    print(
        f"{'target':<7}{'kernel':<48}{'regs':>5}{'spill':>6}{'shared':>8}{'occup.':>7}{'instr':>7}{'mma':>5}{'async':>6}"
        f"{'ld16/8/4':>11}{'st16/8/4':>11}{'ex2':>5}{'bar':>5}"
    )
    for r in records:
        loads, stores = ("/".join(str(r[kind][width]) for width in ("16", "8", "4")) for kind in ("loads", "stores"))
        print(
            f"{r['target']:<7}{r['name']:<48}{r['registers']:>5}{r['spill_bytes']:>6}{r['shared_bytes']:>8}"
            f"{r['occupancy']:>7.1%}{r['instructions']:>7}{r['tensor_core']:>5}{r['async_copies']:>6}"
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
