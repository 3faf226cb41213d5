"""Problems: where they come from, which are selected, and how they are asked."""

from .arithmetic import arithmetic_problems
from .formats import load_problems
from .gym import GYM_PREFIX, gym_problems
from .prompts import FORMS, INSTRUCTIONS, ask_in_form, drawn_budget, instruct
from .selection import find_overlap, fingerprint, parse_levels, parse_subjects, select

__all__ = [
    "FORMS",
    "GYM_PREFIX",
    "INSTRUCTIONS",
    "arithmetic_problems",
    "ask_in_form",
    "drawn_budget",
    "find_overlap",
    "fingerprint",
    "gym_problems",
    "instruct",
    "load_problems",
    "parse_levels",
    "parse_subjects",
    "select",
]
