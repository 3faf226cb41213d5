"""The settings of a run in parts, each of which a function can take alone.

The defaults are the paper's for Marco-o1-7B (arXiv 2501.12570, section 4) where it states them. A field's metadata holds
its help text, what its value must be, and the name that the command line and JSON files use for it where that differs from
the attribute ("eval_samples" is EvaluationSettings.samples).
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ..choices import ADVANTAGES, BUDGETED, LORA_TARGETS
from ..errors import UserError
from ..problems import FORMS, INSTRUCTIONS
from ..records import Within, from_json

if TYPE_CHECKING:
    from ..rollout import SamplingParams

COUNT, TOKENS = 10**8, 10**9  # upper bounds that only a typing error exceeds
MOST_MICRO_TOKENS = 16384  # more of them in one pass gain nothing
MOST_ON_CPU = 4096  # of them: more took all the memory of a machine that others use too
SHARES = (  # (reward, setting): constants of a formula that are fractions there
    *(("grpo-lambda", "lam"), ("grpo-lambda", "alpha"), ("arora-zanette", "alpha")),
    *(("overlong", "alpha"), ("lead", "memory_rate")),
)
NAME = re.compile(r"[A-Za-z_]\w{0,99}")
TAKEN = ("messages", "add_generation_prompt")  # what every chat template is given


def most_micro_tokens(on_gpu: bool) -> int:
    """Packed rows of a micro-batch, at most, where nothing says how many."""
    return MOST_MICRO_TOKENS if on_gpu else MOST_ON_CPU


def reward_names() -> Iterable[str]:
    """Those of our rewards. Imported when a value is checked, because they need torch."""
    from ..rewards import REWARDS

    return REWARDS


def setting(default: Any, help: str, *, name: str | None = None, **within: Any) -> Any:
    """A field of a part. within: of Within."""
    metadata = {"help": help, "name": name, "within": Within(**within)}
    if default == {}:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def flat_name(spec: dataclasses.Field) -> str:
    """What JSON files call a field."""
    return spec.metadata["name"] or spec.name


def flag(name: str) -> str:
    """The command line's spelling of a flat name."""
    return "--" + name.replace("_", "-")


def check_setting(spec: dataclasses.Field, value: Any, where: str) -> None:
    """Raise UserError that begins with `where` if a setting's value has the wrong type or is out of its range."""
    from_json(Annotated[spec.type, spec.metadata["within"]], value, where, "")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Settings:
    """What all parts have in common: wrong values raise a UserError that names the flag."""

    title: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            check_setting(spec, getattr(self, spec.name), flag(flat_name(spec)))


@dataclass(frozen=True)
class SelectionSettings(Settings):
    """Which problems are trained on."""

    title = "selection of problems"

    problems: int | None = setting(5000, "problems to train on (none: all in the file)", low=1, high=COUNT)
    shuffle_seed: int = setting(
        42, "seed that shuffles the problem file; the first --problems of it are trained on", low=0, high=2**62
    )
    levels: str | None = setting(None, "train on problems of these levels only, such as 3,4 or 3-5 (none: all)")
    subjects: str | None = setting(None, "train on problems of these subjects only, comma-separated (none: all)")
    percentiles: str | None = setting(
        None,
        "train on problems between these percentiles of reference accuracy, such as 30-70; 0 is the hardest (none: all)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.percentiles is not None:
            parse_percentiles(self.percentiles)


@dataclass(frozen=True)
class PromptSettings(Settings):
    """How a question is asked, and what a method asks of the pruned model besides."""

    title = "prompt"

    form: str = setting(
        "plain",
        "user turn: plain is the question alone; boxed also asks for a boxed answer; paper is the official code's",
        name="prompt",
        choices=tuple(FORMS),
    )
    system: str | None = setting(
        None, "text of the system turn of problems that bring none (none: the chat template's own)"
    )
    instruction: str = setting(
        "none",
        "added for the pruned model: fast asks to be quick, concise to be concise; exact and max ask for exactly or at most "
        "N tokens",
        choices=tuple(INSTRUCTIONS),
    )
    budget_low: int = setting(
        100, "smallest token budget drawn for training (instruction exact or max)", low=1, high=TOKENS
    )
    budget_high: int = setting(4000, "largest token budget drawn for training", low=1, high=TOKENS)
    opening: str = setting(
        "",
        "text that completions sampled for training are made to begin with; it is trained on, and never added in tests",
    )
    template: dict = setting(  # noqa: RUF009
        {}, "a variable of the chat template, such as enable_thinking=false; repeat it for several"
    )
    thought_tags: str | None = setting(
        None, "OPEN,CLOSE: what the model's thought stands between (none: found in the checkpoint)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template(self.template)
        if self.thought_tags is not None and self.tags is None:
            raise UserError(f"--thought-tags: {self.thought_tags} is not OPEN,CLOSE, such as <think>,</think>")
        if self.budget_low > self.budget_high:
            raise UserError(f"--budget-low: {self.budget_low} is above --budget-high {self.budget_high}")

    @property
    def has_budget(self) -> bool:
        """Whether the instruction states a token budget."""
        return self.instruction in ("exact", "max")

    @property
    def tags(self) -> tuple[str, str] | None:
        """(opening, closing) tag of a thought; None where the checkpoint's own hold."""
        parts = [] if self.thought_tags is None else [part.strip() for part in self.thought_tags.split(",")]
        return (parts[0], parts[1]) if len(parts) == 2 and all(parts) and parts[0] != parts[1] else None


def check_template(variables: Any) -> None:
    """Raise UserError where the variables for a chat template are not names with true, false, a number or text."""
    for name, value in variables.items():
        if not NAME.fullmatch(name) or name in TAKEN:
            why = "is set by o1core itself" if name in TAKEN else "is no name that a template can read"
            raise UserError(f"--template: {name} {why}; use KEY=VALUE, such as enable_thinking=false")
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"--template: {name}: {value!r} is neither true, false, a number nor text")


@dataclass(frozen=True)
class SamplingSettings(Settings):
    """How rollouts are sampled."""

    title = "sampling"

    samples: int = setting(16, "K: completions sampled per problem", low=2, high=10**6)
    rounds: int = setting(
        1, "rounds of sampling from the current policy and training on the samples", low=1, high=10**4
    )
    temperature: float = setting(0.5, "sampling temperature; 0 is greedy", low=0, high=100)
    top_p: float = setting(0.8, "nucleus sampling: probability kept; 1 turns it off", above=0, high=1)
    top_k: int = setting(0, "tokens kept by top-k sampling; 0 turns it off", low=0, high=10**7)
    max_new_tokens: int = setting(8192, "longest completion, in tokens", low=1, high=TOKENS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature("--temperature", self.temperature)

    def params(self, seed: int, samples: int | None = None, temperature: float | None = None) -> "SamplingParams":
        """The engine's parameters; an evaluation has a sample count and a temperature of its own."""
        from ..rollout import SamplingParams

        temperature = self.temperature if temperature is None else temperature
        greedy = temperature == 0
        return SamplingParams(
            n=samples or self.samples,
            temperature=temperature,
            top_p=1.0 if greedy else self.top_p,
            top_k=0 if greedy else self.top_k,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
        )


def check_temperature(shown: str, value: float) -> None:
    """Logits are divided by the temperature in float32: below 0.001 the quotient overflows."""
    if 0 < value < 1e-3:
        raise UserError(f"{shown}: {value} is too close to 0; use 0 (greedy) or at least 0.001")


@dataclass(frozen=True)
class RewardSettings(Settings):
    """What a completion earns."""

    title = "reward"

    kind: str = setting(
        "length-harmonizing",
        "reward of a completion: a name (formulas: o1core/rewards.py) or your own FILE.py:function",
        name="reward",
        choices=reward_names,
        own_code=True,
    )
    lam: float = setting(
        2.0, "lambda: weight of a right answer against the length (grpo-lambda: share of problems)", low=0, high=1e6
    )
    alpha: float = setting(
        1.0,
        "weight of the length in the rewards that have one (overlong: margin below --length-limit; a-dlp: the first "
        "round's lambda per token)",
        low=0,
        high=1e6,
    )
    length_limit: int | None = setting(
        None,
        "tokens of the rewards truncation, alp, overlong and drpo (none: the round's mean length, and the most that may be "
        "generated for the last two); lead: the longest target",
        low=1,
        high=TOKENS,
    )
    length_floor: int = setting(1000, "lead: the shortest target, in tokens", low=1, high=TOKENS)
    memory_rate: float = setting(
        0.05,
        "how fast what a reward remembers follows a round (lead: 1 - the moving average's weight; a-dlp: change of lambda "
        "per unit of accuracy)",
        low=0,
        high=1e6,
    )
    accuracy_reference: float | None = setting(
        None, "a-dlp: accuracy above which lambda rises (none: that of the first round)", low=0, high=1
    )
    low: float | None = setting(
        None, "lower bound of the reward (none: unbounded, as in the paper)", name="reward_low", low=-1e6, high=1e6
    )
    high: float | None = setting(
        None, "upper bound of the reward (none: unbounded, as in the paper)", name="reward_high", low=-1e6, high=1e6
    )
    truncated: str = setting(
        "wrong",
        "completions that were cut off: wrong, unless a whole boxed answer stands after the thought; keep: graded as they "
        "stand, as the paper does; mask: wrong, and left out of the loss",
        choices=("wrong", "keep", "mask"),
    )
    grader: str | None = setting(
        None,
        "FILE.py:function that says whether an answer is right, given its text and the problem (none: o1core's own)",
        own_code=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise UserError(f"--reward-low: {self.low} is not below --reward-high {self.high}")
        for kind, name in SHARES:
            if kind == self.kind and getattr(self, name) > 1:
                raise UserError(f"{flag(name)}: {getattr(self, name)} is above 1, the most that --reward {kind} allows")
        if self.kind == "lead" and self.length_limit is None:
            raise UserError("--reward lead: needs --length-limit, the longest target in tokens")
        if self.kind == "lead" and self.length_floor > (self.length_limit or 0):
            raise UserError(f"--length-floor: {self.length_floor} is above --length-limit {self.length_limit}")

    @property
    def needs_budget(self) -> bool:
        """Whether the formula holds a budget that the prompt has to state."""
        return self.kind in BUDGETED


@dataclass(frozen=True)
class ObjectiveSettings(Settings):
    """What is picked of the rollouts, and the loss on it."""

    title = "objective"

    kind: str = setting(
        "surrogate",
        "surrogate: clipped surrogate over all K samples' rewards; sft: likelihood of the m shortest right samples; "
        "dpo: shortest right sample against the longest; crisp: KL to the same weights under --teacher-instruction, without "
        "answers; none: no training",
        name="objective",
        choices=("surrogate", "sft", "dpo", "crisp", "none"),
    )
    picked: int = setting(
        2,
        "m: samples per problem that are trained on, drawn at random (sft: the shortest right ones)",
        low=1,
        high=10**6,
    )
    advantage: str = setting(
        "reward",
        "reward: as it is; z-score: standardised over all picked samples; centred, rloo, group: against the problem's "
        "other samples; batch: centred, then divided by the round's standard deviation",
        choices=ADVANTAGES,
    )
    dynamic_sampling: bool = setting(False, "leave out problems whose samples all earn the same")
    retained: float | None = setting(
        None,
        "GFPO: advantages and picks are taken over this share of each problem's samples alone, the best by --retained-by "
        "(none: over all)",
        above=0,
        high=1,
    )
    retained_by: str = setting(
        "efficiency", "GFPO: shortest, or efficiency: most reward per token", choices=("shortest", "efficiency")
    )
    teacher_instruction: str = setting(
        "concise", "CRISP: what the teacher is asked besides the question", choices=("concise", "fast")
    )
    dpo_beta: float = setting(0.1, "DPO: how sharply the pair's log-ratio counts", low=0, high=1e4)
    ratio: str = setting(
        "sequence",
        "level of the ratio: of the whole sequence, its mean per token (GSPO), each token's, or cispo: each token's, "
        "clipped as a weight of its log-prob, so that no token loses its gradient",
        choices=("sequence", "sequence_mean", "token", "cispo"),
    )
    eps_low: float = setting(0.2, "the ratio is clipped below at 1 - this", low=0, high=1e4)
    eps_high: float = setting(0.2, "the ratio is clipped above at 1 + this", low=0, high=1e4)
    truncated_importance: float | None = setting(
        None,
        "surrogate: mask tokens whose log-prob differs by more than this, in nats, between the sampler and the trainer, and "
        "count them in log.jsonl (none: keep all)",
        above=0,
        high=1e4,
    )
    reference: str = setting(
        "trainer",
        "whose log-probs ratios refer to: trainer, by a forward pass of all that is picked; or sampler, its own, where both "
        "agree within 0.001 nats a token (measured in each round)",
        choices=("trainer", "sampler"),
    )
    cutoff: int = setting(
        3072,
        "longest prompt + completion trained on, in tokens; longer ones are left out and counted",
        low=2,
        high=TOKENS,
    )


@dataclass(frozen=True)
class OptimiserSettings(Settings):
    """How a gradient becomes new weights, and which weights."""

    title = "optimiser"

    kind: str = setting(
        "adamw",
        "adamw, or adam-mini: one second moment per head or row instead of per weight, a quarter less memory",
        name="optimiser",
        choices=("adamw", "adam-mini"),
    )
    lr: float = setting(2e-7, "peak learning rate", low=0, high=1e36)
    schedule: str = setting("cosine", "learning rate after the warm-up", choices=("cosine", "constant"))
    warmup: float = setting(0.1, "fraction of all steps over which the learning rate rises from 0", low=0, high=1)
    epochs: int = setting(1, "passes over the picked completions of a round", low=1, high=10**4)
    batch: int = setting(32, "completions (DPO: pairs) per optimiser step", low=1, high=COUNT)
    weight_decay: float = setting(0.0, "weight decay, decoupled", low=0, high=1e3)
    grad_clip: float = setting(10.0, "largest norm of the gradient", above=0, high=1e30)
    train_last_layers: int | None = setting(None, "train the last N layers only (none: all weights)", low=1, high=10**4)
    lora_rank: int | None = setting(
        None, "train adapters of this rank, the weights stay frozen (none: train the weights)", low=1, high=10**5
    )
    lora_alpha: float | None = setting(
        None, "adapters are scaled by alpha / rank (none: alpha is twice the rank)", above=0, high=1e6
    )
    lora_targets: str = setting("all", "the projections that get adapters", choices=tuple(LORA_TARGETS))
    lora_experts: bool = setting(False, "adapters for the experts of a mixture too")
    train_router: bool = setting(False, "train what chooses the experts of a mixture too")
    replay_router: bool = setting(
        False, "compute a completion by the experts that sampled it, not by those chosen anew"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_alpha is not None and self.lora_rank is None:
            raise UserError("--lora-alpha: scales adapters, and there are none; add --lora-rank")
        if self.lora_experts and self.lora_rank is None:
            raise UserError("--lora-experts: there are no adapters; add --lora-rank")
        if self.train_router and self.lora_rank is not None:
            raise UserError(
                "--train-router: adapters leave the router as it is; take --lora-rank or --train-router out"
            )


@dataclass(frozen=True)
class ExecutionSettings(Settings):
    """How the work is cut up: memory and speed, and what a kill can lose."""

    title = "memory and speed"

    micro_tokens: int | None = setting(
        None,
        "tokens per forward and backward pass; a prompt counts once for its completions (none: as many as fit, up to "
        f"{MOST_MICRO_TOKENS:,}, on a CPU {MOST_ON_CPU:,})",
        low=1,
        high=TOKENS,
    )
    checkpointing: bool = setting(False, "gradient checkpointing: less memory, a third more time")
    save_every: int = setting(50, "optimiser steps between saves of the training state", low=1, high=COUNT)


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """How the model is evaluated: before, after and between rounds."""

    title = "evaluation"

    samples: int = setting(1, "completions per problem: n of avg@n", name="eval_samples", low=1, high=10**6)
    problems: int | None = setting(None, "problems to evaluate on (none: all)", name="eval_problems", low=1, high=COUNT)
    temperature: float = setting(0.0, "sampling temperature; 0 is greedy", name="eval_temperature", low=0, high=100)
    budget: int | None = setting(
        None,
        "tokens asked for (instruction exact or max; none: midway between --budget-low and --budget-high)",
        name="eval_budget",
        low=1,
        high=TOKENS,
    )
    every: str = setting(
        "none",
        "round: evaluate between rounds too, on training problems that are held out; none: before and after, on the tests",
        name="eval_every",
        choices=("none", "round"),
    )
    validation: int = setting(
        100,
        "--eval-every: training problems to hold out for it, at most a fifth of them",
        name="validation_problems",
        low=1,
        high=COUNT,
    )
    keep: str = setting(
        "last",
        "the round that becomes the result: last, or best: the fewest tokens among those whose held-out accuracy does not lie "
        "below the base's; training stops where it does",
        choices=("last", "best"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep == "best" and self.every == "none":
            raise UserError("--keep best: nothing says which round is the best; add --eval-every round")
        check_temperature("--eval-temperature", self.temperature)
        if self.samples > 1 and self.temperature == 0:
            raise UserError(
                f"--eval-samples: {self.samples} greedy completions of a problem are all the same; use 1, or "
                "--eval-temperature above 0"
            )


def parse_percentiles(text: str) -> tuple[float, float]:
    """(30, 70) of "30-70". Raises UserError where it is not two numbers from 0 to 100, the lower first."""
    try:
        low, high = (float(part) for part in text.split("-"))
    except ValueError:
        low = high = -1.0
    if not 0 <= low < high <= 100:
        raise UserError(f"--percentiles: {text} is not LOW-HIGH with 0 <= LOW < HIGH <= 100, such as 30-70")
    return low, high
