"""One hostile recipe, command line or run folder.

fuzz_cli(rng, folder) says "ok" (the command ended well; a damaged run that was resumed has the weights of an undisturbed
one), "refused" (one clean line and exit status 2), or what is bad.
"""

import functools
import io
import json
import os
import random
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from o1core.cli import main
from o1core.files import file_digest
from o1core.recipe import SPECS
from o1core.run_folder import RunFolder
from o1core.runs.loop import Round

from .kill import make_command

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**9, 10**400, -(10**400), 2**63, 0.5, -0.5, 1e-300, 1e300, 1e-9),
    *("", "x", "none", "3-5", "70-30", "\x1b]0;t\x07", "a" * 5000, "\x00", "\ud800", [], {}, [[]], {"a": 1}),
)
NUMBERS = ("0", "-1", "1", "nan", "inf", "-inf", "1e300", "1e-300", "9" * 400, "none", "", "x", "0x10", "1_0", "٣")


def fuzz_cli(rng: random.Random, folder: Path) -> str:
    case = rng.choice((hostile_recipe, hostile_recipe, hostile_flags, damaged_run, damaged_run))
    return case(rng, folder)


def hostile_recipe(rng: random.Random, folder: Path) -> str:
    settings: Any = {rng.choice([*SPECS, "methods", "unknown"]): rng.choice(VALUES) for _ in range(rng.randint(1, 4))}
    if rng.random() < 0.1:
        settings = {"methods": {rng.choice(["sft", "dpo", "none"]): settings}}
    if rng.random() < 0.1:
        settings = rng.choice(VALUES)
    text = json.dumps(settings)
    if rng.random() < 0.1:
        text = rng.choice(("[" * 100_000, text[: len(text) // 2], '{"lr": NaN}', '{"lr": 1e999}', "\ufeff" + text))
    path = folder / "recipe.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return outcome(["prune", "--recipe", str(path), "--dry-run"])


def hostile_flags(rng: random.Random, folder: Path) -> str:
    names = [name for name, spec in SPECS.items() if spec.kind is not bool]
    words = []
    for name in rng.sample(names, rng.randint(1, 3)):
        value = rng.choice(NUMBERS if SPECS[name].kind is not str else [str(v) for v in VALUES])
        words.append(f"--{name.replace('_', '-')}={value}")
    recipe = rng.choice(("a\x00b", "/dev/zero", "/", "x" * 300))
    other = rng.choice(([], ["--slots", rng.choice(NUMBERS)], ["--recipe", recipe]))
    command = rng.choice((["prune"], ["sample"], ["eval"], ["study", "lambda", f"--values={rng.choice(NUMBERS)}"]))
    return outcome([*command, *words, *other, "--dry-run", "--out", str(folder / "run")])


def damaged_run(rng: random.Random, folder: Path) -> str:
    """A run that was stopped in its second round, one of its files damaged, and the same command given again."""
    command, source, wanted = stopped_run()
    run = RunFolder(folder / "run")
    shutil.copytree(source, run.path)
    file = rng.choice(sorted(path for path in run.path.rglob("*") if path.is_file()))
    raw = bytearray(file.read_bytes())
    match rng.choice(("flip", "flip", "cut", "remove", "other")):
        case "flip" if raw:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            file.write_bytes(raw)
        case "cut":
            file.write_bytes(raw[: rng.randrange(len(raw) + 1)])
        case "remove":
            file.unlink()
        case _:
            file.write_text(json.dumps(rng.choice([v for v in VALUES if v != "\ud800"])))
    verdict = outcome([*command, "--out", str(run.path)])
    if verdict == "ok" and file_digest(run.pruned / "model.safetensors") != wanted:
        return f"bad: {file.relative_to(run.path)} was damaged, and the run ended with other weights"
    return verdict if verdict in ("ok", "refused") else f"{verdict} after damage to {file.relative_to(run.path)}"


@functools.cache
def stopped_run() -> tuple[list[str], Path, str]:
    """A command, a folder in which it was stopped after 13 of 16 steps, and the digest of the weights it ends with."""
    folder = Path(tempfile.mkdtemp(prefix="o1core-fuzz-"))
    command, step = make_command(folder), Round.step

    def stop_at_13(self: Round, batch: list[int], progress: Any, steps: int) -> dict[str, Any]:
        if progress.steps == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, progress, steps)

    Round.step = stop_at_13  # type: ignore[method-assign]
    try:
        quietly(lambda: main([*command, "--out", str(folder / "stopped")]))
    finally:
        Round.step = step  # type: ignore[method-assign]
    quietly(lambda: main([*command, "--out", str(folder / "whole")]))
    return command, folder / "stopped", file_digest(folder / "whole" / "pruned" / "model.safetensors")


def quietly(call: Callable[[], int]) -> tuple[int, str]:
    """(exit status, what was printed to stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = call()
    return status, out.getvalue() + err.getvalue()


def outcome(command: list[str]) -> str:
    """How a command ended."""
    try:
        status, printed = quietly(lambda: main(command))
    except SystemExit as stop:  # argparse's own refusal
        return "refused" if stop.code == 2 else f"bad: exit status {stop.code}"
    except BaseException:
        return f"bad: {traceback.format_exc().strip().splitlines()[-1][:200]} from {' '.join(command)[:200]!r}"
    if any(not c.isprintable() and c not in "\r\n" for c in printed.replace("\x1b[A", "")):
        return f"bad: control characters printed by {' '.join(command)[:200]!r}"
    return "ok" if status == 0 else "refused" if status == 2 else f"bad: exit status {status}"
