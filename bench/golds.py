r"""Every gold answer of MATH, MATH-500, GSM8K and GaoKao, graded against itself in ten spellings and against others.

    python -m bench.golds --data ../data --out golds.jsonl     all of them, resumable; --sample 300 for a look

A gold must equal itself boxed, unboxed, with a unit, in Unicode, with \dfrac, as a decimal where that is exact, with
thousands, with other blanks, in a sentence and behind a thought. And it must equal none of the hundred golds that follow
it in a random order, round the end, so that each gold is compared with two hundred others. What fails is listed. Others
that mean the same (0.5 and \frac{1}{2}) are told apart by eye: few are listed.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from tqdm import tqdm

from o1core.grading import Attempt, Grader
from o1core.problems import load_problems

FILES = (
    *("math/train.jsonl", "math/test.jsonl", "math/math500.jsonl", "gsm8k/train.jsonl", "gsm8k/test.jsonl"),
    "gaokao2023en/test.jsonl",
)
OTHER = "other gold"
PART = 50  # golds a line of --out
UNICODE = {
    **{"-": "−", r"\pi": "π", r"\infty": "∞", r"\cdot": "·", r"\times": "×", r"\le ": "≤ ", r"\ge ": "≥ ", r"\pm": "±"},
    **{r"\cup": "∪", r"\cap": "∩", r"\theta": "θ", r"\alpha": "α", r"\frac{1}{2}": "½", r"\frac{3}{4}": "¾"},
    **{r"^\circ": "°", r"^{\circ}": "°", "^2": "²", "^3": "³", r"\neq": "≠", r"\leq": "≤", r"\geq": "≥"},
}


def spellings(gold: str) -> Iterator[tuple[str, str]]:
    """(name, completion) of the ten, as far as they apply."""
    yield "boxed", boxed(gold)
    yield "unboxed", f"The answer is ${gold}$."
    if re.fullmatch(r"-?[\d,]*\.?\d+", gold):
        yield "unit", rf"\boxed{{{gold} \text{{ cm}}}}"
    yield "Unicode", boxed(in_unicode(gold))
    if r"\frac" in gold or r"\tfrac" in gold:
        yield "dfrac", boxed(gold.replace(r"\tfrac", r"\frac").replace(r"\frac", r"\dfrac"))
    if (decimal := as_decimal(gold)) is not None:
        yield "decimal", boxed(decimal)
    if re.fullmatch(r"-?\d{4,}|-?\d{1,3}(?:,\d{3})+", gold):
        yield "thousands", boxed(gold.replace(",", "") if "," in gold else format(int(gold), ","))
    yield "blanks", boxed(f" {gold} ".replace("+", " + ").replace("=", " = "))
    yield "sentence", f"Therefore the value that was asked for is {boxed(gold)}, as we have seen."
    yield "thought", rf"<think>Is it \boxed{{7}}? No.</think> It is {boxed(gold)}."


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def in_unicode(gold: str) -> str:
    text = re.sub(r"\\sqrt\{(\d+)\}", r"√\1", gold)
    text = re.sub(r"(?<=\})\^|\^(?=\{)", "^", text)
    for name, sign in UNICODE.items():
        text = re.sub(
            re.escape(name) + (r"(?![A-Za-z])" if name[-1].isalpha() else r"(?!\d)" if "^" in name else ""), sign, text
        )
    return text


def as_decimal(gold: str) -> str | None:
    """A whole number or a fraction as a decimal, where that is exact."""
    match = re.fullmatch(r"(-?)(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+)|(\d+))", gold)
    if match is None:
        return None
    if match[6]:
        return f"{gold}.0"
    value = Fraction(int(match[2] or match[4]), int(match[3] or match[5]) or 1)
    rest = value.denominator
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    text = f"{float(value):.12g}"
    return match[1] + text if rest == 1 and "e" not in text and Fraction(text) == value else None


def graded(grader: Grader, golds: list[str], first: int, count: int, others: int) -> dict:
    """What `count` golds from the place `first` on come to: how many completions of each kind, and the failures."""
    rows: list[tuple[str, str, str]] = []  # kind, gold, completion
    for at in range(first, min(first + count, len(golds))):
        rows += [(name, golds[at], text) for name, text in spellings(golds[at])]
        beside = [golds[(at + step) % len(golds)] for step in range(1, min(others, len(golds) - 1) + 1)]
        rows += [(OTHER, golds[at], boxed(other)) for other in beside]
    verdicts = grader.grade_many([Attempt(text, gold) for _, gold, text in rows])
    failed = [
        [name, gold, text, verdict.fault]
        for (name, gold, text), verdict in zip(rows, verdicts)
        if verdict.correct == (name == OTHER)
    ]
    return {"first": first, "asked": Counter(name for name, _, _ in rows), "failed": failed}


def main() -> None:
    ap = argparse.ArgumentParser(prog="python -m bench.golds", description=__doc__.split("\n")[0])
    ap.add_argument("--data", type=Path, required=True, help="the folder with math/, gsm8k/ and gaokao2023en/")
    ap.add_argument("--sample", type=int, help="so many golds, drawn at random (default: all)")
    ap.add_argument("--others", type=int, default=100, help="other golds beside each (default: %(default)s)")
    ap.add_argument("--shown", type=int, default=50, help="failures to list (default: %(default)s)")
    ap.add_argument("--out", type=Path, help="a file of finished parts, from which the same command goes on")
    args = ap.parse_args()
    golds = sorted({p.answer for name in FILES for p in load_problems(args.data / name) if p.answer})
    random.Random(0).shuffle(golds)
    parts = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    done = {part["first"] for part in parts}
    count = min(args.sample or len(golds), len(golds))
    with Grader(workers=1) as grader:
        for first in tqdm(range(0, count, PART), unit="part"):
            if first in done:
                continue
            parts.append(graded(grader, golds, first, min(PART, count - first), args.others))
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(parts[-1]) + "\n")
        print(f"faults: {dict(grader.counts)}")
    asked: Counter[str] = Counter()
    for part in parts:
        asked.update(part["asked"])
    failures = [failure for part in parts for failure in part["failed"]]
    failed = Counter(name for name, *_ in failures)
    for name, gold, text, fault in failures[: args.shown]:
        print(f"{name:<12} {gold!r:<50} {text!r} {fault or ''}")
    print(f"\n{count} golds of {len(golds)}\n| spelling | graded | wrong verdicts |\n|---|---|---|")
    for name, times in asked.items():
        print(f"| {name} | {times:,} | {failed[name]} |")


if __name__ == "__main__":
    main()
