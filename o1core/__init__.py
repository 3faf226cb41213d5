"""O1-Pruner from scratch: make a long-thought model think shorter and no worse.

    policy = o1core.load("Qwen/Qwen3-0.6B")
    rollouts = policy.sample(o1core.load_problems("train.jsonl")[:200], n=16)

Names are imported when they are first asked for, so that `o1core --help` and `o1core.__version__` need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import grading, kernels, metrics, rewards
    from .evaluation import outcome as compare
    from .grading import Grader, grade
    from .model import Tokenizer, Transformer
    from .policy import Policy, Trainer
    from .problems import load_problems
    from .recipe import Recipe
    from .rollout import Engine, SamplingParams
    from .runs import EMBEDDED, load
    from .training import Picked, Rollouts, Scored
    from .types import Completion, Example, Group, Problem, Sample

__version__ = "0.2.0"

_ROOM_OF = {
    "EMBEDDED": "runs",
    "Completion": "types",
    "Engine": "rollout",
    "Example": "types",
    "Grader": "grading",
    "Group": "types",
    "Picked": "training",
    "Policy": "policy",
    "Problem": "types",
    "Recipe": "recipe",
    "Rollouts": "training",
    "Sample": "types",
    "SamplingParams": "rollout",
    "Scored": "training",
    "Tokenizer": "model",
    "Trainer": "policy",
    "Transformer": "model",
    "grade": "grading",
    "load": "runs",
    "load_problems": "problems",
}
_ROOMS = {"grading", "kernels", "metrics", "rewards"}

__all__ = [
    "EMBEDDED",
    "Completion",
    "Engine",
    "Example",
    "Grader",
    "Group",
    "Picked",
    "Policy",
    "Problem",
    "Recipe",
    "Rollouts",
    "Sample",
    "SamplingParams",
    "Scored",
    "Tokenizer",
    "Trainer",
    "Transformer",
    "__version__",
    "compare",
    "grade",
    "grading",
    "kernels",
    "load",
    "load_problems",
    "metrics",
    "rewards",
]


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name == "compare":
        return import_module(".evaluation", __name__).outcome
    if name in _ROOM_OF:
        return getattr(import_module(f".{_ROOM_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for dir() and tab completion."""
    return sorted(__all__)
