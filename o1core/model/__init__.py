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
from .config import DTYPES, ModelConfig, check_trained, read_config
from .download import find_model
from .lora import (
    LORA_TARGETS,
    AdaptedLinear,
    adapted,
    add_adapters,
    draw_adapters,
    fold_adapters,
    merged_weights,
    save_adapter,
)
from .tokenizer import Tokenizer
from .transformer import THREAD_GRAIN, Attend, Transformer, causal_attention, initialise

__all__ = [
    "DTYPES",
    "LORA_TARGETS",
    "THREAD_GRAIN",
    "AdaptedLinear",
    "Attend",
    "ModelConfig",
    "Piece",
    "Tokenizer",
    "Transformer",
    "adapted",
    "add_adapters",
    "causal_attention",
    "check_trained",
    "draw_adapters",
    "fill",
    "find_model",
    "fold_adapters",
    "initialise",
    "layout",
    "load",
    "load_weights",
    "merged_weights",
    "model_fingerprint",
    "open_tensors",
    "published_tensors",
    "read_config",
    "save_adapter",
    "save_checkpoint",
    "stored_tensors",
    "weight_files",
    "write_checkpoint",
]
