"""A kernel compiled ahead of time, and what its machine code holds, as the tools in Triton's own wheel print it."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .kernel_variants import COMPUTE_CAPABILITY, KERNELS, PRODUCTS, STREAMS, Variant

SHARED_LIMIT = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "other": 99 * 1024,
}  # bytes a block may ask for
WARPS_AN_SM = {"sm_80": 64, "sm_90": 64, "sm_100": 64, "other": 48}


def compile_variant(variant: Variant) -> dict[str, Any]:
    """Compiles one variant and returns a record of what the machine code holds."""
    kernel, launch, divisible = KERNELS[variant.kernel], variant.launch(), variant.divisible()
    attributes = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(kernel.arg_names) if name in divisible
    }
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=variant.signature(), constexprs=variant.constants(), attrs=attributes),
        target=GPUTarget("cuda", COMPUTE_CAPABILITY[variant.target], 32),
        options=launch.compiler(),
    )
    return {**asdict(variant), "name": variant.name(), **_read_machine_code(compiled, variant, launch.num_warps)}


def _read_machine_code(compiled: Any, variant: Variant, num_warps: int) -> dict[str, Any]:
    code = _disassemble(compiled.asm["cubin"])
    registers, stack, local = (int(re.findall(rf"\b{key}:(\d+)", code)[0]) for key in ("REG", "STACK", "LOCAL"))
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
        "tensor_core": count(r"(HMMA|HGMMA|UTC\w*MMA|DMMA)\b"),
        "tma_loads": count(r"UTMALDG\b"),
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


def faults(record: dict[str, Any]) -> list[str]:
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
