"""A recipe: every setting of a run in one flat, frozen dataclass, and where its values come from.

The fields are the command line's flags (their help stands here, with the unit), the keys of a recipe file and the keys
of the settings.json in a run's folder. The recipes that ship are JSON files in o1core/recipes.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from ..errors import UserError
from ..files import read_json
from ..problems import FORMS, INSTRUCTIONS
from ..rewards import ADVANTAGES, BUDGETED, REWARDS
from .methods import METHODS

SHIPPED = Path(__file__).parent


def setting(default, help: str, choices: tuple[str, ...] | None = None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """The settings of O1-Pruner (arXiv 2501.12570); the defaults are the paper's for Marco-o1-7B where it states them."""

    samples: int = setting(16, "K: completions sampled of each problem")
    picked: int = setting(2, "m: of the K, picked at random to be trained on (sft: the shortest right)")
    problems: int | None = setting(5000, "problems to train on, of those in the file (none: all)")
    shuffle_seed: int = setting(42, "of the order of the problems in the file; the first ones are trained on")
    levels: str | None = setting(None, "of --data: problems of these levels alone, as 3,4 or 3-5 (none: all)")
    subjects: str | None = setting(None, "of --data: problems of these subjects alone, with commas between (none: all)")
    percentiles: str | None = setting(
        None,
        "train on the problems between these percentiles of reference accuracy, as 30-70; 0 is the hardest (none: all)",
    )
    prompt: str = setting(
        "plain",
        "form of the user turn: the question; boxed: and to box the answer; paper: the official code's",
        tuple(FORMS),
    )
    system: str | None = setting(None, "text of a system turn, where a problem has none (none: the template's own)")
    instruction: str = setting(
        "none",
        "what the pruned model is asked besides: fast: to be quick; exact, max: to think "
        "for exactly or at most so many tokens",
        tuple(INSTRUCTIONS),
    )
    budget_low: int = setting(100, "smallest of the budgets drawn for training, where the instruction is exact or max")
    budget_high: int = setting(4000, "largest of them, tokens")
    rounds: int = setting(1, "times to sample afresh from the current policy and train on it")
    temperature: float = setting(0.5, "of sampling; 0 is greedy")
    top_p: float = setting(0.8, "of sampling, fraction of probability; 1 is no filter")
    top_k: int = setting(0, "of sampling, words; 0 is no filter")
    max_new_tokens: int = setting(8192, "of a completion, tokens")

    objective: str = setting(
        "surrogate",
        "the clipped surrogate of all K samples' rewards; sft: likelihood of the m "
        "shortest right samples; dpo: the shortest right one against the longest; none: no "
        "training",
        ("surrogate", "sft", "dpo", "none"),
    )
    reward: str = setting("length-harmonizing", "of a completion; o1core/rewards.py has the formulas", tuple(REWARDS))
    lam: float = setting(2.0, "lambda: what a right answer is worth against the length")
    alpha: float = setting(1.0, "weight of the length in the rewards arora-zanette, kimi, l1-exact and l1-max")
    length_limit: int | None = setting(
        None, "of the truncation reward: longer completions earn nothing, tokens (none: the round's mean length)"
    )
    reward_low: float | None = setting(None, "lower bound of the reward (none: unbounded, as in the paper)")
    reward_high: float | None = setting(None, "upper bound of the reward (none: unbounded, as in the paper)")
    advantage: str = setting(
        "reward",
        "the reward as it is; z-score: standardised over all picked completions; centred, "
        "rloo, group: against the others of the problem; batch: centred, then over the round's "
        "spread",
        tuple(ADVANTAGES),
    )
    dynamic_sampling: bool = setting(False, "leave out problems whose samples all earn the same")
    dpo_beta: float = setting(0.1, "of DPO: how sharply the pair's log-ratio counts")
    ratio: str = setting("sequence", "level of the ratio", ("sequence", "sequence_mean", "token"))
    eps_low: float = setting(0.2, "the ratio is clipped below at 1 - this")
    eps_high: float = setting(0.2, "the ratio is clipped above at 1 + this")
    truncated: str = setting(
        "keep",
        "what to do with completions that ran out of tokens: train on them as they were "
        "graded, leave them out of the loss, or count them wrong",
        ("keep", "mask", "wrong"),
    )

    lr: float = setting(2e-7, "learning rate, at its peak")
    schedule: str = setting("cosine", "of the learning rate, after the warm-up", ("cosine", "constant"))
    warmup: float = setting(0.1, "fraction of all steps over which the learning rate rises from 0")
    epochs: int = setting(1, "passes over the picked completions of a round")
    batch: int = setting(32, "completions (of DPO: pairs) in an optimiser step")
    weight_decay: float = setting(0.0, "of AdamW")
    grad_clip: float = setting(10.0, "the gradient's norm is cut to this")
    cutoff: int = setting(3072, "longest prompt + completion trained on, tokens; longer ones are left out and counted")
    train_last_layers: int | None = setting(None, "train the last N layers alone (none: all weights)")
    micro_tokens: int = setting(16384, "tokens, padding included, in one forward and backward pass")
    checkpointing: bool = setting(False, "gradient checkpointing: less memory, a third more time")
    save_every: int = setting(50, "optimiser steps between checkpoints of the training state")

    eval_samples: int = setting(1, "completions of each problem in an evaluation: n of avg@n")
    eval_problems: int | None = setting(None, "problems to evaluate on (none: all)")
    eval_temperature: float = setting(0.0, "of sampling in an evaluation; 0 is greedy")
    eval_budget: int | None = setting(
        None,
        "tokens asked for where the instruction is exact or max (none: the middle of --budget-low and --budget-high)",
    )
    seed: int = setting(0, "of everything drawn at random")

    def __post_init__(self):
        for name, low in (
            ("samples", 2),
            ("picked", 1),
            ("rounds", 1),
            ("epochs", 1),
            ("batch", 1),
            ("cutoff", 2),
            ("micro_tokens", 1),
            ("save_every", 1),
            ("eval_samples", 1),
            ("max_new_tokens", 1),
            ("eps_low", 0),
            ("eps_high", 0),
            ("lr", 0),
            ("weight_decay", 0),
            ("warmup", 0),
            ("temperature", 0),
            ("eval_temperature", 0),
            ("lam", 0),
            ("top_k", 0),
            ("alpha", 0),
            ("dpo_beta", 0),
            ("budget_low", 1),
        ):
            if getattr(self, name) < low:
                raise UserError(f"{flag(name)}: {getattr(self, name)} is below {low}")
        for name, value in self.to_json().items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{flag(name)}: {value} is not a finite number")
        for name in ("problems", "eval_problems", "train_last_layers", "length_limit", "eval_budget"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{flag(name)}: {value} is below 1")
        if self.picked > self.samples:
            raise UserError(f"--picked: {self.picked} of {self.samples} samples cannot be picked")
        if self.warmup > 1 or not 0 < self.top_p <= 1:
            raise UserError("--warmup and --top-p are fractions of at most 1, and --top-p is above 0")
        if self.grad_clip <= 0:
            raise UserError(f"--grad-clip: {self.grad_clip} is not above 0")
        if None not in (self.reward_low, self.reward_high) and self.reward_low >= self.reward_high:
            raise UserError(f"--reward-low: {self.reward_low} is not below --reward-high {self.reward_high}")
        if self.budget_low > self.budget_high:
            raise UserError(f"--budget-low: {self.budget_low} is above --budget-high {self.budget_high}")
        if self.instruction in ("exact", "max") and self.budget_high > self.max_new_tokens:
            raise UserError(
                f"--budget-high: {self.budget_high} tokens can never be thought within --max-new-tokens "
                f"{self.max_new_tokens}"
            )
        if self.reward in BUDGETED and self.instruction not in ("exact", "max"):
            raise UserError(f"--reward {self.reward}: needs --instruction exact or max, which state the budget")
        if self.percentiles is not None:
            parse_percentiles(self.percentiles)

    @property
    def together(self) -> int:
        """Examples that belong together: a pair of DPO, else one."""
        return 2 if self.objective == "dpo" else 1

    def to_json(self) -> dict:
        return dataclasses.asdict(self)


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def kind_of(spec: dataclasses.Field) -> tuple[type, bool]:
    """(type, whether none is allowed) of a Recipe field."""
    kinds = [k for k in (get_args(spec.type) or (spec.type,)) if k is not type(None)]
    return kinds[0], type(None) in get_args(spec.type)


def parse_percentiles(text: str) -> tuple[float, float]:
    """(30, 70) of "30-70". Raises UserError where it is not two numbers from 0 to 100, the lower first."""
    try:
        low, high = (float(part) for part in text.split("-"))
    except ValueError:
        low = high = -1.0
    if not 0 <= low < high <= 100:
        raise UserError(f"--percentiles: {text} is not LOW-HIGH with 0 <= LOW < HIGH <= 100, such as 30-70")
    return low, high


def read_recipe(name: str, method: str = "o1-pruner") -> dict:
    """The settings of a shipped recipe ("paper", "official", ...) or of a JSON file; what it leaves out keeps its default.

    A method's own settings come over the recipe's, and over them those that the recipe has for that method (its object
    "methods"). Raises UserError naming the file and the key that is unknown or of the wrong type.
    """
    if method not in METHODS:
        raise UserError(f"--method: {method} is none of {', '.join(METHODS)}")
    path = SHIPPED / f"{name}.json"
    if Path(name).name != name or not path.exists():
        path = Path(name)
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.json")))
        raise UserError(f"--recipe: {name} is neither a recipe that ships ({known}) nor a file")
    settings = read_json(path)
    of_methods = settings.pop("methods", {}) if isinstance(settings, dict) else None
    if not isinstance(of_methods, dict):
        raise UserError(f"{path}: a recipe is a JSON object of settings, and so is methods in it")
    for other, changes in of_methods.items():
        if other not in METHODS or not isinstance(changes, dict):
            raise UserError(f"{path}: methods: {other} must be one of {', '.join(METHODS)} with an object of settings")
        check_settings(changes, path)
    check_settings(settings, path)
    return settings | METHODS[method] | of_methods.get(method, {})


def check_settings(settings: dict, path: Path) -> None:
    """Raises UserError where a key is no field of Recipe or its value not of the field's type."""
    specs = {spec.name: spec for spec in dataclasses.fields(Recipe)}
    for key, value in settings.items():
        if key not in specs:
            raise UserError(f"{path}: {key} is no setting; these are: {', '.join(specs)}")
        kind, optional = kind_of(specs[key])
        right = (value is None and optional) or type(value) is kind or (kind is float and type(value) is int)
        choices = specs[key].metadata["choices"]
        if not right or (choices and value not in choices):
            raise UserError(f"{path}: {key}: {json.dumps(value)} is not {' or '.join(choices or (kind.__name__,))}")
