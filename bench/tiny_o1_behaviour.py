"""What tiny-o1 does at temperature 1 on the validation split: the table of its README.

    python -m bench.tiny_o1_behaviour [DIR]

DIR is a folder that bench.make_tiny_o1 wrote (default: the model inside the package).
"""

import math
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import torch

import o1core.model
from bench.thoughts import HASTY
from o1core.grading import extract_answer
from o1core.problems import instruct
from o1core.problems.arithmetic import arithmetic_tasks
from o1core.rollout import Engine, SamplingParams
from o1core.runs import EMBEDDED
from o1core.types import Problem

EVALUATED = 1000  # validation problems, one sample each
LONGEST = 512  # tokens of a sample, as in tiny-o1's recipe


class Shown(NamedTuple):
    """A sample, as the table counts it."""

    kind: str
    level: str
    checks: int
    tokens: int
    right: bool


def behaviour(folder: Path) -> str:
    """A Markdown table of what the saved model does at temperature 1 on the validation split."""
    model, tokenizer = o1core.model.load(folder, dtype=torch.float32)
    tasks, asked = zip(*arithmetic_tasks("validation", EVALUATED, seed=0))
    engine = Engine(model, tokenizer, slots=128)

    def sampled(instruction: str) -> list[Shown]:
        problems = [instruct(problem, instruction, budget=100) for problem in asked]
        params = SamplingParams(max_new_tokens=LONGEST, seed=0)
        found = [c[0] for c in engine.generate([tokenizer.prompt(p.question) for p in problems], params)]
        texts = [tokenizer.decode(c.ids) for c in found]
        print(f"{problems[0].question}\n{texts[0]}")
        return [
            Shown("sum" if len(t.chains) == 1 else "larger", p.level or "", text.count("\nCheck "), len(c.ids), right)
            for t, p, text, c, right in zip(tasks, problems, texts, found, map(is_right, problems, texts))
        ]

    samples = sampled("none")
    parts = {"all": samples}
    for kind in ("sum", "larger"):
        parts[f"kind: {kind}"] = [s for s in samples if s.kind == kind]
    for level in sorted({s.level for s in samples}):
        of_level = [s for s in samples if s.level == level]
        parts[f"level {level}"] = of_level
        parts[f"level {level}, no check"] = [s for s in of_level if not s.checks]
        parts[f"level {level}, checked"] = [s for s in of_level if s.checks]
    parts |= {f"all, asked to be {name}": sampled(name) for name in HASTY}
    parts["all, asked for at most 100 tokens"] = sampled("max")
    rows = [row(name, found) for name, found in parts.items() if found]
    return "\n".join(["| samples | share | accuracy | mean tokens |", "|---|---|---|---|", *rows])


def is_right(problem: Problem, text: str) -> bool:
    return extract_answer(text) == problem.answer


def row(name: str, samples: list[Shown]) -> str:
    """A line of the table; the accuracy with half the width of its 95 % interval."""
    accuracy = statistics.mean(s.right for s in samples)
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(samples))
    tokens = statistics.mean(s.tokens for s in samples)
    return f"| {name} | {len(samples) / EVALUATED:.3f} | {accuracy:.3f} ± {half:.3f} | {tokens:.1f} |"


if __name__ == "__main__":
    print(behaviour(Path(sys.argv[1]) if len(sys.argv) > 1 else EMBEDDED))
