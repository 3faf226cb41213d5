"""The process that makes problems with the reasoning-gym library.

    python -P o1core/problems/gym_worker.py NAME COUNT SEED     (started by gym.py, never by hand)

It writes one JSON object a line on stdout: COUNT different problems {"question", "answer", "task"}, or the names of the
tasks there are {"names"}, or {"error"}.

It is a process of its own because six of the library's tasks iterate over sets of strings: they make the same problems
in every run only under a fixed PYTHONHASHSEED, which gym.py sets. It is run by its path and imports nothing of o1core.
"""

import enum
import json
import os
import sys
from typing import Any


def literal(value: object) -> Any:
    """`value` in Python's literal types, which repr writes and ast.literal_eval reads. Unlike in JSON, a tuple stays a
    tuple and the key 1 does not become "1". Objects of a task's own classes become text."""
    if isinstance(value, enum.Enum):
        return literal(value.value)
    if isinstance(value, dict):
        return {literal(key): literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = map(literal, value)
        return list(items) if isinstance(value, list) else tuple(items) if isinstance(value, tuple) else set(items)
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return literal(value.tolist())
    return value if isinstance(value, str | int | float | bytes | None) else str(value)


def main(name: str, count: int, seed: int) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library prints
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        if name not in DATASETS:
            replies.write(json.dumps({"names": sorted(DATASETS)}) + "\n")
            return
        tries = 4 * count + 16  # small tasks repeat themselves
        dataset, questions = reasoning_gym.create_dataset(name, seed=seed, size=tries), set()
        for at in range(tries):
            entry = dataset[at]
            if entry["question"] in questions:
                continue
            questions.add(entry["question"])
            task = {
                "dataset": name,
                "entry": {"answer": literal(entry["answer"]), "metadata": literal(entry["metadata"])},
            }
            answer = "" if entry["answer"] is None else str(entry["answer"])
            replies.write(json.dumps({"question": entry["question"], "answer": answer, "task": repr(task)}) + "\n")
            if len(questions) == count:
                return
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
