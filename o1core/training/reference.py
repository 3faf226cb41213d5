"""Reference log-probs on disk: one file a round, with checksums of what is in it and of what it belongs to."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import write_atomic
from ..types import Example


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
    fix = "delete it, and the same command trains the round again from its start"
    try:
        with safe_open(path, framework="pt") as file:
            described, logprobs = file.metadata() or {}, file.get_tensor("logprobs")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: broken ({error}); {fix}") from None
    lengths = [len(e.ids) for e in examples]
    if described.get("sha256", tensor_digest(logprobs)) != tensor_digest(logprobs):
        raise UserError(f"{path}: damaged (its checksum differs); {fix}")
    if described and set(described) != {"sha256", "examples"}:
        raise UserError(f"{path}: damaged (its header differs); {fix}")
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
