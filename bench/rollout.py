"""Rollouts per second: our engine beside transformers' generate, in one run.

    python -m bench.rollout --model DIR --data FILE [--prompts 16 --samples 4 --new-tokens 128 --runs 3] [--json FILE]

Same checkpoint, dtype (bf16), prompts and sampling law (temperature 1, no filter) for all, in turn, each run in a process
of its own: o1core as its command runs it, transformers as it comes, and transformers with
o1core.rollout.memory.keep_freed_memory, which spares it most of its page faults. Two cases: "fixed", where every
completion has exactly --new-tokens (end-of-text is switched off on both sides), and "mixed", where each ends where it
ends, at --mixed-tokens at the latest: there transformers decodes until the slowest of the batch is done, and only
tokens up to the end of a completion are counted. The floor counts matrix multiplications alone, at the best rate of
a large bf16 one measured between the runs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import o1core
from bench.peers import import_transformers
from o1core import Tokenizer, Transformer
from o1core.problems import load_problems
from o1core.rollout import keep_freed_memory
from o1core.training import peak_memory

ENGINES = ("o1core", "transformers", "transformers, memory kept")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    ap.add_argument("--data", type=Path, required=True, help="a problem file")
    ap.add_argument("--prompts", type=int, default=16, help="problems (default: %(default)s)")
    ap.add_argument("--samples", type=int, default=4, help="completions of each (default: %(default)s)")
    ap.add_argument("--new-tokens", type=int, default=128, help="of a completion, fixed case (default: %(default)s)")
    ap.add_argument("--mixed-tokens", type=int, default=512, help="at most, mixed case (default: %(default)s)")
    ap.add_argument("--runs", type=int, default=3, help="of each engine in each case (default: %(default)s)")
    ap.add_argument("--cases", nargs="+", default=["fixed", "mixed"], choices=["fixed", "mixed"])
    ap.add_argument("--json", type=Path, help="write the figures there too")
    ap.add_argument("--child", nargs=3, metavar=("ENGINE", "CASE", "SEED"), help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.child:
        print(json.dumps(one_run(args, *args.child)))
        return
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    for case in args.cases:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
        peak = product_rate()
        for seed in range(args.runs):
            for name, found in runs.items():
                command = [sys.executable, "-m", "bench.rollout", *sys.argv[1:], "--child", name, case, str(seed)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
                peak = max(peak, product_rate())
        report(args, case, runs, peak)
        results[case] = runs | {"product_flops": peak}
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


def report(args: argparse.Namespace, case: str, runs: dict[str, list[dict[str, float]]], peak: float) -> None:
    limit = args.new_tokens if case == "fixed" else args.mixed_tokens
    print(f"{case}: {args.prompts} prompts x {args.samples} samples x {limit} new tokens, {args.runs} runs in turn")
    ours = [run["rate"] for run in runs["o1core"]]
    for name, found in runs.items():
        rates = [run["rate"] for run in found]
        line = " / ".join(f"{x:.0f}" for x in quantiles(rates))
        ratio = " / ".join(f"{x:.2f}" for x in quantiles([a / b for a, b in zip(ours, rates)]))
        memory = max(run["peak_gib"] for run in found)
        print(f"  {name:26} tokens/s p20 / p50 / p80: {line:18} o1core is {ratio} x   peak {memory:.1f} GiB")
    floor = peak / runs["o1core"][0]["flops_a_token"]
    print(
        f"  floor: {floor:.0f} tokens/s if matrix multiplications were all, at {peak / 1e12:.2f} TFLOP/s; "
        f"o1core reaches {np.median(ours) / floor:.0%} of it",
        flush=True,
    )


def one_run(args: argparse.Namespace, name: str, case: str, seed: str) -> dict[str, float]:
    """Tokens a second of one engine, its model loaded before the clock starts, and the process's peak memory."""
    if name != "transformers":
        keep_freed_memory()
    limit = args.new_tokens if case == "fixed" else args.mixed_tokens
    model, tokenizer = o1core.load(args.model, torch.bfloat16)
    prompts = [tokenizer.prompt(p.question, p.system) for p in load_problems(args.data, limit=args.prompts)]
    flops = flops_a_token(model, prompts, args.samples, limit)
    if name == "o1core":
        rate = ours(model, tokenizer, prompts, args.samples, limit, case, int(seed))
    else:
        del model
        transformers = import_transformers()
        theirs = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
        rate = generate(theirs, tokenizer, prompts, args.samples, limit, case, int(seed))
    return {"rate": rate, "flops_a_token": flops, "peak_gib": peak_memory(torch.device("cpu")) / 1024}


def ours(
    model: Transformer, tokenizer: Tokenizer, prompts: list[list[int]], samples: int, limit: int, case: str, seed: int
) -> float:
    """Tokens a second, prefill included."""
    engine = o1core.Engine(model, tokenizer, slots=len(prompts) * samples)
    if case == "fixed":
        engine.eos = frozenset()
    start = time.perf_counter()
    done = engine.generate(prompts, o1core.SamplingParams(n=samples, max_new_tokens=limit, seed=seed))
    return sum(len(c.ids) for group in done for c in group) / (time.perf_counter() - start)


@torch.inference_mode()
def generate(
    theirs: Any, tokenizer: Tokenizer, prompts: list[list[int]], samples: int, limit: int, case: str, seed: int
) -> float:
    """Tokens a second of transformers' generate on the whole batch, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(seed)
    start = time.perf_counter()
    out = theirs.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        num_return_sequences=samples,
        max_new_tokens=limit,
        min_new_tokens=limit if case == "fixed" else None,
        eos_token_id=list(tokenizer.eos_ids),
        pad_token_id=0,
    )
    seconds = time.perf_counter() - start
    made = out[:, width:]
    if case == "fixed":
        return made.numel() / seconds
    ends = torch.isin(made, torch.tensor(tokenizer.eos_ids))
    counts = torch.where(ends.any(1), ends.int().argmax(1) + 1, made.shape[1])
    return counts.sum().item() / seconds


def flops_a_token(model: Transformer, prompts: list[list[int]], samples: int, new: int) -> float:
    """FLOPs of the matrix multiplications for one new token and its share of the prefill, without attention's own."""
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    prefill = 2 * blocks * sum(map(len, prompts)) / (len(prompts) * samples * new)
    return 2 * (blocks + model.lm_head.numel()) + prefill


def product_rate(size: int = 4096, runs: int = 5) -> float:
    """FLOP/s of a large bf16 matrix multiplication here: the best of a few."""
    a, b = torch.randn(2, size, size).to(torch.bfloat16)
    best = 0.0
    for _ in range(runs):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def quantiles(values: list[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, [0.2, 0.5, 0.8])]


if __name__ == "__main__":
    main()
