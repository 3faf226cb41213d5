"""Text in, right or wrong out."""

from .pool import Grader, Verdict, extract_answer, extract_final, grade

__all__ = ["Grader", "Verdict", "extract_answer", "extract_final", "grade"]
