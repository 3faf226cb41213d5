"""A training script of one's own, from the public names of o1core: one round of O1-Pruner on tiny-o1. The README prints it.

    python -m bench.own_training_loop

About 3 minutes on one CPU core. It prunes 105.4 tokens at 81.9 % right to 63.2 tokens at 90.8 % on its own training
problems; `o1core prune` has held-out problems, resuming, logs and a second round besides.
"""

from pathlib import Path

import torch

import o1core
from o1core.model import save_checkpoint
from o1core.problems import arithmetic_problems
from o1core.recipe import ExecutionSettings, ObjectiveSettings, OptimiserSettings
from o1core.rollout import sample_problems
from o1core.runs import EMBEDDED
from o1core.training import Updater, reference_logprobs
from o1core.types import Example, lengths_and_verdicts

out = Path("runs/own-loop")
model, tokenizer = o1core.load(EMBEDDED, torch.float32)  # or a folder
engine = o1core.Engine(model, tokenizer, slots=128)
problems = arithmetic_problems("train", 200, seed=0)
params = o1core.SamplingParams(n=16, max_new_tokens=440)

groups = sample_problems(engine, tokenizer, problems, params, out / "before", "sample")
lengths, correct = lengths_and_verdicts(groups)  # [P, K]
reward = o1core.rewards.length_harmonizing(lengths, correct, lam=2.0)  # or your own
examples = [
    Example(group.problem, group.prompt, s.ids, s.logprobs, weight, s.finish_reason == "length")
    for group, weights in zip(groups, reward.tolist())
    for s, weight in zip(group.samples, weights)
]

objective = ObjectiveSettings(ratio="token", eps_low=0.5, eps_high=1.0)
execution = ExecutionSettings(micro_tokens=2048)
updater = Updater(model, tokenizer.size, objective, OptimiserSettings(grad_clip=1.0), execution)
reference = reference_logprobs(model, tokenizer.size, examples, execution.micro_tokens)
for batch in torch.randperm(len(examples)).split(128):
    print(updater.step([examples[i] for i in batch], [reference[i] for i in batch], lr=3e-4))

save_checkpoint(model, EMBEDDED, out / "pruned")
groups = sample_problems(engine, tokenizer, problems, params, out / "after", "sample again")
for name, (tokens, right) in {"before": (lengths, correct), "after": lengths_and_verdicts(groups)}.items():
    print(f"{name}: {tokens.float().mean():.1f} tokens, {right.float().mean():.1%} right")
