"""How far the policy that samples is from the one that is trained, with adapters in a low precision.

    python -m bench.gap --model DIR --data FILE [--rank 16] [--std 3e-4] [--problems 16] [--samples 4] [--max-new-tokens 128]

Merged into bf16 weights, an adapter is rounded to what bf16 can tell apart beside the weight, so what samples is another
policy than what is trained (NVIDIA-NeMo/RL issue 3696). Random adapters, B of standard deviation --std, stand in for trained
ones. Three samplers answer the same problems: without adapters, which is the floor that the precision sets; with adapters
merged, as `o1core prune` samples; and with adapters unmerged. A gap is the trainer's log-prob of a sampled token less the
sampler's, in nats, and is held against how far the adapters move the policy at all. The speeds say what unmerged costs.
"""

import argparse
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import o1core
from o1core import Policy, Problem
from o1core.errors import UserError
from o1core.model import DTYPES, adapted
from o1core.types import Example


def sampled(policy: Policy, problems: list[Problem], samples: int, longest: int) -> tuple[list[Example], float]:
    """Completions at temperature 1, with the trainer's log-probs of their tokens, and tokens sampled a second."""
    start = time.perf_counter()
    rollouts = policy.sample(problems, n=samples, max_new_tokens=longest, temperature=1.0, top_p=1.0)
    speed = rollouts.lengths.sum().item() / (time.perf_counter() - start)
    picked = rollouts.score("accuracy").pick(samples)
    return [example for batch in picked.split(64) for example in batch], speed


def gaps(examples: list[Example], others: list[Tensor] | None = None) -> Tensor:
    """float32, of every sampled token: the trainer's log-prob less the sampler's, or less `others`, without their sign."""
    held = others or [e.logprobs for e in examples]
    found = [e.reference - other for e, other in zip(examples, held) if e.reference is not None]
    return torch.cat(found).abs()


def unmerged() -> AbstractContextManager[object]:
    """Inside, a policy samples with its adapters as they are trained."""
    return mock.patch("o1core.policy.merged_weights", lambda model: nullcontext())


def measure(policy: Policy, problems: list[Problem], args: argparse.Namespace) -> list[str]:
    """The rows of the table."""
    o1core.Trainer(policy, lora_rank=args.rank)
    modules = adapted(policy.trained)
    rows = []
    for name, std, within in (
        ("none", 0.0, nullcontext),
        ("merged", args.std, nullcontext),
        ("unmerged", args.std, unmerged),
    ):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for module in modules:
                module.lora_b.copy_(std * torch.randn(module.lora_b.shape, generator=generator))
        with within():
            sampled(policy, problems[:1], 1, 2)  # what a first call does once is not timed
            examples, speed = sampled(policy, problems, args.samples, args.max_new_tokens)
        of_sampler = gaps(examples)
        with torch.no_grad():
            for module in modules:
                module.lora_b.zero_()
        moved = gaps(examples, policy.reference(examples)).mean().item()
        cells = (f"{value:.2g}" for value in (of_sampler.mean().item(), of_sampler.max().item(), moved))
        rows.append(f"| {name} | {' | '.join(cells)} | {len(of_sampler):,} | {speed:.0f} |")
    return rows


def main() -> int:
    ap = argparse.ArgumentParser(prog="python -m bench.gap", description=__doc__.split("\n")[0])
    ap.add_argument(
        "--model", type=Path, default=o1core.EMBEDDED, help="a Hugging Face folder (default: the embedded model)"
    )
    ap.add_argument("--data", type=Path, required=True, help="problems, as for o1core prune")
    ap.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of the weights that compute (default: %(default)s)"
    )
    ap.add_argument("--rank", type=int, default=16, help="of the adapters (default: %(default)s)")
    ap.add_argument("--std", type=float, default=3e-4, help="standard deviation of B (default: %(default)s)")
    ap.add_argument("--problems", type=int, default=16, help="the first so many (default: %(default)s)")
    ap.add_argument("--samples", type=int, default=4, help="of each (default: %(default)s)")
    ap.add_argument("--max-new-tokens", type=int, default=128, help="longest completion (default: %(default)s)")
    args = ap.parse_args()
    try:
        policy = o1core.load(args.model, args.dtype, max_new_tokens=args.max_new_tokens)
        rows = measure(policy, o1core.load_problems(args.data)[: args.problems], args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{args.dtype}, rank {args.rank}, B of standard deviation {args.std:g}; nats a token")
    print("| adapters of the sampler | mean gap | largest gap | moved by the adapters | tokens | tokens a second |")
    print("|---|---|---|---|---|---|", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
