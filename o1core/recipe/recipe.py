"""A recipe: every setting of a run, in parts, with a flat form for the command line, recipe files and settings.json.

Recipe files are JSON objects of flat settings, shipped beside this module or written by a user.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, get_args

from ..errors import UserError
from ..files import read_json
from ..own_code import is_own, own_digest
from ..seeds import seed_of
from ..text import nearest
from .methods import METHODS
from .settings import (
    EvaluationSettings,
    ExecutionSettings,
    ObjectiveSettings,
    OptimiserSettings,
    PromptSettings,
    RewardSettings,
    SamplingSettings,
    SelectionSettings,
    Settings,
    check_setting,
    flag,
    flat_name,
    setting,
)

if TYPE_CHECKING:
    from ..rollout import SamplingParams

SHIPPED = Path(__file__).parent


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
        check_setting(SPECS["seed"].field, self.seed, "--seed")
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
        if self.objective.reference == "sampler" and self.prompt.opening:
            raise UserError("--reference sampler: did not choose the tokens of --opening; use --reference trainer")
        if self.objective.reference == "sampler" and self.objective.truncated_importance is not None:
            raise UserError(
                "--reference sampler: --truncated-importance compares it with the trainer's log-probs; use --reference trainer"
            )
        if self.reward.needs_budget and not self.prompt.has_budget:
            raise UserError(f"--reward {self.reward.kind}: needs --instruction exact or max, which state the budget")
        if self.reward.kind == "hapo" and self.sampling.rounds < 2:
            raise UserError("--reward hapo: refers to the answers of earlier rounds; needs --rounds 2 or more")
        if self.reward.kind == "dot" and self.sampling.samples < 11:
            raise UserError("--reward dot: of ten samples none is 3 deviations too long; needs --samples 11 or more")

    @classmethod
    def of(cls, **flat: Any) -> Self:
        """A recipe from flat settings ("eval_samples", "lam", ...); what is left out keeps its default."""
        return cls().replace(**flat)

    def replace(self, **flat: Any) -> Self:
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
        return {name: value for name, value in self.to_json().items() if name not in MAY_CHANGE and name != "rounds"}

    def own_code(self) -> dict[str, str]:
        """What settings.json keeps of one's own reward and grader: the SHA-256 of their files. Raises UserError where a file
        cannot be read or does not define its function."""
        named = {"reward": self.reward.kind, "grader": self.reward.grader}
        return {f"{key}_print": own_digest(flag(key), text) for key, text in named.items() if text and is_own(text)}

    def phase(self, index: int | None = None, part: int = 0) -> str:
        """ "3/6": which of a run's phases this is. It evaluates; in each round (its index) it samples (part 0), trains (1) and
        with --eval-every validates (2), the base before all rounds (-1); and it evaluates (None)."""
        each = 2 + (self.evaluation.every == "round")  # phases of a round, and before and after all rounds
        last = each * (1 + (self.sampling.rounds if self.objective.kind != "none" else 0))
        return f"{last if index is None else each * (index + 1) + part}/{last}"

    def evaluation_params(self) -> "SamplingParams":
        """How an evaluation samples."""
        of = self.evaluation
        return self.sampling.params(seed_of(self.seed, "evaluate"), of.samples, of.temperature)

    def round_params(self, round_index: int) -> "SamplingParams":
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

    @property
    def default(self) -> Any:
        """The field's own, which a recipe may override."""
        factory = self.field.default_factory
        return self.field.default if factory is dataclasses.MISSING else factory()

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
MAY_CHANGE = frozenset(name for name, spec in SPECS.items() if spec.part == "execution")  # they decide no result


def read_recipe(name: str, method: str = "o1-pruner") -> dict[str, Any]:
    """The flat settings of a shipped recipe ("paper", "official", ...) or of a JSON file, for `Recipe.of`.

    A method's own settings override the recipe's. The recipe's settings for that method (its object "methods") override
    both. Raises UserError naming the file and the key that is unknown, of the wrong type or out of its range.
    """
    if method not in METHODS:  # of a study's list: --method takes no other
        raise UserError(f"--methods: {method} is none of {', '.join(METHODS)}{nearest(method, METHODS)}")
    path = SHIPPED / f"{name}.json"
    if Path(name).name != name or not path.exists():
        path = Path(name)
    if not path.exists():
        known = sorted(p.stem for p in SHIPPED.glob("*.json"))
        raise UserError(
            f"--recipe: {name} is neither a shipped recipe ({', '.join(known)}) nor a file{nearest(name, known)}"
        )
    settings = read_json(path)
    of_methods = settings.pop("methods", {}) if isinstance(settings, dict) else None
    if not isinstance(of_methods, dict):
        raise UserError(f"{path}: a recipe is a JSON object of settings, and so is its key methods")
    for other, changes in of_methods.items():
        if other not in METHODS or not isinstance(changes, dict):
            raise UserError(f"{path}: methods: {other} must be one of {', '.join(METHODS)} with an object of settings")
    for key, value in [item for part in (*of_methods.values(), settings) for item in part.items()]:
        if key not in SPECS:
            names = ", ".join(SPECS)
            raise UserError(f"{path}: {key} is not a setting; the settings are: {names}{nearest(key, SPECS)}")
        check_setting(SPECS[key].field, value, f"{path}: {key}")
    return settings | METHODS[method] | of_methods.get(method, {})
