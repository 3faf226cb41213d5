"""Rollouts as text, for people, grep and pandas: samples.jsonl, a line a completion. `o1core score` reads it too.

The ids in the shards (store.py) stay what is trained on; this file is written once a phase has ended and never read by a run.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..distributed import on_rank0
from ..files import write_atomic
from ..model import Tokenizer
from ..types import Group, Problem


def write_samples(
    path: Path, groups: Sequence[Group], problems: Sequence[Problem], tokenizer: Tokenizer, reward: Tensor | None = None
) -> None:
    """Write each completion of the groups with its question, gold answer, prompt and verdict. reward: float [P, K] of the
    groups, null in the file where there is none. Rank 0 writes."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines())

    def lines() -> Iterator[dict[str, Any]]:
        asked = {problem.id: problem for problem in problems}
        for p, group in enumerate(groups):
            prompt = tokenizer.decode(group.prompt.tolist(), special=True)
            for k, s in enumerate(group.samples):
                yield {
                    "problem": group.problem,
                    "sample": k,
                    "question": asked[group.problem].question,
                    "gold": asked[group.problem].answer,
                    "prompt": prompt,
                    "completion": tokenizer.decode(s.ids.tolist()),
                    "answer": s.answer,
                    "correct": bool(s.correct),
                    "tokens": s.length,
                    "finish_reason": s.finish_reason,
                    "reward": None if reward is None else reward[p, k].item(),
                }

    on_rank0("the samples", lambda: write_atomic(path, write))
