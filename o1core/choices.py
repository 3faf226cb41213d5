"""What flags may be, where the code behind them needs torch: so that `o1core prune --help` answers at once."""

from typing import Literal

TINY = "tiny-o1"  # the name of the embedded model
DTYPE_NAMES = ("float32", "bfloat16", "float16")
Offload = Literal["none", "moments", "optimiser"]
PATIENCE = 1800.0  # seconds, the default of --timeout
TRACKERS = ("wandb", "trackio", "tensorboard")
ADVANTAGES = ("reward", "z-score", "centred", "rloo", "group", "batch")
BUDGETED = ("l1-exact", "l1-max")  # rewards whose limits are budgets stated in the prompt
LORA_TARGETS = {  # name: the fused projections that get adapters
    "all": ("qkv", "o", "gate_up", "down"),
    "attention": ("qkv", "o"),
    "mlp": ("gate_up", "down"),
}
FEW_METHODS = (  # of `study compare`: the paper's, and two after it
    *("o1-pruner", "fast-prompt", "sft", "dpo"),
    *("correct-only", "arora-zanette"),
)
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of `dial`
MOST_SCALE = 10.0  # beyond it nothing is left of the model
