"""Generated arithmetic for tiny-o1: a seeded source of problems of two kinds. The thoughts about them: bench/thoughts.py.

A sum is a chain of 2 to 5 operations ("What is 6*7+5-8?"). The other kind asks for the larger of two chains that have 2 to 5
operations together ("Which is larger, 47+8 or 60-9+2?"), and its answer is the larger result. A product comes only first, so
reading from left to right follows the order of precedence. Whatever the order of the other terms, every running total stays
in 0..99. A problem's level is its number of operations.
"""

import hashlib
import random
from dataclasses import dataclass

from ..types import Problem

SPLITS = ("train", "validation", "test")
LARGEST = 99  # of any running total
OPERAND = 9  # the largest number added or subtracted: one million parameters learn these sums in minutes
LEVELS = {2: 0.38, 3: 0.27, 4: 0.19, 5: 0.16}  # number of operations: its probability
LARGER = 0.3  # share of the problems that ask for the larger of two
SUM_WORDINGS = (
    *("What is {}?", "Compute {}.", "Find {}.", "Work out {}.", "How much is {}?", "Calculate {}."),
    *("Evaluate {}.", "What does {} make?", "Give the value of {}.", "Please solve {}."),
)
LARGER_WORDINGS = (
    *("Which is larger, {} or {}?", "What is the larger of {} and {}?", "Take the larger of {} and {}."),
    "Compare {} with {}: how much is the larger one?",
)


@dataclass(frozen=True)
class Chain:
    """An expression: its first number, then (operation, number) pairs, evaluated from left to right."""

    first: int
    rest: tuple[tuple[str, int], ...]

    @property
    def level(self) -> int:
        """The number of operations."""
        return len(self.rest)

    @property
    def totals(self) -> tuple[int, ...]:
        """The right result of each operation."""
        totals: list[int] = []
        total = self.first
        for operation, number in self.rest:
            total = {"+": total + number, "-": total - number, "*": total * number}[operation]
            totals.append(total)
        return tuple(totals)

    @property
    def other_way(self) -> "Chain":
        """The chain with its sums in the opposite order; a product stays first."""
        kept = 1 if self.rest[0][0] == "*" else 0
        return Chain(self.first, self.rest[:kept] + self.rest[kept:][::-1])

    def __str__(self) -> str:
        return "".join([str(self.first), *(f"{operation}{number}" for operation, number in self.rest)])


@dataclass(frozen=True)
class Task:
    """What a problem asks: the value of one chain, or the larger of two."""

    chains: tuple[Chain, ...]

    @property
    def level(self) -> int:
        """The number of operations."""
        return sum(chain.level for chain in self.chains)

    @property
    def answer(self) -> int:
        return max(chain.totals[-1] for chain in self.chains)

    @property
    def normal_form(self) -> str:
        """The same for tasks that differ in the order of terms, factors or chains alone."""
        return " | ".join(sorted(normal_form(chain) for chain in self.chains))

    @property
    def split(self) -> str:
        """Of ten tasks, eight are for training, one for validation and one for test."""
        bucket = hashlib.sha256(self.normal_form.encode()).digest()[0] % 10
        return {0: "test", 1: "validation"}.get(bucket, "train")

    def asked(self, rng: random.Random) -> str:
        """The question, in one of the wordings of its kind."""
        wordings = SUM_WORDINGS if len(self.chains) == 1 else LARGER_WORDINGS
        return rng.choice(wordings).format(*self.chains)


def arithmetic_problems(split: str, count: int, seed: int) -> list[Problem]:
    """`count` different problems of one split ("train", "validation" or "test"), the same for the same seed.

    Two problems that differ in the order of their terms or chains alone count as the same. The splits are disjoint whatever
    the seeds, since a hash of the problem decides its split.
    """
    return [problem for _, problem in arithmetic_tasks(split, count, seed)]


def arithmetic_tasks(split: str, count: int, seed: int) -> list[tuple[Task, Problem]]:
    """The problems of `arithmetic_problems`, each with what it asks."""
    assert split in SPLITS, split
    rng = random.Random(f"{split} {seed}")
    seen: set[str] = set()
    drawn: list[tuple[Task, Problem]] = []
    while len(drawn) < count:
        task = draw_task(rng)
        key = task.normal_form
        if key in seen or task.split != split:
            continue
        seen.add(key)
        name = f"arithmetic-{split}-{seed}-{len(drawn)}"
        drawn.append((task, Problem(name, task.asked(rng), str(task.answer), level=str(task.level))))
    return drawn


def draw_task(rng: random.Random) -> Task:
    """A random task. The two chains of one that compares never come to the same."""
    level = rng.choices(list(LEVELS), list(LEVELS.values()))[0]
    if rng.random() >= LARGER:
        return Task((draw_chain(level, rng),))
    left = rng.randint(1, level - 1)
    while True:
        chains = draw_chain(left, rng), draw_chain(level - left, rng)
        if chains[0].totals[-1] != chains[1].totals[-1]:
            return Task(chains)


def draw_chain(level: int, rng: random.Random) -> Chain:
    """A random chain of so many operations; every fifth begins with a product of small numbers."""
    while True:
        rest = []
        if rng.random() < 0.2:
            first = rng.randint(2, 9)
            rest.append(("*", rng.randint(2, min(9, LARGEST // first))))
        else:
            first = rng.randint(2, LARGEST)
        rest += [(rng.choice("+-"), rng.randint(2, OPERAND)) for _ in range(level - len(rest))]
        chain = Chain(first, tuple(rest))
        if all(0 <= total <= LARGEST for total in (*chain.totals, *chain.other_way.totals)):
            return chain


def normal_form(chain: Chain) -> str:
    """The chain with its terms, and the factors of its product, in a fixed order."""
    rest = list(chain.rest)
    if rest[0][0] == "*":
        first = "*".join(map(str, sorted((chain.first, rest.pop(0)[1]))))
    else:
        first = str(chain.first)
    return " ".join(sorted([f"+{first}", *(f"{operation}{number}" for operation, number in rest)]))
