"""A training script of one's own, from the public names of o1core: one round on tiny-o1 with a reward of one's own.

    python -m bench.own_training_loop

A few minutes on one CPU core. The README prints the script; `o1core prune` has resuming, logs and further rounds besides.
"""

import torch

import o1core
from o1core.problems import arithmetic_problems

policy = o1core.load()  # tiny-o1, or a folder: its model, tokenizer and engine
problems = arithmetic_problems("train", 200, seed=0)  # or o1core.load_problems("train.jsonl")[:200]
test = arithmetic_problems("test", 200, seed=0)
trainer = o1core.Trainer(policy, lr=3e-4, ratio="token", eps_low=0.5, eps_high=1.0, micro_tokens=2048)


# [P, K] each. It may ask for more by name, and `o1core prune --reward FILE.py:reward` takes it too: o1core/rewards.py.
def reward(lengths: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    return lengths.mean(1, keepdim=True) / lengths - 1 + 2 * (correct - correct.mean(1, keepdim=True))


before = policy.evaluate(test)
rollouts = policy.sample(problems, n=16)  # graded; folder=... keeps and resumes them
for batch in rollouts.score(reward).pick(4).split(128):
    print(trainer.step(batch))  # loss, ratio, clip fraction, KL
print(o1core.compare(before, policy.evaluate(test)))
policy.save("runs/own-loop")
