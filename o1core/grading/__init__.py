"""Text in, right or wrong out: the answer in a completion, and whether it equals the gold answer."""

from .compare import quick_equal
from .extract import THINK, ThoughtTags, after_thought, extract_answer, extract_final, last_box, leaves_thought_open
from .grader import FAULTS, MAX_ANSWER_CHARS, MAX_TASK_ANSWER_CHARS, Attempt, Grader, Verdict, grade

__all__ = [
    "FAULTS",
    "MAX_ANSWER_CHARS",
    "MAX_TASK_ANSWER_CHARS",
    "THINK",
    "Attempt",
    "Grader",
    "ThoughtTags",
    "Verdict",
    "after_thought",
    "extract_answer",
    "extract_final",
    "grade",
    "last_box",
    "leaves_thought_open",
    "quick_equal",
]
