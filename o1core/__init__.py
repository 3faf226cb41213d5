"""o1core: O1-Pruner from scratch. The floors, each using those below it: kernels, model, engine, training, command line."""

from pathlib import Path

import torch

from .model.checkpoint import load_weights
from .model.config import read_config
from .model.tokenizer import Tokenizer
from .model.transformer import Transformer
from .rollout import Completion, Engine, SamplingParams

__all__ = ["Completion", "Engine", "SamplingParams", "Tokenizer", "Transformer", "load"]


def load(path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"):
    """Open a Hugging Face folder.

    dtype: of the weights, default the one config.json states. Returns (Transformer, Tokenizer). Raises UserError
    naming the file and the field where the folder is not a whole checkpoint of a supported family.
    """
    folder = Path(path)
    config = read_config(folder)
    tokenizer = Tokenizer(folder, config.vocab_size)
    return load_weights(folder, dtype or config.dtype, torch.device(device)), tokenizer
