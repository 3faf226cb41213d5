"""What a checkpoint's config.json says, read strictly: nothing is defaulted that a family could differ in.

Families: Qwen2 / Qwen2.5 (biases on q, k, v), Qwen3 (RMSNorm on the heads of q and k) and Llama (neither). Left out on
purpose, each refused by name: sliding windows, scaled or partial rotary embeddings, biases elsewhere, mixtures of
experts, quantised weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import UserError
from ..files import read_object
from ..text import one_line
from .folder import need_file, shown

FAMILIES = {  # architecture: (bias on q, k, v; RMSNorm on the heads of q and k)
    "Qwen2ForCausalLM": (True, False),
    "Qwen3ForCausalLM": (False, True),
    "LlamaForCausalLM": (False, False),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SUPPORTED: dict[str, tuple[Any, ...]] = {  # field: the values that mean what the transformer does
    "use_sliding_window": (None, False),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "partial_rotary_factor": (None, 1.0),
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
    "rope_theta": (1.0, 1e15),
}
T = TypeVar("T", int, float, bool)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder. Sizes are counts; rope_theta and norm_eps are the published floats."""

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

    @property
    def qkv_bias(self) -> bool:
        return FAMILIES[self.architecture][0]

    @property
    def qk_norm(self) -> bool:
        return FAMILIES[self.architecture][1]


def read_config(folder: Path) -> ModelConfig:
    """Read and check `folder`/config.json. Raises UserError that names the field and what is supported."""
    path = need_file(folder, "config.json")
    raw = read_object(path)
    architecture = raw.get("architectures")
    architecture = architecture[0] if isinstance(architecture, list) and len(architecture) == 1 else architecture
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        found = one_line(architecture)[:100] if isinstance(architecture, str) else shown(architecture)
        raise UserError(f"{path}: architectures: {found} is not supported; these are: {', '.join(FAMILIES)}")
    raw |= _rope(path, raw)
    _refuse_unsupported(path, raw)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{path}: dtype or torch_dtype = {shown(dtype)} is not supported, only {', '.join(DTYPES)}")
    heads, hidden = _need(path, raw, "num_attention_heads", int), _need(path, raw, "hidden_size", int)
    # Qwen3 does not derive its head size from the others, so there it has to be stated.
    derived = raw.get("head_dim") is None and not FAMILIES[architecture][1]
    config = ModelConfig(
        architecture=architecture,
        vocab_size=_need(path, raw, "vocab_size", int),
        hidden_size=hidden,
        ffn_size=_need(path, raw, "intermediate_size", int),
        num_layers=_need(path, raw, "num_hidden_layers", int),
        num_heads=heads,
        num_kv_heads=_need(path, raw, "num_key_value_heads", int),
        head_dim=hidden // heads if derived else _need(path, raw, "head_dim", int),
        norm_eps=_need(path, raw, "rms_norm_eps", float),
        rope_theta=_need(path, raw, "rope_theta", float),
        max_positions=_need(path, raw, "max_position_embeddings", int),
        tied=_need(path, {"tie_word_embeddings": False} | raw, "tie_word_embeddings", bool),  # absent: untied
        dtype=DTYPES[dtype],
    )
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f"{path}: num_attention_heads {heads} is not a multiple of num_key_value_heads {config.num_kv_heads}"
        )
    if derived and hidden % heads:
        raise UserError(
            f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; state head_dim"
        )
    if config.head_dim % 2:
        raise UserError(f"{path}: head_dim {config.head_dim} is odd; the rotary embedding rotates pairs")
    return config


def _rope(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding's fields: transformers 5 moved rope_theta into rope_parameters; older files have rope_theta
    and rope_scaling."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters or rope_scaling: expected an object, found {shown(rope)}")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise UserError(f"{path}: rope type {shown(rope_type)} is not supported, only the unscaled one ('default')")
    return {field: rope[field] for field in ("rope_theta", "partial_rotary_factor") if field in rope}


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
