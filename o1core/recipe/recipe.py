"""A recipe: every setting of a run, in parts, with a flat form for the command line, recipe files and settings.json."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, get_args

from ..errors import UserError
from ..own_code import is_own, own_digest
from ..rollout import SamplingParams
from ..seeds import seed_of
from .fields import Settings, check_range, flag, flat_name, setting
from .settings import (
    EvaluationSettings,
    ExecutionSettings,
    ObjectiveSettings,
    OptimiserSettings,
    PromptSettings,
    RewardSettings,
    SamplingSettings,
    SelectionSettings,
)


@dataclass(frozen=True)
class Recipe:
    """The settings of O1-Pruner (arXiv 2501.12570). The defaults are the paper's for Marco-o1-7B where it states them."""

    selection: SelectionSettings = field(default_factory=SelectionSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    seed: int = setting(0, "seed of everything that is drawn at random", low=-(2**62), high=2**62)

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, SPECS["seed"].field)
        picked, samples = self.objective.picked, self.sampling.samples
        if picked > samples:
            raise UserError(f"--picked: {picked} of {samples} samples cannot be picked")
        if self.sampling.temperature == 0 and self.objective.kind != "none":
            raise UserError(
                f"--temperature: {samples} greedy completions of a problem are all the same, and nothing can be learned from "
                "them; use a temperature above 0 (greedy evaluation is --eval-temperature 0)"
            )
        most = self.sampling.max_new_tokens
        for name, tokens in (("budget-high", self.prompt.budget_high), ("eval-budget", self.evaluation.budget or 0)):
            if self.prompt.has_budget and tokens > most:
                raise UserError(f"--{name}: {tokens} tokens do not fit within --max-new-tokens {most}")
        if self.objective.kind == "none" and self.prompt.instruction == "none":
            raise UserError(
                "--objective none: the base would be compared with itself; add --instruction fast or concise"
            )
        if self.objective.kind == "crisp" and self.prompt.instruction != "none":
            raise UserError("--objective crisp: the student is asked without an instruction; use --instruction none")
        if self.reward.needs_budget and not self.prompt.has_budget:
            raise UserError(f"--reward {self.reward.kind}: needs --instruction exact or max, which state the budget")
        if self.reward.kind == "hapo" and self.sampling.rounds < 2:
            raise UserError("--reward hapo: refers to the answers of earlier rounds; needs --rounds 2 or more")

    @classmethod
    def of(cls, **flat: Any) -> Self:
        """A recipe from flat settings ("eval_samples", "lam", ...); what is left out keeps its default."""
        return cls().but(**flat)

    def but(self, **flat: Any) -> Self:
        """This recipe with some flat settings changed."""
        changes: dict[str, dict[str, Any]] = {}
        for name, value in flat.items():
            spec = SPECS[name]
            changes.setdefault(spec.part, {})[spec.field.name] = value
        own = changes.pop("", {})
        parts = {part: dataclasses.replace(getattr(self, part), **values) for part, values in changes.items()}
        return dataclasses.replace(self, **parts, **own)

    def to_json(self) -> dict[str, Any]:
        """The flat form: {"problems": 5000, ..., "eval_samples": 1, ..., "seed": 0}."""
        return {name: spec.read(self) for name, spec in SPECS.items()}

    def deciding(self) -> dict[str, Any]:
        """The flat settings that decide the weights: all but those that cut up the work, and the count of rounds, which
        may grow."""
        return {name: value for name, value in self.to_json().items() if name not in FREE and name != "rounds"}

    def own_code(self) -> dict[str, str]:
        """What settings.json keeps of one's own reward and grader: the SHA-256 of their files. Raises UserError where a file
        cannot be read or does not define its function."""
        named = {"reward": self.reward.kind, "grader": self.reward.grader}
        return {f"{key}_print": own_digest(flag(key), text) for key, text in named.items() if text and is_own(text)}

    def evaluation_params(self) -> SamplingParams:
        """How an evaluation samples."""
        of = self.evaluation
        return self.sampling.params(seed_of(self.seed, "evaluate"), of.samples, of.temperature)

    def round_params(self, round_index: int) -> SamplingParams:
        """How the rollouts of a round are sampled. Each round has random numbers of its own."""
        return self.sampling.params(seed_of(self.seed, "sample", round_index))


class Spec(NamedTuple):
    """Where a flat setting lives: the attribute of Recipe ("" for its own), the part's class, and its field."""

    part: str
    group: type[Settings] | None
    field: dataclasses.Field

    @property
    def kind(self) -> type:
        """int, float, str, bool or dict."""
        kinds = [kind for kind in (get_args(self.field.type) or (self.field.type,)) if kind is not type(None)]
        assert isinstance(kinds[0], type)
        return kinds[0]

    @property
    def optional(self) -> bool:
        """Whether none is allowed."""
        return type(None) in get_args(self.field.type)

    def read(self, recipe: Recipe) -> Any:
        return getattr(getattr(recipe, self.part) if self.part else recipe, self.field.name)


def _specs() -> dict[str, Spec]:
    found: dict[str, Spec] = {}
    for part in dataclasses.fields(Recipe):
        if isinstance(part.type, type) and issubclass(part.type, Settings):
            found |= {flat_name(spec): Spec(part.name, part.type, spec) for spec in dataclasses.fields(part.type)}
        else:
            found[part.name] = Spec("", None, part)
    return found


SPECS: dict[str, Spec] = _specs()  # every setting by its flat name
FREE = frozenset(name for name, spec in SPECS.items() if spec.part == "execution")  # they decide no result

__all__ = ["FREE", "SPECS", "Recipe", "Spec", "flag"]
