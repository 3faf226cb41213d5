"""How a question is asked: the form of the user turn, and the instruction that a method adds to it.

Sampling, training and evaluation ask in the same way, because a run rewrites its problems here once, when it opens them.
Sources: the forms and the instruction "fast" are those of O1-Pruner's released scripts; the budgets are those of L1 (arXiv
2503.04697, section 3). "concise" asks for what CRISP's teacher is asked for (arXiv 2603.05433).
"""

import hashlib
from dataclasses import replace

from ..errors import UserError
from ..types import Problem

FORMS = {
    "plain": "{}",
    "boxed": "{}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "paper": "Solve the problem: {}",
}
INSTRUCTIONS = {
    "none": "",
    "fast": "\nBe confident. Solving this problem quickly with less pause, stop or reflection.",
    "concise": "\nSolve this concisely, and leave out every step that is not needed.",
    "exact": "\nThink for {} tokens.",
    "max": "\nThink for maximum {} tokens.",
}


def ask_in_form(problem: Problem, form: str, system: str | None) -> Problem:
    """The problem in one of the FORMS, with `system` as its system turn if it has none of its own.

    Raises UserError where `system` is not text that a tokenizer can read.
    """
    if system is not None and any("\ud800" <= char <= "\udfff" for char in system):
        raise UserError("--system: holds bytes that are not UTF-8, or half a surrogate pair; write it in UTF-8")
    before, after = FORMS[form].split("{}", 1)
    return replace(problem, question=before + problem.question + after, system=problem.system or system)


def instruct(problem: Problem, instruction: str, budget: int) -> Problem:
    """The problem with one of the INSTRUCTIONS at the end of its question. budget: tokens, for "exact" and "max", which
    the problem then carries."""
    text = INSTRUCTIONS[instruction]
    stated = budget if "{}" in text else None
    return replace(problem, question=problem.question + text.replace("{}", str(budget)), budget=stated)


def drawn_budget(problem: str, low: int, high: int, seed: int) -> int:
    """The budget of a problem (its id) in training: even over low..high, and the same every time."""
    digest = hashlib.blake2b(f"{seed}/{problem}".encode(), digest_size=8).digest()
    return low + int.from_bytes(digest, "little") % (high - low + 1)
