"""log.jsonl: one JSON line per optimiser step, which a resumed run continues without a gap or a repeat."""

import json
from pathlib import Path
from typing import Any

from ..files import write_atomic


def trim_log(path: Path, steps: int) -> None:
    """Drop the lines of steps that a killed run did and its newest state does not know."""
    if path.exists():
        kept = [line for line in read_log(path) if line["step"] <= steps]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):
            break
    return lines
