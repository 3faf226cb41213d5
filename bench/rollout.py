"""Rollouts per second: our engine beside transformers' generate, in one run.

    python -m bench.rollout --model DIR --data FILE [--prompts 16 --samples 4 --new-tokens 128 --runs 3] [--json FILE]

Same checkpoint, dtype (bf16), prompts and sampling law (temperature 1, no filter) for both, in turn. Two cases: "fixed",
where every completion has exactly --new-tokens (end-of-text is switched off on both sides), and "mixed", where each ends
where it ends, at --mixed-tokens at the latest: there transformers decodes until the slowest of the batch is done, and
only tokens up to the end of a completion are counted. The floor is the products' FLOPs over the rate of a large bf16
product measured in the same run.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import o1core
from bench.peers import import_transformers
from o1core.memory import keep_freed_memory
from o1core.problems import load_problems


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    ap.add_argument("--data", type=Path, required=True, help="a problem file")
    ap.add_argument("--prompts", type=int, default=16, help="problems (default: %(default)s)")
    ap.add_argument("--samples", type=int, default=4, help="completions of each (default: %(default)s)")
    ap.add_argument("--new-tokens", type=int, default=128, help="of a completion, fixed case (default: %(default)s)")
    ap.add_argument("--mixed-tokens", type=int, default=256, help="at most, mixed case (default: %(default)s)")
    ap.add_argument("--runs", type=int, default=3, help="of each engine in each case (default: %(default)s)")
    ap.add_argument("--cases", nargs="+", default=["fixed", "mixed"], choices=["fixed", "mixed"])
    ap.add_argument("--json", type=Path, help="write the figures there too")
    args = ap.parse_args()
    keep_freed_memory()
    transformers = import_transformers()
    model, tokenizer = o1core.load(args.model, torch.bfloat16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    prompts = [tokenizer.prompt(p.question, p.system) for p in load_problems(args.data, limit=args.prompts)]
    peak = product_rate()
    results = {"threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__}
    for case in args.cases:
        limit = args.new_tokens if case == "fixed" else args.mixed_tokens
        rates = {"o1core": [], "transformers": []}
        for run in range(args.runs):
            rates["o1core"].append(ours(model, tokenizer, prompts, args.samples, limit, case, run))
            rates["transformers"].append(generate(theirs, tokenizer, prompts, args.samples, limit, case, run))
        print(f"{case}: {args.prompts} prompts x {args.samples} samples x {limit} new tokens, {args.runs} runs in turn")
        for name, found in rates.items():
            print(f"  {name:13} tokens/s p20 / p50 / p80: " + " / ".join(f"{x:.0f}" for x in quantiles(found)))
        ratio = quantiles([a / b for a, b in zip(*rates.values())])
        print("  ratio         p20 / p50 / p80: " + " / ".join(f"{x:.2f}" for x in ratio))
        floor = peak / flops_a_token(model, prompts, args.samples, args.new_tokens)
        if case == "fixed":
            print(f"  floor         {floor:.0f} tokens/s: the products alone at {peak / 1e12:.2f} TFLOP/s; "
                  f"o1core reaches {np.median(rates['o1core']) / floor:.0%} of it")  # fmt: skip
        results[case] = rates | {"ratio": ratio, "floor": floor}
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


def ours(model, tokenizer, prompts, samples: int, limit: int, case: str, seed: int) -> float:
    """Tokens a second, prefill included."""
    engine = o1core.Engine(model, tokenizer, slots=len(prompts) * samples)
    if case == "fixed":
        engine.eos = frozenset()
    start = time.perf_counter()
    done = engine.generate(prompts, o1core.SamplingParams(n=samples, max_new_tokens=limit, seed=seed))
    return sum(len(c.ids) for group in done for c in group) / (time.perf_counter() - start)


@torch.inference_mode()
def generate(theirs, tokenizer, prompts, samples: int, limit: int, case: str, seed: int) -> float:
    """Tokens a second of transformers' generate on the whole batch, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(seed)
    start = time.perf_counter()
    out = theirs.generate(
        ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
        num_return_sequences=samples, max_new_tokens=limit, min_new_tokens=limit if case == "fixed" else None,
        eos_token_id=list(tokenizer.eos_ids), pad_token_id=0,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    made = out[:, width:]
    if case == "fixed":
        return made.numel() / seconds
    ends = torch.isin(made, torch.tensor(tokenizer.eos_ids))
    counts = torch.where(ends.any(1), ends.int().argmax(1) + 1, made.shape[1])
    return counts.sum().item() / seconds


def flops_a_token(model, prompts, samples: int, new: int) -> float:
    """FLOPs of the products for one new token, its share of the prefill included. Attention's own are left out."""
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    prefill = 2 * blocks * sum(map(len, prompts)) / (len(prompts) * samples * new)
    return 2 * (blocks + model.lm_head.numel()) + prefill


def product_rate(size: int = 4096, runs: int = 5) -> float:
    """FLOP/s of a large bf16 product here: the best of a few."""
    a, b = torch.randn(2, size, size).to(torch.bfloat16)
    best = 0.0
    for _ in range(runs):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def quantiles(values: list[float]) -> list[float]:
    return np.quantile(values, [0.2, 0.5, 0.8]).tolist()


if __name__ == "__main__":
    main()
