"""One hostile recipe, command line or run folder.

A damaged run that was resumed must have the weights of an undisturbed one.
"""

import functools
import io
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from o1core.cli import main
from o1core.files import file_digest
from o1core.recipe import SPECS
from o1core.run_folder import RunFolder
from o1core.runs.loop import Round

from .harness import VALUES, cut, flip_bit, outcome, remove, replace_bytes
from .kill import make_command

NUMBER_TEXTS = ("0", "-1", "1", "nan", "inf", "-inf", "1e300", "1e-300", "9" * 400, "none", "", "x", "0x10", "1_0", "٣")


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
        value = rng.choice(NUMBER_TEXTS if SPECS[name].kind is not str else [str(v) for v in VALUES])
        words.append(f"--{name.replace('_', '-')}={value}")
    recipe = rng.choice(("a\x00b", "/dev/zero", "/", "x" * 300))
    other = rng.choice(([], ["--slots", rng.choice(NUMBER_TEXTS)], ["--recipe", recipe]))
    command = rng.choice((["prune"], ["sample"], ["eval"], ["study", "lambda", f"--values={rng.choice(NUMBER_TEXTS)}"]))
    return outcome([*command, *words, *other, "--dry-run", "--out", str(folder / "run")])


def damaged_run(rng: random.Random, folder: Path) -> str:
    """A run that was stopped in its second round, one of its files damaged, and the same command given again."""
    command, source, wanted = stopped_run()
    run = RunFolder(folder / "run")
    shutil.copytree(source, run.path)
    file = rng.choice(sorted(path for path in run.path.rglob("*") if path.is_file()))
    rng.choice((flip_bit, flip_bit, cut, remove, replace_bytes))(rng, file)
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
