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
from .folder import checkpoint_file, read_text
from .lora import (
    LORA_TARGETS,
    AdaptedLinear,
    adapted,
    add_adapters,
    draw_adapters,
    fold_adapters,
    load_adapter,
    merged_weights,
    save_adapter,
)
from .tokenizer import Tokenizer
from .transformer import THREAD_GRAIN, Attend, Transformer, causal_attention, initialise
from .trees import Trees

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
    "Trees",
    "adapted",
    "add_adapters",
    "causal_attention",
    "check_trained",
    "checkpoint_file",
    "draw_adapters",
    "fill",
    "find_model",
    "fold_adapters",
    "initialise",
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
    "save_adapter",
    "save_checkpoint",
    "stored_tensors",
    "weight_files",
    "write_checkpoint",
]
