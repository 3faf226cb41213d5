"""Hostile pairs of completion and gold answer, for fuzz_data.py."""

import functools
import random
from pathlib import Path

from o1core.grading import Attempt, Grader


def items(text: str) -> list[str]:
    return text.split()


GOLDS = [*items(r"5 -3/4 \frac{1}{2} 0.5 cat 101_2 A x=5 [0,1) \{1,2\} 1,234 \sqrt{2} x^2+1"), ""]
PIECES = items(r"""5 = x + - ( ) { } \{ \} [ ] , ^ _ | ! % $ : < > \frac{ \sqrt{ \neq \not \geq \approx \text{ \boxed{ \\ e i 日
    \begin{pmatrix} \end{ \sum_{k=1}^{ \int_0^ \lim_{x\to 9^{9^{9 10**10**10 factorial( cat act 101_3 A) nan eval( ½ ² ≠ \
    __import__('os').mkdir('TARGET') open('TARGET','w') answer f( _{ a_ 1,111 ####""")
PIECES += items(
    r"1e9 5e-999999 0.\overline{3} √ ∛( ½½ ⁹ ₉ ， 。 － ° million tenths feet 8:34 a.m. km/h \circ (C) pi exp( sqrt("
)
PIECES += items(r"\circ (C) pi exp( sqrt( ** \mathrm{ </think> <think> $ \( \] inches below zero ... 元 answer:")
PIECES += items(
    r"or two hundred third <= ] [ \cup squared log2( C( 4/3 \underline{ ~ 1.234.567 <answer> </answer> $2M o'clock"
)
PIECES += [" ", " and ", "\n", "\x00", "\x1b", "\ud800", "\u202e", "answer is ("]


@functools.cache
def grader() -> Grader:
    return Grader(workers=1, seconds=1, memory_mib=512)


def grade_hostile(rng: random.Random, folder: Path) -> str:
    """Only what is drawn from GOLDS can be right; and no text may run, raise or hold up the next answer."""
    target = folder / "touched"
    pieces = [piece.replace("TARGET", str(target)) for piece in rng.choices(PIECES, k=12)]
    answer = "".join(pieces[: rng.randint(1, 12)])
    if rng.random() < 0.2:
        answer = rng.choice(PIECES) * rng.choice([10, 300, 100_000])
    gold = rng.choice(GOLDS) if rng.random() < 0.8 else "".join(rng.choices(PIECES, k=4))
    form = rng.choice([r"\boxed{%s}", "%s", "The answer is %s", "#### %s"])
    verdict, easy = grader().grade_many([Attempt(form.replace("%s", answer), gold), Attempt(r"\boxed{1+x}", "x+1")])
    if target.exists():
        return f"bad: {answer!r} ran"
    if not easy.correct:
        return f"bad: {answer!r} against {gold!r} broke the next answer ({easy.fault})"
    if gold in ("5", "0.5") and verdict.correct and states_no_value(verdict.answer or ""):
        return f"bad: {verdict.answer!r} is right for {gold!r}"
    return "ok" if verdict.fault is None else "refused"


def states_no_value(answer: str) -> bool:
    """Whether an answer holds a relation other than "=", as a reader would see it."""
    return any(sign in answer for sign in (r"\neq", r"\geq", r"\approx", "≠", "<", ">"))
