"""What a checkpoint's config.json says, read strictly: nothing is defaulted that a family could differ in.

Families: Qwen2 / Qwen2.5 (biases on q, k, v), Qwen3 (RMSNorm on the heads of q and k), Llama (neither), SmolLM3 (Llama,
with layers that have no rotary embedding), Qwen3-MoE (Qwen3, with experts in place of the MLP) and the text part of
Qwen3.5 / 3.6 / 3.8 (most layers a gated delta rule, the others attention with a gate and a partial rotary embedding), dense
or with experts. Left out on purpose, each refused by name: sliding windows, rotary embeddings that change with the length
of the text, biases elsewhere, quantised weights.
"""

import difflib
import functools
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from ..choices import DTYPE_NAMES
from ..errors import UserError
from ..files import read_object
from ..text import one_line
from .folder import need_file, shown
from .rope import Linear, Llama3, Scaling, Yarn, yarn_attention_factor

log = logging.getLogger(__name__)


class Family(NamedTuple):
    """What an architecture has that no field of its config.json says."""

    qkv_bias: bool = False  # on the projections to q, k and v
    qk_norm: bool = False  # RMSNorm on the heads of q and k
    tied: bool = False  # where tie_word_embeddings is not stated
    nope: bool = False  # some layers have no positional embedding
    sparse: bool = False  # experts in place of the MLP
    hybrid: bool = False  # delta-rule layers; attention with a gate; norms scale by 1 + weight
    inner: bool = False  # the text model's fields lie in text_config, its weights under model.language_model.


FAMILIES = {
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": Family(qk_norm=True),
    "LlamaForCausalLM": Family(),
    "SmolLM3ForCausalLM": Family(tied=True, nope=True),
    "Qwen3MoeForCausalLM": Family(qk_norm=True, sparse=True),
    "Qwen3_5ForCausalLM": Family(qk_norm=True, hybrid=True),
    "Qwen3_5ForConditionalGeneration": Family(qk_norm=True, hybrid=True, inner=True),
    "Qwen3_5MoeForCausalLM": Family(qk_norm=True, hybrid=True, sparse=True),
    "Qwen3_5MoeForConditionalGeneration": Family(qk_norm=True, hybrid=True, sparse=True, inner=True),
}
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}
SUPPORTED: dict[str, tuple[Any, ...]] = {  # field: the values that mean what the transformer does
    "use_sliding_window": (None, False),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "partial_rotary_factor": (None, 1.0),
    "rope_interleaved": (None, False),
    "hidden_act": (None, "silu"),
    "attn_output_gate": (None, True),
    "output_gate_type": (None, "swish"),
}
QUANTISED = re.compile(
    r"-(fp8|mxfp4|nvfp4|gptq|awq|int4|int8|w4a16|w8a8)\b.*$", re.IGNORECASE
)  # in a checkpoint's name
RANGES: dict[str, tuple[float, float]] = {  # far beyond every published model, and far below what overflows
    "vocab_size": (1, 1 << 24),
    "hidden_size": (1, 1 << 20),
    "intermediate_size": (1, 1 << 22),
    "num_hidden_layers": (1, 4096),
    "num_attention_heads": (1, 1 << 16),
    "num_key_value_heads": (1, 1 << 16),
    "head_dim": (2, 1 << 14),
    "max_position_embeddings": (1, 1 << 30),
    "rms_norm_eps": (1e-15, 1.0),
    "rope_theta": (2.0, 1e15),
    "no_rope_layer_interval": (1, 1 << 16),
    "num_experts": (1, 1 << 16),
    "num_experts_per_tok": (1, 1 << 10),
    "moe_intermediate_size": (1, 1 << 20),
    "shared_expert_intermediate_size": (1, 1 << 20),
    "decoder_sparse_step": (1, 4096),
    "full_attention_interval": (1, 4096),
    "linear_num_key_heads": (1, 1 << 12),
    "linear_num_value_heads": (1, 1 << 12),
    "linear_key_head_dim": (1, 1 << 12),
    "linear_value_head_dim": (1, 1 << 12),
    "linear_conv_kernel_dim": (2, 64),
    "partial_rotary_factor": (1e-3, 1.0),
    "factor": (1.0, 1e6),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
    "original_max_position_embeddings": (1, 1 << 30),
    "attention_factor": (1e-3, 1e3),
    "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6),
    "mscale": (0.0, 1e3),
    "mscale_all_dim": (0.0, 1e3),
}
T = TypeVar("T", int, float, bool)
ROPE_FIELDS = {  # kind of rotary embedding: what config.json may say of it
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
ALWAYS_READ = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
MROPE_FIELDS = ("mrope_section", "mrope_interleaved")  # where images have positions; for text it is the plain embedding


@dataclass(frozen=True)
class ExpertConfig:
    """A mixture of experts: `chosen` of `count` MLPs of width `ffn_size` compute a token, in `layers`. normalised: the
    chosen ones' weights are scaled to a sum of 1; shared_size: width of an MLP that computes every token (0: there is none)."""

    count: int
    chosen: int
    ffn_size: int
    normalised: bool
    layers: tuple[int, ...]
    shared_size: int = 0


@dataclass(frozen=True)
class DeltaConfig:
    """The gated delta rule of `layers`: counts and sizes of heads, of which each key head serves value_heads / key_heads value
    heads; kernel: tokens that the convolution before it sees."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    layers: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of q, k and v, which pass through the convolution."""
        return self.key_heads * self.key_dim, self.key_heads * self.key_dim, self.value_heads * self.value_dim


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder. Sizes are counts; rope_theta and norm_eps are the published floats; nope_layers are those
    without a rotary embedding; max_positions is the longest context, stretched where config.json leaves that to us.
    ffn_size: of the dense MLPs (0: there are none); rotary_factor: the part of a head that the rotary embedding turns."""

    architecture: str
    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    tied: bool
    dtype: torch.dtype
    scaling: Scaling | None = None
    nope_layers: tuple[int, ...] = ()
    rotary_factor: float = 1.0
    experts: ExpertConfig | None = None
    delta: DeltaConfig | None = None

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    @property
    def prefix(self) -> str:
        """How the published names of the text model's weights begin."""
        return "model.language_model." if self.family.inner else "model."

    @property
    def rotary_dim(self) -> int:
        """The numbers of a head, from its first, that the rotary embedding turns."""
        return int(self.head_dim * self.rotary_factor)

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        return self.experts.layers if self.experts else ()

    @property
    def delta_layers(self) -> tuple[int, ...]:
        return self.delta.layers if self.delta else ()

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that have keys and values."""
        return tuple(i for i in range(self.num_layers) if i not in self.delta_layers)

    @property
    def qkv_bias(self) -> bool:
        return self.family.qkv_bias

    @property
    def qk_norm(self) -> bool:
        return self.family.qk_norm


def check_trained(config: ModelConfig, rank: int | None, last_layers: int | None, replay_router: bool = False) -> None:
    """Raise UserError where the model has not what is to be trained. rank: of adapters (None: there are none);
    last_layers: None is all; replay_router: whether the experts that sampled are asked for."""
    if replay_router and config.experts is None:
        raise UserError("--replay-router: this model has no experts")
    if rank is not None and rank > config.hidden_size:
        raise UserError(f"--lora-rank: {rank} is above the model's hidden size {config.hidden_size}; use a smaller one")
    if last_layers is not None and last_layers > config.num_layers:
        raise UserError(f"--train-last-layers: {last_layers} of the model's {config.num_layers} layers")


def read_config(folder: Path) -> ModelConfig:
    """Read and check `folder`/config.json. Raises UserError that names the field and what is supported."""
    path = need_file(folder, "config.json")
    raw = read_object(path)
    architecture = raw.get("architectures")
    architecture = architecture[0] if isinstance(architecture, list) and len(architecture) == 1 else architecture
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        found = architecture[:100] if isinstance(architecture, str) else shown(architecture)
        raise UserError(f"{path}: architectures: {found} is not supported; these are: {', '.join(FAMILIES)}")
    family = FAMILIES[architecture]
    _refuse_quantised(path, raw)
    place = str(path)
    if family.inner:
        raw, place = _text_fields(place, raw), f"{path}: text_config"
    rope = _rope_fields(place, raw)
    raw |= {field: rope[field] for field in ("rope_theta", "partial_rotary_factor") if field in rope}
    _refuse_unsupported(place, raw, family)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{place}: dtype or torch_dtype = {shown(dtype)} is not supported, only {', '.join(DTYPES)}")
    heads, hidden = _need(place, raw, "num_attention_heads", int), _need(place, raw, "hidden_size", int)
    # Qwen3 does not derive its head size from the others, so there it has to be stated.
    derived = raw.get("head_dim") is None and not family.qk_norm
    layers = _need(place, raw, "num_hidden_layers", int)
    max_positions = _need(place, raw, "max_position_embeddings", int)
    scaling = _scaling(place, rope, max_positions, family)
    if isinstance(scaling, Yarn):  # Qwen's instructions add rope_scaling, and leave max_position_embeddings as it was
        max_positions = max(max_positions, int(scaling.factor * scaling.original_positions))
    experts = _experts(place, raw, layers, family) if family.sparse else None
    dense = experts is None or len(experts.layers) < layers
    config = ModelConfig(
        architecture=architecture,
        vocab_size=_need(place, raw, "vocab_size", int),
        hidden_size=hidden,
        ffn_size=_need(place, raw, "intermediate_size", int) if dense else 0,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_need(place, raw, "num_key_value_heads", int),
        head_dim=hidden // heads if derived else _need(place, raw, "head_dim", int),
        norm_eps=_need(place, raw, "rms_norm_eps", float),
        rope_theta=_need(place, raw, "rope_theta", float),
        max_positions=max_positions,
        tied=_need(place, {"tie_word_embeddings": family.tied} | raw, "tie_word_embeddings", bool),
        dtype=DTYPES[dtype],
        scaling=scaling,
        nope_layers=_nope_layers(place, raw, layers) if family.nope else (),
        rotary_factor=_need(place, raw, "partial_rotary_factor", float) if family.hybrid else 1.0,
        experts=experts,
        delta=_delta(place, raw, layers) if family.hybrid else None,
    )
    _check_heads(place, config, derived)
    return config


def _text_fields(place: str, raw: dict[str, Any]) -> dict[str, Any]:
    """The text model's fields of a model that sees images too. What both tell, its own part says; tying is told outside."""
    text = raw.get("text_config")
    if not isinstance(text, dict):
        raise UserError(f"{place}: text_config: expected an object, found {shown(text)}")
    outside: dict[str, Any] = {
        field: raw[field] for field in ("dtype", "torch_dtype", "tie_word_embeddings") if field in raw
    }
    return outside | text


def _experts(place: str, raw: dict[str, Any], layers: int, family: Family) -> ExpertConfig:
    """The mixture of experts. In the hybrids every layer has one, with a shared expert, and weights are scaled to 1."""
    raw = {"num_experts": raw.get("num_local_experts")} | raw  # as transformers 5 spells it
    count, chosen = _need(place, raw, "num_experts", int), _need(place, raw, "num_experts_per_tok", int)
    if chosen > count:
        raise UserError(f"{place}: num_experts_per_tok {chosen} is more than num_experts {count}")
    width = _need(place, raw, "moe_intermediate_size", int)
    if family.hybrid:
        shared = _need(place, raw, "shared_expert_intermediate_size", int)
        return ExpertConfig(count, chosen, width, True, tuple(range(layers)), shared)
    step, dense = _need(place, raw, "decoder_sparse_step", int), raw.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int or not 0 <= i < layers for i in dense):
        raise UserError(f"{place}: mlp_only_layers: expected layers from 0 to {layers - 1}, found {shown(dense)}")
    sparse = tuple(i for i in range(layers) if (i + 1) % step == 0 and i not in dense)
    if not sparse:
        raise UserError(
            f"{place}: mlp_only_layers and decoder_sparse_step leave no layer with experts; use Qwen3ForCausalLM"
        )
    return ExpertConfig(count, chosen, width, _need(place, raw, "norm_topk_prob", bool), sparse)


def _delta(place: str, raw: dict[str, Any], layers: int) -> DeltaConfig:
    """The delta-rule layers: those that layer_types names, or all but every full_attention_interval-th."""
    kinds = raw.get("layer_types")
    if kinds is None:
        interval = _need(place, {"full_attention_interval": 4} | raw, "full_attention_interval", int)
        linear = tuple(i for i in range(layers) if (i + 1) % interval)
    else:
        if len(kinds) != layers:
            raise UserError(f"{place}: layer_types: {len(kinds)} entries, num_hidden_layers is {layers}")
        linear = tuple(i for i, kind in enumerate(kinds) if kind == "linear_attention")
    if len(linear) == layers:
        raise UserError(
            f"{place}: layer_types or full_attention_interval leave no layer of full attention, which is needed"
        )
    key_heads, value_heads = (_need(place, raw, f"linear_num_{of}_heads", int) for of in ("key", "value"))
    if value_heads % key_heads:
        raise UserError(
            f"{place}: linear_num_value_heads {value_heads} is not a multiple of linear_num_key_heads {key_heads}"
        )
    key, value, kernel = (
        _need(place, raw, f"linear_{of}_dim", int) for of in ("key_head", "value_head", "conv_kernel")
    )
    return DeltaConfig(key_heads, value_heads, key, value, kernel, linear)


def _check_heads(path: str, config: ModelConfig, derived: bool) -> None:
    """Refuse head counts and sizes that do not divide what they must. derived: head_dim follows from the others."""
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f"{path}: num_attention_heads {config.num_heads} is not a multiple of num_key_value_heads {config.num_kv_heads}"
        )
    if derived and config.hidden_size % config.num_heads:
        raise UserError(
            f"{path}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_heads}; "
            "state head_dim"
        )
    if config.head_dim % 2:
        raise UserError(f"{path}: head_dim {config.head_dim} is odd; the rotary embedding rotates pairs")
    if config.rotary_dim < 2 or config.rotary_dim % 2:
        raise UserError(
            f"{path}: partial_rotary_factor {config.rotary_factor:g} of head_dim {config.head_dim} is not an even number from "
            "2 on; the rotary embedding rotates pairs"
        )


def _rope_fields(path: str, raw: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of the rotary embedding: transformers 5 has it all in rope_parameters, older files have
    rope_theta beside rope_scaling, and a few have original_max_position_embeddings there too."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters or rope_scaling: expected an object, found {shown(rope)}")
    if raw.get("rope_scaling") and raw["rope_scaling"] != rope:
        raise UserError(f"{path}: rope_parameters and rope_scaling differ; take one of them out")
    if nested := [field for field in ("full_attention", "sliding_attention") if field in rope]:
        raise UserError(
            f"{path}: rope_parameters: {nested[0]} is not supported, only one rotary embedding for all layers"
        )
    elsewhere = ("rope_parameters", "rope_scaling", *SUPPORTED)
    outside = [field for field in raw if field.startswith(("rope_", "original_")) and field not in elsewhere]
    return {field: raw[field] for field in outside if raw[field] is not None} | rope


def _scaling(path: str, rope: dict[str, Any], max_positions: int, family: Family) -> Scaling | None:
    """How the rotary embedding is stretched. As in transformers, what a kind leaves out is what its paper uses."""

    def number(field: str, default: float | None = None) -> float:
        stated = rope if default is None or rope.get(field) is not None else {field: default}
        return _need(path, stated, field, float)

    kind = rope.get("rope_type") or rope.get("type")
    if kind is None and rope.get("factor") is not None:
        raise UserError(
            f"{path}: rope_scaling: factor is stated without a rope_type; add one of {', '.join(ROPE_FIELDS)}"
        )
    kind = kind or "default"
    if not isinstance(kind, str) or kind not in ROPE_FIELDS:
        raise UserError(f"{path}: rope type {shown(kind)} is not supported, only default, linear, llama3 and yarn")
    _name_unread(path, kind, rope, MROPE_FIELDS if family.hybrid else ())
    original = {"original_max_position_embeddings": max_positions} | rope
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(number("factor"))
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise UserError(f"{path}: high_freq_factor {high:g} must be above low_freq_factor {low:g}")
        return Llama3(number("factor"), low, high, _need(path, original, "original_max_position_embeddings", int))
    factor = number("factor")
    inferred = yarn_attention_factor(factor, number("mscale", 0.0), number("mscale_all_dim", 0.0))
    fast, slow = number("beta_fast", 32.0), number("beta_slow", 1.0)
    if slow >= fast:
        raise UserError(f"{path}: beta_fast {fast:g} must be above beta_slow {slow:g}")
    return Yarn(
        factor,
        number("attention_factor", inferred),
        fast,
        slow,
        _need(path, original, "original_max_position_embeddings", int),
        _need(path, {"truncate": True} | rope, "truncate", bool),
    )


def _name_unread(path: str, kind: str, rope: dict[str, Any], more: tuple[str, ...]) -> None:
    """Name what config.json says of the rotary embedding and nothing reads: a misspelt field is an error, since the value
    that stands in for it computes something else; others (published files have a few) are warned of."""
    read = (*ROPE_FIELDS[kind], *ALWAYS_READ, *more)
    unread = [field for field in rope if field not in read and rope[field] is not None]
    for field in unread[:100]:
        near = difflib.get_close_matches(field, read, n=1, cutoff=0.75)
        if (
            near and field != "attn_factor"
        ):  # DeepSeek-R1-0528-Qwen3-8B has it: vLLM multiplies by it, transformers does not
            raise UserError(f"{path}: rope_scaling: {shown(field)} is read by nothing; did you mean {near[0]}?")
    if unread:
        names = ", ".join(map(shown, unread[:10]))
        _warn_once(f"{path}: rope_scaling: not read where rope_type is {kind}, here as in transformers: {names}")


@functools.cache
def _warn_once(message: str) -> None:
    """A configuration is read several times in a run."""
    log.warning("%s", one_line(message))


def _nope_layers(path: str, raw: dict[str, Any], layers: int) -> tuple[int, ...]:
    """The layers whose entry in no_rope_layers is 0 (1 means that there is a rotary embedding, whatever the name says);
    where it is not stated, every no_rope_layer_interval-th."""
    stated = raw.get("no_rope_layers")
    if stated is None:
        interval = _need(path, {"no_rope_layer_interval": 4} | raw, "no_rope_layer_interval", int)
        return tuple(range(interval - 1, layers, interval))
    if (
        not isinstance(stated, list)
        or len(stated) != layers
        or any(type(x) is not int or x not in (0, 1) for x in stated)
    ):
        raise UserError(f"{path}: no_rope_layers: expected {layers} times 0 or 1, found {shown(stated)}")
    return tuple(i for i, rotated in enumerate(stated) if not rotated)


def _refuse_quantised(path: Path, raw: dict[str, Any]) -> None:
    """Refuse weights that are stored in fewer bits, and name the checkpoint that they were made from as far as its name
    tells."""
    inner = raw.get("text_config")
    for fields in (raw, inner if isinstance(inner, dict) else {}):
        if (found := fields.get("quantization_config")) is not None:
            name = path.parent.name
            if path.parent.parent.name == "snapshots":  # of the hub's cache
                name = path.parents[2].name.removeprefix("models--").replace("--", "/")
            plain = QUANTISED.sub("", name)
            sibling = f", {plain} by its name" if plain and plain != name else ""
            raise UserError(
                f"{path}: quantization_config = {shown(found)} is not supported; give the bf16 checkpoint that it was made "
                f"from{sibling}"
            )


def _refuse_unsupported(path: str, raw: dict[str, Any], family: Family) -> None:
    """Refuse, by name, what the transformer does not do."""
    for field, values in SUPPORTED.items():
        if raw.get(field) not in values and not (field == "partial_rotary_factor" and family.hybrid):
            raise UserError(f"{path}: {field} = {shown(raw[field])} is not supported, only {values[-1]!r}")
    known = ("full_attention", "linear_attention") if family.hybrid else ("full_attention",)
    layer_types = raw.get("layer_types") or ["full_attention"]
    if not isinstance(layer_types, list) or any(kind not in known for kind in layer_types):
        names = " and ".join(map(repr, known))
        raise UserError(
            f"{path}: layer_types: only {names} {'are' if family.hybrid else 'is'} supported, found {shown(layer_types)}"
        )


def _need(path: str, raw: dict[str, Any], field: str, kind: type[T]) -> T:
    """The field's value: of this very type (a bool is no int, though an int may stand for a float), and in RANGES."""
    value: Any = raw.get(field)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UserError(f"{path}: {field}: expected {kind.__name__}, found {shown(value)}")
    if field in RANGES:
        low, high = RANGES[field]
        if not low <= value <= high:  # nor is NaN
            raise UserError(f"{path}: {field}: must be from {low:,} to {high:,}, found {shown(value)}")
    return kind(value)
