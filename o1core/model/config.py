"""What a checkpoint's config.json says, read strictly: nothing is defaulted that a family could differ in.

Families: Qwen2 / Qwen2.5 (biases on q, k, v), Qwen3 (RMSNorm on the heads of q and k), Llama (neither) and SmolLM3
(Llama, with layers that have no rotary embedding). Left out on purpose, each refused by name: sliding windows, partial
rotary embeddings and those that change with the length of the text, biases elsewhere, mixtures of experts, quantised
weights.
"""

import difflib
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

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


FAMILIES = {
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": Family(qk_norm=True),
    "LlamaForCausalLM": Family(),
    "SmolLM3ForCausalLM": Family(tied=True, nope=True),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SUPPORTED: dict[str, tuple[Any, ...]] = {  # field: the values that mean what the transformer does
    "use_sliding_window": (None, False),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "partial_rotary_factor": (None, 1.0),
    "rope_interleaved": (None, False),
    "quantization_config": (None,),
    "hidden_act": (None, "silu"),
}
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


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder. Sizes are counts; rope_theta and norm_eps are the published floats; nope_layers are those
    without a rotary embedding; max_positions is the longest context, stretched where config.json leaves that to us."""

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

    @property
    def qkv_bias(self) -> bool:
        return FAMILIES[self.architecture].qkv_bias

    @property
    def qk_norm(self) -> bool:
        return FAMILIES[self.architecture].qk_norm


def check_trained(config: ModelConfig, rank: int | None, last_layers: int | None) -> None:
    """Raise UserError where the model has not what is to be trained. rank: of adapters (None: there are none);
    last_layers: None is all."""
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
    rope = _rope_fields(path, raw)
    raw |= {field: rope[field] for field in ("rope_theta", "partial_rotary_factor") if field in rope}
    _refuse_unsupported(path, raw)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{path}: dtype or torch_dtype = {shown(dtype)} is not supported, only {', '.join(DTYPES)}")
    heads, hidden = _need(path, raw, "num_attention_heads", int), _need(path, raw, "hidden_size", int)
    # Qwen3 does not derive its head size from the others, so there it has to be stated.
    derived = raw.get("head_dim") is None and not family.qk_norm
    layers = _need(path, raw, "num_hidden_layers", int)
    max_positions = _need(path, raw, "max_position_embeddings", int)
    scaling = _scaling(path, rope, max_positions)
    if isinstance(scaling, Yarn):  # Qwen's instructions add rope_scaling, and leave max_position_embeddings as it was
        max_positions = max(max_positions, int(scaling.factor * scaling.original_positions))
    config = ModelConfig(
        architecture=architecture,
        vocab_size=_need(path, raw, "vocab_size", int),
        hidden_size=hidden,
        ffn_size=_need(path, raw, "intermediate_size", int),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_need(path, raw, "num_key_value_heads", int),
        head_dim=hidden // heads if derived else _need(path, raw, "head_dim", int),
        norm_eps=_need(path, raw, "rms_norm_eps", float),
        rope_theta=_need(path, raw, "rope_theta", float),
        max_positions=max_positions,
        tied=_need(path, {"tie_word_embeddings": family.tied} | raw, "tie_word_embeddings", bool),
        dtype=DTYPES[dtype],
        scaling=scaling,
        nope_layers=_nope_layers(path, raw, layers) if family.nope else (),
    )
    _check_heads(path, config, derived)
    return config


def _check_heads(path: Path, config: ModelConfig, derived: bool) -> None:
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


def _rope_fields(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
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


def _scaling(path: Path, rope: dict[str, Any], max_positions: int) -> Scaling | None:
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
    _name_unread(path, kind, rope)
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


def _name_unread(path: Path, kind: str, rope: dict[str, Any]) -> None:
    """Name what config.json says of the rotary embedding and nothing reads: a misspelt field is an error, since the value
    that stands in for it computes something else; others (published files have a few) are warned of."""
    read = (*ROPE_FIELDS[kind], *ALWAYS_READ)
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


def _nope_layers(path: Path, raw: dict[str, Any], layers: int) -> tuple[int, ...]:
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


def _refuse_unsupported(path: Path, raw: dict[str, Any]) -> None:
    """Refuse, by name, what the transformer does not do."""
    for field, values in SUPPORTED.items():
        if raw.get(field) not in values:
            raise UserError(f"{path}: {field} = {shown(raw[field])} is not supported, only {values[-1]!r}")
    layer_types = raw.get("layer_types") or ["full_attention"]
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise UserError(f"{path}: layer_types: only 'full_attention' is supported, found {shown(layer_types)}")


def _need(path: Path, raw: dict[str, Any], field: str, kind: type[T]) -> T:
    """The field's value: of this very type (a bool is no int, though an int may stand for a float), and in RANGES."""
    value: Any = raw.get(field)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UserError(f"{path}: {field}: expected {kind.__name__}, found {shown(value)}")
    if field in RANGES:
        low, high = RANGES[field]
        if not low <= value <= high:  # nor is NaN
            raise UserError(f"{path}: {field}: must be from {low:,} to {high:,}, found {shown(value)}")
    return kind(value)
