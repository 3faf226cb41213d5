"""Hostile tests of a run that is left alone for days, each with a table of counts and an exit status of 1 where any is bad.

    python -m tests.campaigns kill [--cuts 200]      runs killed at file operations and at random, then resumed
    python -m tests.campaigns fuzz [--cases 2000]    strangers' checkpoints, templates, data, recipes and run folders
    python -m tests.campaigns attacks                single attacks, each of which succeeded once
    python -m tests.campaigns bits                   a completion's bits alone, in any batch, after a kill, at real widths
    python -m tests.campaigns memory [--steps 30]    peak memory of updates at 0.5B widths

Short forms of all of them run in the test command.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from .attacks import ATTACKS, run_attacks
from .bits import Case, run_bits
from .fuzz_cli import fuzz_cli
from .fuzz_data import fuzz_data
from .fuzz_model import fuzz_model
from .fuzz_report import fuzz_report
from .fuzz_rollouts import fuzz_rollouts
from .kill import run_kill
from .memory import SIZES, run_memory

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is drawn at random is not asked for
CASE_SIZES = ("prompts", "samples", "new_tokens", "layers", "vocab")
FUZZES = {"data": fuzz_data, "model": fuzz_model, "rollouts": fuzz_rollouts, "report": fuzz_report, "cli": fuzz_cli}


def main() -> int:
    args = parser().parse_args()
    match args.campaign:
        case "bits":
            return 1 if run_bits(**{name: getattr(args, name) for name in CASE_SIZES}) else 0
        case "memory":
            return 1 if run_memory(args.steps, **{name: getattr(args, name) for name in SIZES}) else 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if args.campaign == "kill":
            counts = run_kill(args.cuts, args.seed, Path(folder))
        elif args.campaign == "attacks":
            counts = run_attacks(args.only, Path(folder))
        else:
            counts = run_fuzz(args.cases, args.seed, Path(folder), args.only)
    for name, count in sorted(counts.items()):
        print(f"{count:6d}  {name}")
    bad = sum(count for name, count in counts.items() if "bad" in name)
    print(f"{sum(counts.values())} cases, {bad} bad, {time.monotonic() - start:.0f} s")
    return 1 if bad else 0


def parser() -> argparse.ArgumentParser:
    ap = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__.split("\n")[0])
    campaigns = ap.add_subparsers(dest="campaign", required=True)

    def campaign(name: str, help: str, **defaults: int) -> argparse.ArgumentParser:
        sub = campaigns.add_parser(name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for flag, default in defaults.items():
            sub.add_argument(f"--{flag.replace('_', '-')}", type=int, default=default, help=" ")
        return sub

    campaign("kill", "runs that are killed and resumed", cuts=200, seed=0)
    fuzz = campaign("fuzz", "hostile files and flags, drawn at random", cases=2000, seed=0)
    fuzz.add_argument("--only", choices=FUZZES, help="one kind")
    attacks = campaign("attacks", "single attacks, each of which succeeded once")
    attacks.add_argument("--only", choices=ATTACKS, help="one attack")
    campaign("bits", "bits of completions at real widths", **{name: getattr(Case, name) for name in CASE_SIZES})
    campaign("memory", "peak memory over updates", steps=30, **SIZES)
    return ap


def run_fuzz(cases: int, seed: int, folder: Path, only: str | None = None) -> Counter[str]:
    """Counts of "FUZZ: ok", "FUZZ: refused" and "FUZZ: bad", the kinds in turn."""
    counts: Counter[str] = Counter()
    kinds = list(FUZZES.values()) if only is None else [FUZZES[only]]
    for case in tqdm(range(cases), desc="fuzz", unit="case"):
        fuzz, place = kinds[case % len(kinds)], folder / str(case)
        place.mkdir()
        verdict = fuzz(random.Random(f"{seed} {case}"), place)
        shutil.rmtree(place, ignore_errors=True)
        if verdict not in ("ok", "refused"):
            print(f"case {case}, {fuzz.__name__}: {verdict}", file=sys.stderr, flush=True)
            verdict = "bad"
        counts[f"{fuzz.__name__}: {verdict}"] += 1
    return counts


if __name__ == "__main__":
    sys.exit(main())
