"""log.jsonl: one JSON line per optimiser step, which a resumed run continues without a gap or a repeat."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..files import write_atomic


def trim_log(path: Path, steps: int) -> None:
    """Drop the lines of steps that a killed run did and its newest state does not know."""
    if path.exists():
        text = "".join(f"{line}\n" for line in whole_lines(path)[:steps])
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
