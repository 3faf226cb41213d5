r"""Generated thoughts for tiny-o1: what a fallible writer notes down about a problem of o1core.problems.arithmetic.

A thought derives the answer step by step. Then it checks, the other way round, whether the same comes out:

    First I add 8 to 47: 47+8=55. Then I take 9 from 55: 55-9=41. So the answer is 41.
    Check 47-9=38, 38+8=46 after 41: no.
    Check 47-9=38, 38+8=46 after 46: yes.
    Final answer: \boxed{46}

Each derivation slips anew, the more easily the more operations there are, and a check is done with more care. A thought ends
where two results in a row are the same, and answers with the last. So checks help on hard problems, are waste on easy ones, and
any check after the first "yes" is waste everywhere. `ThoughtLaw` holds the probabilities. The base (`LAW`) checks a random
number of times, whatever the problem; an ideal policy with the same slips (`IDEAL`) checks hard problems alone, and until two
results agree. A problem that asks for the larger of two chains has one more line of thought ("The larger of 55 and 51 is 55.").

Instructions are followed weakly, as real models do: see `instructed`.

Left out on purpose: bare answers without a thought. A completion ten times shorter than the mean earns 9 from the first
term of the paper's reward, L_ref / L - 1, whether it is right or wrong, and a policy that finds it collapses onto it. And an
answer that depends on comparing all results: a million parameters do not learn to compare numbers far apart in minutes.
"""

import random
import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from o1core.problems import INSTRUCTIONS, instruct
from o1core.problems.arithmetic import LARGEST, LEVELS, Chain, Task, arithmetic_tasks
from o1core.types import Problem

DOING = {"+": "add {1} to {0}", "-": "take {1} from {0}", "*": "multiply {0} by {1}"}
BUDGETS = (40, 300)  # tokens that an instruction may name
WORD = re.compile(r" ?[A-Za-z]+|\d|\n| ?[^\sA-Za-z\d]+|\s")  # what tiny-o1's tokenizer makes one token


@dataclass(frozen=True)
class ThoughtLaw:
    """How long thoughts get, and how they go wrong. Tuples hold one value for each of LEVELS.

    slip:      probability that a step's result is wrong, by one of `slips`; the following steps build on it
    careful:   the same for a step of a check
    unchecked: probability that there is no check at all
    stop:      probability that the thought ends, after each check that agrees with the result before
    most:      the largest number of checks
    slips:     all change the last digit by five: slips of one or two spoil what a small model learns about sums
    """

    slip: tuple[float, ...] = (0.003, 0.012, 0.15, 0.2)
    careful: tuple[float, ...] = (0.003, 0.006, 0.02, 0.025)
    unchecked: tuple[float, ...] = (0.12, 0.14, 0.35, 0.35)
    stop: tuple[float, ...] = (0.08, 0.1, 0.32, 0.32)
    most: int = 6
    slips: tuple[int, ...] = (-25, -15, -5, 5, 15, 25)


LAW = ThoughtLaw()
IDEAL = replace(LAW, unchecked=(1.0, 1.0, 0.0, 0.0), stop=(1.0,) * 4)
HASTY = {
    "fast": replace(LAW, unchecked=(0.4, 0.4, 0.5, 0.5), stop=(0.25, 0.25, 0.42, 0.42)),
    "concise": replace(LAW, unchecked=(0.5, 0.5, 0.55, 0.55), stop=(0.35, 0.35, 0.5, 0.5)),
}


class Line(NamedTuple):
    """A derivation or a check, and what it comes to."""

    text: str
    result: int


def arithmetic_examples(split: str, count: int, seed: int, law: ThoughtLaw = LAW) -> list[tuple[Problem, str]]:
    """Problems as from `arithmetic_problems`, each with one thought that `law` writes (without the token that ends it)."""
    rng = random.Random(f"thoughts {split} {seed}")
    return [(problem, text_of(write_thought(task, rng, law))) for task, problem in arithmetic_tasks(split, count, seed)]


def instructed(task: Task, problem: Problem, rng: random.Random) -> tuple[Problem, list[Line]]:
    """The problem with a random instruction of o1core's own (o1core.problems.prompts), and a thought that heeds it a little.

    Asked to be fast or concise, the writer checks somewhat less often. Told a number of tokens, half of the time he does not
    start a check that would go beyond it; told to think for exactly so many, he checks on until then.
    """
    kind = rng.choice([name for name in INSTRUCTIONS if name != "none"])
    budget = rng.randint(*BUDGETS)
    asked = instruct(problem, kind, budget)
    if kind in HASTY:
        return asked, write_thought(task, rng, HASTY[kind])
    if rng.random() < 0.5:
        return asked, write_thought(task, rng)
    thought = write_thought(task, rng, replace(LAW, unchecked=(0.0,) * 4, stop=(0.0,) * 4) if kind == "exact" else LAW)
    while len(thought) > 1 and tokens(text_of(thought)) > budget:
        thought.pop()
    return asked, thought


def write_thought(task: Task, rng: random.Random, law: ThoughtLaw = LAW) -> list[Line]:
    """The derivation and the checks of one thought."""
    place = task.level - min(LEVELS)
    steps = [_derive(chain, rng, law.slip[place], law.slips) for chain in task.chains]
    first, *others = [step for chain, found in zip(task.chains, steps) for step in _apart(chain, found)]
    result, larger = _conclude([found[-1] for found in steps])
    text = f"First {first}" + "".join(f". Then {step}" for step in others)
    lines = [Line(f"{text}.{larger} So the answer is {result}.\n", result)]
    stop = law.unchecked[place]
    while len(lines) <= law.most and rng.random() >= stop:
        before = lines[-1].result
        lines.append(_check(task, before, rng, law))
        stop = law.stop[place] if lines[-1].result == before else 0.0
    return lines


def _check(task: Task, before: int, rng: random.Random, law: ThoughtLaw) -> Line:
    """One check, with the result before it."""
    chains = [chain.other_way for chain in reversed(task.chains)]
    steps = [_derive(chain, rng, law.careful[task.level - min(LEVELS)], law.slips) for chain in chains]
    result, larger = _conclude([found[-1] for found in steps])
    running = "; ".join(_in_one(chain, found) for chain, found in zip(chains, steps))
    said = f"{running}.{larger.removesuffix('.')}" if larger else running
    return Line(f"Check {said} after {before}: {'yes' if result == before else 'no'}.\n", result)


def _derive(chain: Chain, rng: random.Random, slip: float, slips: tuple[int, ...]) -> list[int]:
    """The totals as a fallible writer finds them: a slip shifts its own result and all later ones."""
    found = list(chain.totals)
    for step in range(len(found)):
        if rng.random() < slip:
            low, high = min(found[step:]), max(found[step:])
            possible = [off for off in slips if low + off >= 0 and high + off <= LARGEST]
            off = rng.choice(possible) if possible else 0
            found[step:] = [total + off for total in found[step:]]
    return found


def _apart(chain: Chain, found: list[int]) -> list[str]:
    """The steps of a derivation: "I add 8 to 47: 47+8=55", then "I take 9 from 55: 55-9=46"."""
    befores = [chain.first, *found]
    return [
        f"I {DOING[operation].format(a, b)}: {a}{operation}{b}={c}"
        for a, (operation, b), c in zip(befores, chain.rest, found)
    ]


def _in_one(chain: Chain, found: list[int]) -> str:
    """The steps of a check: "47-9=38, 38+8=46". Every sum is written in full, as in a derivation: in a run-on "47-9=38+8=46"
    tiny-o1 got half of the sums of hard problems wrong, and copied the end from the line before."""
    return ", ".join(f"{a}{operation}{b}={c}" for a, (operation, b), c in zip([chain.first, *found], chain.rest, found))


def _conclude(found: list[int]) -> tuple[int, str]:
    """The result of a derivation, and the sentence that compares its two numbers where it has two."""
    result = max(found)
    return result, "" if len(found) == 1 else f" The larger of {found[0]} and {found[1]} is {result}."


def text_of(thought: list[Line]) -> str:
    """The whole completion, with the line that answers."""
    return "".join(line.text for line in thought) + f"Final answer: \\boxed{{{answer_of(thought)}}}"


def answer_of(thought: list[Line]) -> int:
    """What was found last."""
    return thought[-1].result


def tokens(text: str) -> int:
    """How many tokens tiny-o1's tokenizer makes of a thought, about."""
    return len(WORD.findall(text))
