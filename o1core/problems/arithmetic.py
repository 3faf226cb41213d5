r"""Generated arithmetic for tiny-o1: a seeded source of problems, and of thoughts that are too long.

A problem is a chain of 2 to 5 operations ("What is 6*7+5-8?"). A product comes only first, so reading from left
to right follows the order of precedence. Every running total stays in 0..99.

A thought works the chain out step by step, and then checks it again and again for no good reason:

    First, 47+8=55. Then 55-9=46. So the answer is 46.
    Wait, let me check that again. 47+8=55, 55-9=46. Yes, 46.
    Final answer: \boxed{46}

`ThoughtLaw` holds the law behind the thoughts. The first derivation is almost always right. A re-check may slip at any
step: the result is off by 1, 2 or 10, the following steps build on it, and the thought adopts what it found. A thought
that went wrong mostly repeats its mistake. So a long thought is less often right than a short one. A hard problem has
more steps to slip at, so its thoughts are longer and less often right than those of an easy one. These are the two
findings of the paper (arXiv 2501.12570, section 3), in a model of one million parameters.

Left out on purpose: bare answers without a thought. A completion ten times shorter than the mean earns 9 from the first
term of the paper's reward, L_ref / L - 1, whether it is right or wrong, and a policy that finds it collapses onto it.
"""

import hashlib
import random
from dataclasses import dataclass

from .problem import Problem

SPLITS = ("train", "validation", "test")
LARGEST = 99  # of any running total
OPERAND = 9  # the largest number added or subtracted: one million parameters learn these sums in minutes
LEVELS = {2: 0.42, 3: 0.30, 4: 0.18, 5: 0.10}  # number of operations: its probability
WORDINGS = ("What is {}?", "Compute {}.", "Find {}.", "Work out {}.")
RECHECKS = ("Wait, let me check that again.", "Hmm, let me go over it again.", "Let me make sure.")


@dataclass(frozen=True)
class ThoughtLaw:
    """How long thoughts get, and how they go wrong. All but `most` and `slips` are probabilities.

    stop_first:  there is no re-check at all, by level: a hard problem makes the writer less sure
    stop:        the thought ends, after each re-check
    most:        the largest number of re-checks
    slip_first:  a step of the first derivation is wrong
    slip:        a step of a re-check is wrong
    repeat:      a re-check of a wrong derivation repeats it word for word rather than starting afresh
    slips:       by how much a wrong result may be off
    """

    stop_first: tuple[float, ...] = (0.20, 0.16, 0.13, 0.10)
    stop: float = 0.46
    most: int = 4
    slip_first: float = 0.003
    slip: float = 0.045
    repeat: float = 0.88
    slips: tuple[int, ...] = (-10, -2, -1, 1, 2, 10)


LAW = ThoughtLaw()


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

    def __str__(self) -> str:
        return "".join([str(self.first), *(f"{operation}{number}" for operation, number in self.rest)])


def arithmetic_problems(split: str, count: int, seed: int) -> list[Problem]:
    """`count` different problems of one split ("train", "validation" or "test"), the same for the same seed.

    Two problems that differ in the order of their terms alone count as the same. The splits are disjoint whatever the
    seeds, since a hash of the problem decides its split.
    """
    return [problem for problem, _ in _draw(split, count, seed, with_thoughts=False)]


def arithmetic_examples(split: str, count: int, seed: int, law: ThoughtLaw = LAW) -> list[tuple[Problem, str]]:
    """Problems as from `arithmetic_problems`, each with one thought that `law` writes: what tiny-o1 is trained on."""
    return _draw(split, count, seed, law, with_thoughts=True)


def _draw(
    split: str, count: int, seed: int, law: ThoughtLaw = LAW, *, with_thoughts: bool
) -> list[tuple[Problem, str]]:
    assert split in SPLITS, split
    rng = random.Random(f"{split} {seed}")
    seen: set[str] = set()
    drawn: list[tuple[Problem, str]] = []
    while len(drawn) < count:
        chain = draw_chain(rng)
        key = normal_form(chain)
        if key in seen or split_of(chain) != split:
            continue
        seen.add(key)
        problem = Problem(
            id=f"arithmetic-{split}-{seed}-{len(drawn)}",
            question=rng.choice(WORDINGS).format(chain),
            answer=str(chain.totals[-1]),
            level=str(chain.level),
        )
        drawn.append((problem, write_thought(chain, rng, law) if with_thoughts else ""))
    return drawn


def draw_chain(rng: random.Random) -> Chain:
    """A random chain; every fifth begins with a product of small numbers."""
    level = rng.choices(list(LEVELS), list(LEVELS.values()))[0]
    rest = []
    if rng.random() < 0.2:
        first = rng.randint(2, 9)
        rest.append(("*", rng.randint(2, min(9, LARGEST // first))))
        total = first * rest[0][1]
    else:
        first = total = rng.randint(2, LARGEST)
    while len(rest) < level:
        operation = rng.choice("+-")
        room = LARGEST - total if operation == "+" else total
        if room < 2:
            continue
        number = rng.randint(2, min(room, OPERAND))
        total += number if operation == "+" else -number
        rest.append((operation, number))
    return Chain(first, tuple(rest))


def normal_form(chain: Chain) -> str:
    """The chain with its terms, and the factors of its product, in a fixed order."""
    rest = list(chain.rest)
    if rest[0][0] == "*":
        first = "*".join(map(str, sorted((chain.first, rest.pop(0)[1]))))
    else:
        first = str(chain.first)
    return " ".join(sorted([f"+{first}", *(f"{operation}{number}" for operation, number in rest)]))


def split_of(chain: Chain) -> str:
    """Of ten chains, eight are for training, one for validation and one for test."""
    bucket = hashlib.sha256(normal_form(chain).encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def write_thought(chain: Chain, rng: random.Random, law: ThoughtLaw = LAW) -> str:
    """One thought about the chain, as the text of a completion (without the token that ends it)."""
    right = list(chain.totals)
    found = _derive(right, rng, law.slip_first, law.slips)
    lines = [f"First, {'. Then '.join(_steps(chain, found))}. So the answer is {found[-1]}."]
    stop = law.stop_first[chain.level - min(LEVELS)]
    while len(lines) <= law.most and rng.random() >= stop:
        stop = law.stop
        before = found
        if found == right or rng.random() >= law.repeat:
            found = _derive(right, rng, law.slip, law.slips)
        verdict = "Yes" if found[-1] == before[-1] else "No"
        lines.append(f"{rng.choice(RECHECKS)} {', '.join(_steps(chain, found))}. {verdict}, {found[-1]}.")
    return "\n".join([*lines, f"Final answer: \\boxed{{{found[-1]}}}"])


def _derive(right: list[int], rng: random.Random, slip: float, slips: tuple[int, ...]) -> list[int]:
    """The totals as a fallible writer finds them: a slip shifts its own result and all later ones."""
    found = list(right)
    for step in range(len(found)):
        if rng.random() < slip:
            low, high = min(found[step:]), max(found[step:])
            possible = [off for off in slips if low + off >= 0 and high + off <= LARGEST]
            off = rng.choice(possible) if possible else 0
            found[step:] = [total + off for total in found[step:]]
    return found


def _steps(chain: Chain, found: list[int]) -> list[str]:
    """The steps of a derivation: "47+8=55", then "55-9=46"."""
    befores = [chain.first, *found]
    return [f"{a}{operation}{b}={c}" for a, (operation, b), c in zip(befores, chain.rest, found)]
