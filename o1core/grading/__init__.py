"""Text in, right or wrong out: the answer in a completion, and whether it equals the gold answer."""

from .compare import quick_equal, tidy
from .extract import THINK, ThoughtTags, after_thought, extract_answer, extract_final, leaves_thought_open
from .pool import MAX_ANSWER_CHARS, MAX_TASK_ANSWER_CHARS, Attempt, Grader, Verdict, grade

__all__ = [
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
    "leaves_thought_open",
    "quick_equal",
    "tidy",
]
