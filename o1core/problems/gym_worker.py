"""The room that makes problems with the reasoning-gym library.

Request: {"name", "count", "seed"}. Reply: {"problems": [{"question", "answer", "task"}, ...]}, different ones, or {"names":
[...]}, the tasks there are, where this one is unknown. It runs in a process with limits (sandbox.py), whose fixed hash seed
matters here: six of the library's tasks iterate over sets of strings. It imports nothing of o1core.
"""

import enum
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


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    name, count, seed = request["name"], request["count"], request["seed"]
    if name not in DATASETS:
        return {"names": sorted(DATASETS)}
    tries = 4 * count + 16  # small tasks repeat themselves
    dataset = reasoning_gym.create_dataset(name, seed=seed, size=tries)
    problems: dict[str, dict[str, str]] = {}
    for at in range(tries):
        entry = dataset[at]
        if entry["question"] in problems:
            continue
        task = {"dataset": name, "entry": {"answer": literal(entry["answer"]), "metadata": literal(entry["metadata"])}}
        gold = "" if entry["answer"] is None else str(entry["answer"])
        problems[entry["question"]] = {"question": entry["question"], "answer": gold, "task": repr(task)}
        if len(problems) == count:
            break
    return {"problems": list(problems.values())}
