"""What a round keeps on disk beside its rollouts: reference log-probs, and its lines of log.jsonl.

log.jsonl has one JSON line per optimiser step with a checksum of itself, and a resumed run continues it without a gap or a
repeat. A line that is damaged is lost alone. The reference
log-probs are one file a round, with checksums of what is in it and of what it belongs to. Rank 0 writes both.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..distributed import is_lead, on_all_ranks, on_rank0
from ..errors import UserError
from ..files import write_atomic
from ..types import Example

log = logging.getLogger(__name__)

CRC = "crc32"  # in a line of the log: the checksum of its other fields
HOW_TO_FIX = "delete it, and the same command trains the round again from its start"


def kept_reference(
    path: Path, examples: list[Example], compute: Callable[[], list[Tensor]], at_start: bool
) -> list[Tensor]:
    """Reference log-probs of the examples: read where they are there, else computed and kept.

    at_start: before the round's first step; later they cannot be computed any more. Raises UserError where the file is
    damaged, or belongs to other rollouts.
    """
    what = "the reference"
    there = on_rank0(what, path.exists)  # one rank's view decides
    reference = on_all_ranks(what, lambda: read_reference(path, examples)) if there else None
    if reference is None and not at_start:
        raise UserError(f"{path}: belongs to other rollouts than are there; {HOW_TO_FIX}")
    if reference is None:
        computed = reference = compute()
        on_rank0(what, lambda: save_reference(path, examples, computed))
    return reference


def save_reference(path: Path, examples: list[Example], reference: list[Tensor]) -> None:
    """Write float32 log-probs [L] of each example."""
    logprobs = torch.cat(reference)
    described = {"sha256": tensor_digest(logprobs), "examples": examples_digest(examples)}
    write_atomic(path, lambda temporary: save_file({"logprobs": logprobs}, temporary, metadata=described))


def read_reference(path: Path, examples: list[Example]) -> list[Tensor] | None:
    """The log-probs of these examples; None where the file belongs to other examples.

    Raises UserError where the file is damaged. Files of the first versions have no checksums; their size is checked.
    """
    try:
        with safe_open(path, framework="pt") as file:
            described, logprobs = file.metadata() or {}, file.get_tensor("logprobs")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: broken ({error}); {HOW_TO_FIX}") from None
    lengths = [len(e.ids) for e in examples]
    if described.get("sha256", tensor_digest(logprobs)) != tensor_digest(logprobs):
        raise UserError(f"{path}: damaged (its checksum differs); {HOW_TO_FIX}")
    if described and set(described) != {"sha256", "examples"}:
        raise UserError(f"{path}: damaged (its header differs); {HOW_TO_FIX}")
    belongs = described.get("examples", examples_digest(examples)) == examples_digest(examples)
    if not belongs or logprobs.shape != (sum(lengths),) or logprobs.dtype != torch.float32:
        return None
    return list(logprobs.split(lengths))


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def examples_digest(examples: list[Example]) -> str:
    """SHA-256 of the examples' problems and tokens, in their order."""
    digest = hashlib.sha256()
    for e in examples:
        digest.update(f"{e.problem}\0{len(e.prompt)} {len(e.ids)}\0".encode(errors="surrogatepass"))
        digest.update(e.prompt.contiguous().view(torch.uint8).numpy().tobytes())
        digest.update(e.ids.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def log_line(step: dict[str, Any]) -> str:
    """The line of a step."""
    return json.dumps(step | {CRC: line_checksum(step)}) + "\n"


def line_checksum(step: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(step).encode()):08x}"


def trim_log(path: Path, steps: int) -> None:
    """Drop the lines of steps that a killed run did and its newest state does not know."""

    def trim() -> None:
        if path.exists():
            text = "".join(f"{line}\n" for step, line in whole_lines(path).items() if step <= steps)
            write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    on_rank0("the log", trim)


def open_log(path: Path) -> TextIO:
    """The log to add lines to; on ranks other than 0 what is written goes nowhere."""
    return open(path if is_lead() else os.devnull, "a", encoding="utf-8", buffering=1)


def log_digest(path: Path, steps: int) -> str:
    """SHA-256 of the lines of the first `steps` steps."""
    held = whole_lines(path) if path.exists() else {}
    return hashlib.sha256("\n".join(line for step, line in held.items() if step <= steps).encode()).hexdigest()


def read_log(path: Path) -> list[dict[str, Any]]:
    """What the log says of each step. Steps whose lines are damaged are left out and named in a warning."""
    held = whole_lines(path)
    if lost := [step for step in range(1, max(held, default=0)) if step not in held]:
        steps = f"{', '.join(map(str, lost[:10]))}{' and others' if len(lost) > 10 else ''}"
        log.warning("%s: damaged; it no longer shows what these steps did: %s", path, steps)
    return [{name: value for name, value in json.loads(line).items() if name != CRC} for line in held.values()]


def whole_lines(path: Path) -> dict[int, str]:
    """step: the text of its line, in their order. What a kill cut short or something else damaged is left out."""
    held: dict[int, str] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(line, dict) or type(step := line.get("step")) is not int:
            continue
        checksum = line.pop(CRC, None)  # the first versions wrote none
        if step > max(held, default=0) and checksum in (None, line_checksum(line)):
            held[step] = text
    return held
