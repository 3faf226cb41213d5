"""The process that makes problems with the reasoning-gym library: `python -P gym_worker.py NAME COUNT SEED`, started by
o1core.gym and never by hand. One JSON object a line on stdout: COUNT different problems {"question", "answer", "task"},
or the tasks there are {"names"}, or {"error"}.

A process of its own, because six of the library's tasks walk through sets of strings: only under a fixed PYTHONHASHSEED,
which o1core.gym sets, are they the same problems in every run. Run by its path, so it imports nothing of o1core.
"""

import enum
import json
import os
import sys


def plain(value):
    """`value` in Python's literal types, as repr writes and ast.literal_eval reads them: unlike in JSON a tuple stays
    a tuple, and the key 1 does not become "1". What a task keeps in objects of its own becomes text."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = map(plain, value)
        return list(items) if isinstance(value, list) else tuple(items) if isinstance(value, tuple) else set(items)
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return plain(value.tolist())
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
            task = {"dataset": name, "entry": {"answer": plain(entry["answer"]), "metadata": plain(entry["metadata"])}}
            answer = "" if entry["answer"] is None else str(entry["answer"])
            replies.write(json.dumps({"question": entry["question"], "answer": answer, "task": repr(task)}) + "\n")
            if len(questions) == count:
                return
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
