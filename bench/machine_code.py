"""What a compiled kernel's machine code holds, as the tools in Triton's own wheel print it."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton

SHARED_LIMIT = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
}  # bytes a block may ask for
WARPS_AN_SM = {80: 64, 86: 48, 89: 48, 90: 64, 100: 64}


def resources(compiled: Any) -> dict[str, int]:
    """What it takes of a chip. Its instructions cost the disassembler a third of a second."""
    usage = _printed(compiled.asm["cubin"], "-res-usage")
    registers, stack, local = (int(re.findall(rf"\b{key}:(\d+)", usage)[0]) for key in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "spill_bytes": stack + local, "shared_bytes": compiled.metadata.shared}


def read_machine_code(compiled: Any, capability: int) -> dict[str, Any]:
    code, taken = _printed(compiled.asm["cubin"], "-sass"), resources(compiled)
    # "/*0a10*/  @!P0 LDG.E.128 R4, ..." -> LDG.E.128
    instructions = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code))

    def count(pattern: str) -> int:
        return sum(number for name, number in instructions.items() if re.match(pattern, name))

    registers, shared, num_warps = taken["registers"], taken["shared_bytes"], compiled.metadata.num_warps
    return {
        "registers": registers,
        "spill_bytes": taken["spill_bytes"],
        "spill_instructions": count(r"(LDL|STL)\b"),
        "shared_bytes": shared,
        "occupancy": num_warps * _blocks_an_sm(capability, registers, shared, num_warps) / WARPS_AN_SM[capability],
        "instructions": sum(instructions.values()),
        "tensor_core": count(r"(HMMA|HGMMA|UTC\w*MMA|DMMA)\b"),
        "tma_loads": count(r"UTMALDG\b"),
        "async_copies": count(r"(LDGSTS|UTMALDG|UBLKCP)\b"),
        "loads": {str(width): count(_access("LDG", width)) for width in (16, 8, 4)},
        "stores": {str(width): count(_access("STG", width)) for width in (16, 8, 4)},
        "exponentials": count(r"MUFU\.EX2\b"),
        "barriers": count(r"BAR\b"),
        "atomics": count(r"(ATOM|ATOMG|ATOMS|RED)\b"),
        "loops": _loops(code),
    }


def _loops(code: str) -> list[tuple[int, bool, int]]:
    """(instructions, whether it reads global memory 16 bytes at a time, barriers) of each loop: from where a branch leads back
    to it. A jump back without a condition that passes no such read returns from code that was moved out of the way."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)]
    found = []
    for at, text in lines:
        back = re.search(r"(@!?U?P\w+ +)?BRA(?:\.\w+)* (?:!?U?P\w+, )?0x([0-9a-f]+)", text)
        if back and int(back[2], 16) < at:
            body = [inside for place, inside in lines if int(back[2], 16) <= place <= at]
            reads = any("LDG.E.128" in inside for inside in body)
            if back[1] or reads:
                found.append((len(body), reads, sum("BAR" in inside for inside in body)))
    return found


def _access(name: str, width: int) -> str:
    suffix = {16: r"\.E(\.\w+)*\.128\b", 8: r"\.E(\.\w+)*\.64\b", 4: r"\.E(?!.*\.(64|128|[US](8|16)))"}
    return name + suffix[width]


def _printed(cubin: bytes, what: str) -> str:
    """Resource usage or machine code, as the disassembler in Triton's wheel prints it."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _blocks_an_sm(capability: int, registers: int, shared: int, num_warps: int) -> int:
    """Blocks resident on one multiprocessor. Registers come in 256 a warp; each block takes 1 KB of shared memory more."""
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * num_warps)
    by_shared = (SHARED_LIMIT[capability] + 1024) // (shared + 1024)
    return min(by_registers, by_shared, WARPS_AN_SM[capability] // num_warps)
