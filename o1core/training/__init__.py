"""Training: what is picked from the rollouts, the objectives, one update, and what a run keeps of it on disk."""

from .objectives import Objective, objective_of
from .optimisers import learning_rate, load_optimiser_modules, select_trained
from .pick import Picked, Rollouts, Scored, try_reward
from .round_files import kept_reference, log_line, open_log, read_log, trim_log
from .state import Progress, durable, has_states, load_state, rewind, save_state
from .teacher import forget_teachers, open_teacher
from .tracker import Rows, Send, check_installed, open_tracker, send_nothing
from .update import Updater, reference_logprobs, sampler_logprobs, with_reference

__all__ = [
    "Objective",
    "Picked",
    "Progress",
    "Rollouts",
    "Rows",
    "Scored",
    "Send",
    "Updater",
    "check_installed",
    "durable",
    "forget_teachers",
    "has_states",
    "kept_reference",
    "learning_rate",
    "load_optimiser_modules",
    "load_state",
    "log_line",
    "objective_of",
    "open_log",
    "open_teacher",
    "open_tracker",
    "read_log",
    "reference_logprobs",
    "rewind",
    "sampler_logprobs",
    "save_state",
    "select_trained",
    "send_nothing",
    "trim_log",
    "try_reward",
    "with_reference",
]
