"""The methods: what each sets of a recipe, and nothing else. All of them are one loop (o1core/runs/loop.py).

The first five are O1-Pruner and its baselines (arXiv 2501.12570), the others what came after. The formulas of their rewards
are in o1core/rewards.py, those of their losses in o1core/training/objectives.py and
kernels/__init__.py. What depends on the model (learning rates, lengths, rounds) is the recipe's: its own settings for a
method are under "methods" in its file.
"""

ON_POLICY = {"objective": "surrogate", "ratio": "token", "eps_low": 0.2, "eps_high": 0.2}

METHODS: dict[str, dict] = {
    # As the recipe says: `paper` is the paper's, other recipes fit it to a model.
    "o1-pruner": {},
    # The paper's own objective, whatever the recipe: one round, m = 2, ratio of the sequence. Answers that were cut off are
    # wrong here as everywhere, so that all methods are measured by one rule; the paper keeps them (--truncated keep).
    "o1-pruner-paper": {
        "objective": "surrogate",
        "reward": "length-harmonizing",
        "advantage": "reward",
        "reward_low": None,
        "reward_high": None,
        "lam": 2.0,
        "ratio": "sequence",
        "eps_low": 0.2,
        "eps_high": 0.2,
        "rounds": 1,
        "picked": 2,
        "epochs": 1,
        "batch": 32,
        "warmup": 0.1,
        "schedule": "cosine",
        "grad_clip": 10.0,
        "dynamic_sampling": False,
        "instruction": "none",
    },
    "fast-prompt": {"objective": "none", "instruction": "fast"},
    "sft": {"objective": "sft", "picked": 2, "rounds": 1},
    "dpo": {"objective": "dpo", "dpo_beta": 0.1, "rounds": 1},
    # The length counts among right answers only; the rest is O1-Pruner's.
    "correct-only": {"objective": "surrogate", "reward": "correct-only"},
    # arXiv 2510.15110: truncation as the only penalty, advantages over the batch, clip-higher, groups without variance
    # dropped.
    "dler": ON_POLICY | {"eps_high": 0.28, "reward": "truncation", "advantage": "batch", "dynamic_sampling": True},
    # arXiv 2502.04463
    "arora-zanette": ON_POLICY | {"reward": "arora-zanette", "advantage": "rloo", "alpha": 0.4},
    # arXiv 2501.12599
    "kimi": ON_POLICY | {"reward": "kimi", "advantage": "centred", "alpha": 1.0},
    # arXiv 2506.05256
    "alp": ON_POLICY | {"reward": "alp", "advantage": "group", "alpha": 0.1},
    # arXiv 2504.21370
    "shorter-better": ON_POLICY | {"reward": "shorter-better", "advantage": "group", "lam": 2.0, "alpha": 1e-3},
    # arXiv 2603.08000
    "smart-thinker": ON_POLICY | {"reward": "smart-thinker", "advantage": "centred"},
    # prime-rl's linear length penalty; it centres rewards on their problem's mean and divides by nothing
    "prime-rl": ON_POLICY | {"reward": "prime-rl", "advantage": "centred", "alpha": 0.3},
    # prime-rl's later rule, which pays right answers for being shorter than usual and takes from none
    "prime-rl-gate": ON_POLICY | {"reward": "prime-rl-gate", "advantage": "centred"},
    # arXiv 2601.03969: outliers of solved problems count as wrong; its 32 samples a problem
    "dot": ON_POLICY | {"reward": "dot", "advantage": "group", "samples": 32, "picked": 32},
    # arXiv 2510.04474: the length weighs right answers against each other; lambda as in its released scripts
    "drpo": ON_POLICY | {"reward": "drpo", "advantage": "reward", "lam": 0.1},
    # arXiv 2503.14476: clip-higher, groups without variance dropped, soft overlong punishment
    "dapo": ON_POLICY
    | {"eps_high": 0.28, "reward": "overlong", "advantage": "group", "dynamic_sampling": True, "alpha": 0.25},
    # arXiv 2505.18086: length counts in the most often solved half of the problems
    "grpo-lambda": ON_POLICY | {"reward": "grpo-lambda", "advantage": "group", "lam": 0.5, "alpha": 0.4},
    # arXiv 2605.09806: accuracy and efficiency normalised apart and mixed; targets of 1,000 to 8,000 tokens
    "lead": ON_POLICY | {"reward": "lead", "advantage": "batch", "length_limit": 8000, "length_floor": 1000},
    # arXiv 2505.11225: against the shortest right answer of all earlier rounds
    "hapo": ON_POLICY | {"reward": "hapo", "advantage": "group", "alpha": 1.0, "rounds": 2},
    # arXiv 2505.18298: lambda per token follows the accuracy of the rounds
    "a-dlp": ON_POLICY | {"reward": "a-dlp", "advantage": "group", "alpha": 1e-3, "memory_rate": 1e-3},
    # arXiv 2508.09726: trains on the half of the samples with most reward per token (8 of 16 is one of the paper's settings)
    "gfpo": ON_POLICY | {"reward": "accuracy", "advantage": "group", "retained": 0.5, "retained_by": "efficiency"},
    # The recipe's O1-Pruner with another clip. arXiv 2506.13585: no lower bound; arXiv 2510.13786: weights up to 5
    "cispo": {"objective": "surrogate", "ratio": "cispo", "eps_low": 1.0, "eps_high": 4.0},
    # arXiv 2507.18071: its ratio, clip and advantage within the group, on the recipe's reward
    "gspo": {
        "objective": "surrogate",
        "ratio": "sequence_mean",
        "eps_low": 3e-4,
        "eps_high": 4e-4,
        "advantage": "group",
    },
    # arXiv 2603.05433: self-distillation from a teacher that is asked to be concise; answers are not used
    "crisp": {"objective": "crisp", "teacher_instruction": "concise"},
    # arXiv 2503.04697: GRPO's advantage, the budget in the prompt.
    "l1-exact": ON_POLICY | {"reward": "l1-exact", "advantage": "group", "instruction": "exact", "alpha": 3e-4},
    "l1-max": ON_POLICY | {"reward": "l1-max", "advantage": "group", "instruction": "max", "alpha": 3e-4},
}
