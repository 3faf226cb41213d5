r"""Problems that the reasoning-gym library makes: logic, games, algorithms. A task is named "reasoning-gym:NAME".

The library is an optional extra (pip install reasoning-gym). It makes problems with their answers in a process of its
own (gym_worker.py) and scores answers in the grading worker, under that worker's limits. An answer is right if its score
is 1.0.

Left out on purpose: partial scores, settings and curricula (each task has its defaults), and the tasks in REFUSED.
"""

import difflib
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..sandbox import Refused, Sandbox
from ..types import Problem

GYM_PREFIX = "reasoning-gym:"
SECONDS, MEMORY_MIB = 3600.0, 4096  # for a file of problems; the library is no stranger, but some of its tasks search
CLOSING = r"Put the final answer, and nothing else, in \boxed{}."

# Their scorers (version 0.1.25) accept junk or the answers of other problems, and a model learns just that from a reward
# which needs no right answer.
REFUSED = {
    "codeio": "it runs program text that a language model wrote",
    "coin_flip": 'its scorer accepts "0", whatever the question',
    "composite": "it has no problems of its own",
    "game_of_life_halting": "its scorer accepts every answer",
    "puzzle24": "its scorer does not look at the four numbers that the question gives",
}


def gym_problems(name: str, count: int, seed: int) -> list[Problem]:
    """`count` different problems of the task `name`, the same ones for the same three arguments. Two seeds share problems
    by chance alone, as happens in a small task; `find_overlap` finds them.

    Raises UserError where the library is missing, where the task is unknown (with the nearest names) or refused, and
    where it has fewer different problems than requested.
    """
    if count < 1:
        raise UserError(f"{GYM_PREFIX}{name}: ask for at least 1 problem, not {count}")
    if name in REFUSED:
        raise UserError(f"{GYM_PREFIX}{name}: this task cannot be used: {REFUSED[name]}; choose another")
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UserError(f"{GYM_PREFIX}{name}: the library is not installed; pip install reasoning-gym")
    # The library seeds problem i with seed + i, so its own seeds 0 and 1 share all problems but one.
    spread = int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:4]) >> 1
    problems = []
    made = _make(name, count, spread)
    if "names" in made:
        near = difflib.get_close_matches(name, made["names"], n=5, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(made['names'])}"
        raise UserError(f"{GYM_PREFIX}{name}: reasoning-gym has no such task; {hint}")
    for row in made["problems"]:
        problems.append(
            Problem(
                id=f"{name}-{hashlib.sha256(row['question'].encode()).hexdigest()[:16]}",
                question=f"{row['question'].rstrip()}\n\n{CLOSING}",
                answer=row["answer"],
                subject=name,
                task=row["task"],
            )
        )
    if len(problems) < count:
        raise UserError(f"{GYM_PREFIX}{name}: has {len(problems)} different problems under this seed; ask for no more")
    return problems


def _make(name: str, count: int, seed: int) -> dict[str, Any]:
    """What gym_worker.py replies."""
    with Sandbox(Path(__file__).with_name("gym_worker.py"), SECONDS, MEMORY_MIB, output_mib=1024) as sandbox:
        try:
            return sandbox.ask({"name": name, "count": count, "seed": seed})
        except Refused as refused:
            raise UserError(f"{GYM_PREFIX}{name}: the library fails ({refused}); choose another task") from None
