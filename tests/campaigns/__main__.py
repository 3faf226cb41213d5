"""Hostile tests of a run that is left alone for days, each with a table of counts and an exit status of 1 where any is bad.

    python -m tests.campaigns kill [--cuts 200]      runs killed at file operations and at random, then resumed
    python -m tests.campaigns fuzz [--cases 2000]    strangers' checkpoints, templates, data, recipes and run folders
    python -m tests.campaigns bits                   a completion's bits alone, in any batch, after a kill, at real widths
    python -m tests.campaigns memory [--steps 30]    peak memory of updates at 0.5B widths

Short forms of all four run in the test command.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from .bits import run_bits
from .fuzz_cli import fuzz_cli
from .fuzz_data import fuzz_data
from .fuzz_model import fuzz_model
from .fuzz_report import fuzz_report
from .fuzz_rollouts import fuzz_rollouts
from .kill import run_kill

FUZZES = (fuzz_data, fuzz_model, fuzz_rollouts, fuzz_report, fuzz_cli)


def main() -> int:
    ap = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__.split("\n")[0])
    campaigns = ap.add_subparsers(dest="campaign", required=True)
    kill = campaigns.add_parser("kill", help="runs that are killed and resumed")
    kill.add_argument("--cuts", type=int, default=200, help="runs to disturb (default: %(default)s)")
    fuzz = campaigns.add_parser("fuzz", help="hostile files and flags")
    fuzz.add_argument("--cases", type=int, default=2000, help="cases over all kinds (default: %(default)s)")
    for sub in (kill, fuzz):
        sub.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    campaigns.add_parser("bits", help="bits of completions at real widths")
    memory = campaigns.add_parser("memory", help="peak memory over updates")
    memory.add_argument("--steps", type=int, default=30, help="(default: %(default)s)")
    args = ap.parse_args()
    match args.campaign:
        case "bits":
            return 1 if run_bits() else 0
        case "memory":
            from .memory import run_memory

            return 1 if run_memory(steps=args.steps) else 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if args.campaign == "kill":
            counts = run_kill(args.cuts, args.seed, Path(folder))
        else:
            counts = run_fuzz(args.cases, args.seed, Path(folder))
    for name, count in sorted(counts.items()):
        print(f"{count:6d}  {name}")
    bad = sum(count for name, count in counts.items() if "bad" in name)
    print(f"{sum(counts.values())} cases, {bad} bad, {time.monotonic() - start:.0f} s")
    return 1 if bad else 0


def run_fuzz(cases: int, seed: int, folder: Path) -> Counter[str]:
    """Counts of "FUZZ: ok", "FUZZ: refused" and "FUZZ: bad: ...", the kinds in turn."""
    counts: Counter[str] = Counter()
    for case in tqdm(range(cases), desc="fuzz", unit="case"):
        fuzz, place = FUZZES[case % len(FUZZES)], folder / str(case)
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
