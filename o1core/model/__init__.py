"""A Hugging Face checkpoint in memory: its configuration, its transformer, its tokenizer and chat template, and back."""

from .checkpoint import (
    layout,
    load,
    load_weights,
    published_tensors,
    save_checkpoint,
    stored_tensors,
    weight_files,
    write_checkpoint,
)
from .config import DTYPES, ModelConfig, read_config
from .tokenizer import Tokenizer
from .transformer import Attend, Transformer, causal_attention, initialise

__all__ = [
    "DTYPES",
    "Attend",
    "ModelConfig",
    "Tokenizer",
    "Transformer",
    "causal_attention",
    "initialise",
    "layout",
    "load",
    "load_weights",
    "published_tensors",
    "read_config",
    "save_checkpoint",
    "stored_tensors",
    "weight_files",
    "write_checkpoint",
]
