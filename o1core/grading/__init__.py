"""Text in, right or wrong out: the answer in a completion, and whether it equals the gold answer."""

from .compare import quick_equal, tidy
from .extract import extract_answer, extract_final
from .pool import MAX_ANSWER_CHARS, MAX_TASK_ANSWER_CHARS, Grader, Verdict, grade

__all__ = [
    "MAX_ANSWER_CHARS",
    "MAX_TASK_ANSWER_CHARS",
    "Grader",
    "Verdict",
    "extract_answer",
    "extract_final",
    "grade",
    "quick_equal",
    "tidy",
]
