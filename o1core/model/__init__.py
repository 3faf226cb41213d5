"""A Hugging Face checkpoint in memory: its configuration, its transformer, its tokenizer and chat template, and back."""

from .checkpoint import (
    Piece,
    fill,
    layout,
    load,
    load_weights,
    model_fingerprint,
    open_tensors,
    published_tensors,
    save_checkpoint,
    stored_tensors,
    weight_files,
    write_checkpoint,
)
from .config import DTYPES, DeltaConfig, ExpertConfig, ModelConfig, check_trained, read_config
from .delta_rule import DeltaInputs, DeltaState, Recur, causal_recurrence, empty_state, run_sequence
from .download import Found, find_model
from .experts import Choose, GroupedLinear, Routes, keep_choice, stays_on_device
from .folder import checkpoint_file, read_text
from .lora import (
    AdaptedLinear,
    adapted,
    add_adapters,
    draw_adapters,
    fold_adapters,
    gets_adapters,
    layer_of,
    load_adapter,
    merged_weights,
    save_adapter,
)
from .rope import rotate
from .tokenizer import Tokenizer
from .transformer import Block, Transformer, initialise
from .trees import Attend, Trees, causal_attention

__all__ = [
    "DTYPES",
    "AdaptedLinear",
    "Attend",
    "Block",
    "Choose",
    "DeltaConfig",
    "DeltaInputs",
    "DeltaState",
    "ExpertConfig",
    "Found",
    "GroupedLinear",
    "ModelConfig",
    "Piece",
    "Recur",
    "Routes",
    "Tokenizer",
    "Transformer",
    "Trees",
    "adapted",
    "add_adapters",
    "causal_attention",
    "causal_recurrence",
    "check_trained",
    "checkpoint_file",
    "draw_adapters",
    "empty_state",
    "fill",
    "find_model",
    "fold_adapters",
    "gets_adapters",
    "initialise",
    "keep_choice",
    "layer_of",
    "layout",
    "load",
    "load_adapter",
    "load_weights",
    "merged_weights",
    "model_fingerprint",
    "open_tensors",
    "published_tensors",
    "read_config",
    "read_text",
    "rotate",
    "run_sequence",
    "save_adapter",
    "save_checkpoint",
    "stays_on_device",
    "stored_tensors",
    "weight_files",
    "write_checkpoint",
]
