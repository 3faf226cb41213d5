"""Training: what is picked from the rollouts, the objectives, one update, the training state, and the rounds."""

from .log import read_log
from .loop import is_intact, sample_round, train
from .one_round import peak_memory
from .picking import Picked, between_percentiles, pick_examples
from .step import Updater, learning_rate, load_optimiser_modules, reference_logprobs, select_trained
from .tracker import TRACKERS, check_installed, open_tracker

__all__ = [
    "TRACKERS",
    "Picked",
    "Updater",
    "between_percentiles",
    "check_installed",
    "is_intact",
    "learning_rate",
    "load_optimiser_modules",
    "open_tracker",
    "peak_memory",
    "pick_examples",
    "read_log",
    "reference_logprobs",
    "sample_round",
    "select_trained",
    "train",
]
