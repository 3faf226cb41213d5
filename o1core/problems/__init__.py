"""Problems: where they come from, which are selected, and how they are asked."""

from .arithmetic import arithmetic_problems
from .download import download_data, hub_data
from .formats import Fields, load_problems
from .gym import GYM_PREFIX, gym_problems
from .prompts import FORMS, INSTRUCTIONS, ask_in_form, drawn_budget, instruct
from .rows import parquet_rows
from .selection import find_overlap, fingerprint, parse_levels, parse_subjects, select

__all__ = [
    "FORMS",
    "GYM_PREFIX",
    "INSTRUCTIONS",
    "Fields",
    "arithmetic_problems",
    "ask_in_form",
    "download_data",
    "drawn_budget",
    "find_overlap",
    "fingerprint",
    "gym_problems",
    "hub_data",
    "instruct",
    "load_problems",
    "parquet_rows",
    "parse_levels",
    "parse_subjects",
    "select",
]
