"""What a round keeps on disk beside its rollouts: reference log-probs, and its lines of log.jsonl.

log.jsonl has one JSON line per optimiser step, which a resumed run continues without a gap or a repeat. The reference
log-probs are one file a round, with checksums of what is in it and of what it belongs to. Rank 0 writes both.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..distributed import gather, is_lead, on_rank0
from ..errors import UserError
from ..files import write_atomic
from ..types import Example

HOW_TO_FIX = "delete it, and the same command trains the round again from its start"


def kept_reference(
    path: Path, examples: list[Example], compute: Callable[[], list[Tensor]], at_start: bool
) -> list[Tensor]:
    """Reference log-probs of the examples: read where they are there, else computed and kept.

    at_start: before the round's first step; later they cannot be computed any more. Raises UserError where the file is
    damaged, or belongs to other rollouts.
    """
    reference = read_reference(path, examples)
    gather("the reference")  # no rank writes before all have read
    if reference is None and not at_start:
        raise UserError(f"{path}: belongs to other rollouts than are there; {HOW_TO_FIX}")
    if reference is None:
        computed = reference = compute()
        on_rank0("the reference", lambda: save_reference(path, examples, computed))
    return reference


def save_reference(path: Path, examples: list[Example], reference: list[Tensor]) -> None:
    """Write float32 log-probs [L] of each example."""
    logprobs = torch.cat(reference)
    described = {"sha256": tensor_digest(logprobs), "examples": examples_digest(examples)}
    write_atomic(path, lambda temporary: save_file({"logprobs": logprobs}, temporary, metadata=described))


def read_reference(path: Path, examples: list[Example]) -> list[Tensor] | None:
    """The log-probs of these examples; None where there is no file, or it belongs to other examples.

    Raises UserError where the file is damaged. Files of versions before 0.2 have no checksums; their size is checked.
    """
    if not path.exists():
        return None
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


def trim_log(path: Path, steps: int) -> None:
    """Drop the lines of steps that a killed run did and its newest state does not know."""

    def trim() -> None:
        if path.exists():
            text = "".join(f"{line}\n" for line in whole_lines(path)[:steps])
            write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    on_rank0("the log", trim)


def open_log(path: Path) -> TextIO:
    """The log to add lines to; on ranks other than 0 what is written goes nowhere."""
    return open(path if is_lead() else os.devnull, "a", encoding="utf-8", buffering=1)


def log_digest(path: Path, steps: int) -> str:
    """SHA-256 of the lines of the first `steps` steps."""
    lines = whole_lines(path)[:steps] if path.exists() else []
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log. What a kill cut short, and anything else that is no line of a log, ends it."""
    return [json.loads(line) for line in whole_lines(path)]


def whole_lines(path: Path) -> list[str]:
    """The texts of the lines up to the first that is not the JSON object of the step that is due there."""
    lines: list[str] = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or line.get("step") != len(lines) + 1:
            break
        lines.append(text)
    return lines
