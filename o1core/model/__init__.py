"""A Hugging Face checkpoint in memory: its configuration, its transformer, its tokenizer and chat template, and back."""

from .checkpoint import (
    Piece,
    fill,
    layout,
    load,
    load_weights,
    open_tensors,
    published_tensors,
    save_checkpoint,
    stored_tensors,
    weight_files,
    write_checkpoint,
)
from .config import DTYPES, ModelConfig, read_config
from .tokenizer import Tokenizer
from .transformer import THREAD_GRAIN, Attend, Transformer, causal_attention, initialise

__all__ = [
    "DTYPES",
    "THREAD_GRAIN",
    "Attend",
    "ModelConfig",
    "Piece",
    "Tokenizer",
    "Transformer",
    "causal_attention",
    "fill",
    "initialise",
    "layout",
    "load",
    "load_weights",
    "open_tensors",
    "published_tensors",
    "read_config",
    "save_checkpoint",
    "stored_tensors",
    "weight_files",
    "write_checkpoint",
]
