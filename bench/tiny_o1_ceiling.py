"""What an ideal policy would do on tiny-o1's test problems: the ceiling in the tables of bench.tiny_o1 and bench.methods.

    python -m bench.tiny_o1_ceiling [--seeds 3] [--problems 300]

It slips as often as the thoughts that tiny-o1 was trained on, and chooses when to check as well as can be: not at all at levels
2 and 3, until two results agree at levels 4 and 5 (`IDEAL` in bench/thoughts.py). Its thoughts are written by the
generator, `SAMPLES` for each problem, and counted by tiny-o1's tokenizer. A trained model may get above its accuracy, where it
slips less than its teacher.
"""

import argparse
import random
import sys
from typing import NamedTuple

import numpy as np

from bench.thoughts import IDEAL, answer_of, text_of, write_thought
from o1core.model import Tokenizer, read_config
from o1core.problems import parse_levels
from o1core.problems.arithmetic import Task, arithmetic_tasks
from o1core.runs import EMBEDDED
from o1core.types import Problem

SAMPLES = 8
DRAWN_FOR_ONE = 8  # problems drawn for each that is wanted: the rarest level is every sixth


class Ceiling(NamedTuple):
    """Means over problems and samples. tokens: end-of-text included."""

    accuracy: float
    tokens: float


def ceiling(problems: int, seed: int, levels: str = "2-5") -> Ceiling:
    """Of the first `problems` test problems of a seed that have these levels."""
    tokenizer = Tokenizer(EMBEDDED, read_config(EMBEDDED).vocab_size)
    rng = random.Random(f"ceiling {seed}")
    right, lengths = [], []
    for task, problem in asked(problems, seed, levels):
        for _ in range(SAMPLES):
            thought = write_thought(task, rng, IDEAL)
            right.append(str(answer_of(thought)) == problem.answer)
            lengths.append(len(tokenizer.encode(text_of(thought))) + 1)
    return Ceiling(float(np.mean(right)), float(np.mean(lengths)))


def asked(problems: int, seed: int, levels: str) -> list[tuple[Task, Problem]]:
    """The problems that a run on tiny-o1 evaluates on, each with what it asks."""
    wanted = parse_levels(levels)
    drawn = arithmetic_tasks("test", problems * DRAWN_FOR_ONE, seed)
    return [(task, problem) for task, problem in drawn if problem.level in wanted][:problems]


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--seeds", type=int, default=3, help="sets of test problems (default: %(default)s)")
    ap.add_argument("--problems", type=int, default=300, help="of each (default: %(default)s)")
    args = ap.parse_args()
    for seed in range(args.seeds):
        found = ceiling(args.problems, seed)
        print(f"seed {seed}: {found.accuracy:.1%} right, {found.tokens:.1f} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
