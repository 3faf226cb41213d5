"""How hard a problem is: its level, or the third in which its accuracy puts it."""

from collections.abc import Sequence

from torch import Tensor

from ..types import Problem

THIRDS = ("hardest third", "middle third", "easiest third")


def difficulties(problems: Sequence[Problem], correct: Tensor) -> list[str]:
    """ "level N" where every problem has one, else the third of the problems by accuracy. correct: bool [P, K]."""
    if all(p.level for p in problems):
        return [f"level {p.level}" for p in problems]
    third = [""] * len(problems)
    for name, part in zip(THIRDS, correct.float().mean(1).argsort(stable=True).tensor_split(3)):
        for i in part.tolist():
            third[i] = name
    return third
