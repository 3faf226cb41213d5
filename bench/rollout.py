"""Rollouts per second: our engine with lanes and with pages beside transformers' generate, in one run.

    python -m bench.rollout --model DIR --data FILE [--prompts 16 --samples 4 --new-tokens 128 --runs 3] [--json FILE]
    python -m bench.rollout --engines lanes pages --shape smollm2-135m    # random weights in the shape of a model

Same checkpoint, dtype, prompts and sampling law (temperature 1, no filter) for all, in turn, each run in a process
of its own: o1core as its command runs it with each of its KV caches, transformers as it comes, and transformers with
o1core.rollout.memory.keep_freed_memory, which spares it most of its page faults. Two cases: "fixed", where every
completion has exactly --new-tokens (end-of-text is switched off on both sides), and "mixed", where each ends where it
ends, at --mixed-tokens at the latest: there transformers decodes until the slowest of the batch is done, and only
tokens up to the end of a completion are counted. The floor counts matrix multiplications alone, at the best rate of
a large one measured between the runs. Random weights have no end-of-text: there the mixed case ends a completion with a
chance that makes them a third of --mixed-tokens long on average, and transformers does not take part. `--clock processor`
counts the processor time of all threads, which other work on the machine changes little.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

import o1core.model
from bench.peers import import_transformers
from o1core import Tokenizer, Transformer
from o1core.model import DTYPES, ModelConfig, initialise
from o1core.problems import load_problems
from o1core.rollout import keep_freed_memory
from o1core.runs import peak_memory

OURS, THEIRS = ("lanes", "pages"), ("transformers", "transformers, memory kept")
ENGINES = OURS + THEIRS
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def shape(vocab: int, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> ModelConfig:
    sizes = vocab, hidden, ffn, layers, heads, kv_heads, head_dim
    return ModelConfig("Qwen2ForCausalLM", *sizes, 1e-6, 1e6, 32768, True, torch.float32)


SHAPES = {
    "qwen2.5-0.5b": shape(151936, 896, 4864, 24, 14, 2, 64),
    "smollm2-135m": shape(49152, 576, 1536, 30, 9, 3, 64),
    "tiny-o1": shape(512, 128, 384, 5, 4, 2, 32),
}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", type=Path, help="a Hugging Face folder (default: random weights, our engine alone)")
    ap.add_argument("--data", type=Path, help="a problem file, for a model with a tokenizer")
    ap.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b", help="of random weights (default: %(default)s)")
    ap.add_argument("--layers", type=int, help="of random weights (default: as many as the shape has)")
    ap.add_argument("--prompt-tokens", type=int, default=100, help="where weights are random (default: %(default)s)")
    ap.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(default: %(default)s)")
    ap.add_argument("--engines", nargs="+", choices=ENGINES, help="(default: all that can run)")
    ap.add_argument("--prompts", type=int, default=16, help="problems (default: %(default)s)")
    ap.add_argument("--samples", type=int, default=4, help="completions of each (default: %(default)s)")
    ap.add_argument("--new-tokens", type=int, default=128, help="of a completion, fixed case (default: %(default)s)")
    ap.add_argument("--mixed-tokens", type=int, default=512, help="at most, mixed case (default: %(default)s)")
    ap.add_argument("--runs", type=int, default=3, help="of each engine in each case (default: %(default)s)")
    ap.add_argument("--cases", nargs="+", default=["fixed", "mixed"], choices=["fixed", "mixed"])
    ap.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="seconds by which a run is timed (default: %(default)s)"
    )
    ap.add_argument("--json", type=Path, help="write the figures there too")
    ap.add_argument("--child", nargs=3, metavar=("ENGINE", "CASE", "SEED"), help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.child:
        print(json.dumps(one_run(args, *args.child)))
        return
    if args.model is not None and args.data is None:
        ap.error("--model needs --data, a problem file")
    engines = args.engines or (ENGINES if args.model else OURS)
    if args.model is None and not set(engines) <= set(OURS):
        ap.error("--engines: transformers needs --model")
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    for case in args.cases:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        peak = product_rate(DTYPES[args.dtype])
        for seed in range(args.runs):
            for name, found in runs.items():
                command = [sys.executable, "-m", "bench.rollout", *sys.argv[1:], "--child", name, case, str(seed)]
                env = os.environ | ({"O1CORE_CACHE": name} if name in OURS else {})
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
                found.append(json.loads(done.stdout.splitlines()[-1]))
                peak = max(peak, product_rate(DTYPES[args.dtype]))
        report(args, case, runs, peak)
        results[case] = runs | {"product_flops": peak}
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


def report(args: argparse.Namespace, case: str, runs: dict[str, list[dict[str, float]]], peak: float) -> None:
    limit = args.new_tokens if case == "fixed" else args.mixed_tokens
    print(f"{case}: {args.prompts} prompts x {args.samples} samples x {limit} new tokens, {args.runs} runs in turn")
    first = next(iter(runs))
    ours = [run["rate"] for run in runs[first]]
    for name, found in runs.items():
        rates = [run["rate"] for run in found]
        line = " / ".join(f"{x:.0f}" for x in quantiles(rates))
        ratio = " / ".join(f"{x:.2f}" for x in quantiles([a / b for a, b in zip(ours, rates)]))
        memory = max(run["peak_gib"] for run in found)
        print(f"  {name:26} tokens/s p20 / p50 / p80: {line:18} {first} is {ratio} x   peak {memory:.1f} GiB")
    floor = peak / runs[first][0]["flops_a_token"]
    print(
        f"  floor: {floor:.0f} tokens/s if matrix multiplications were all, at {peak / 1e12:.2f} TFLOP/s; "
        f"{first} reaches {np.median(ours) / floor:.0%} of it",
        flush=True,
    )


def one_run(args: argparse.Namespace, name: str, case: str, seed: str) -> dict[str, float]:
    """Tokens a second of one engine, its model loaded before the clock starts, and the process's peak memory."""
    if name != "transformers":
        keep_freed_memory()
    limit = args.new_tokens if case == "fixed" else args.mixed_tokens
    dtype = DTYPES[args.dtype]
    if args.model is None:
        model, tokenizer, prompts = made_up(args)
    else:
        model, tokenizer = o1core.model.load(args.model, dtype)
        prompts = [tokenizer.prompt(p.question, p.system) for p in load_problems(args.data, limit=args.prompts)]
    flops = flops_a_token(model, prompts, args.samples, limit)
    if name in OURS:
        rate = ours(args, model, tokenizer, prompts, limit, case, int(seed))
    else:
        del model
        transformers = import_transformers()
        theirs = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
        rate = generate(args, theirs, tokenizer, prompts, limit, case, int(seed))
    return {"rate": rate, "flops_a_token": flops, "peak_gib": peak_memory(torch.device("cpu")) / 1024}


def made_up(args: argparse.Namespace) -> tuple[Transformer, Tokenizer, list[list[int]]]:
    """A model with random weights, a tokenizer of which many ids end a completion, and prompts."""
    config = SHAPES[args.shape]
    vocab = config.vocab_size
    model = Transformer(replace(config, num_layers=args.layers or config.num_layers)).to(DTYPES[args.dtype])
    initialise(model, seed=0)
    ends = 3 * vocab // args.mixed_tokens
    tokenizer = SimpleNamespace(eos_ids=tuple(range(ends)), size=vocab)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(ends, vocab, (args.prompts, args.prompt_tokens), generator=generator)
    return model, cast(Tokenizer, tokenizer), prompts.tolist()


def ours(
    args: argparse.Namespace,
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    limit: int,
    case: str,
    seed: int,
) -> float:
    """Tokens a second, prefill included."""
    engine = o1core.Engine(model, tokenizer, slots=len(prompts) * args.samples)
    clock = CLOCKS[args.clock]
    if case == "fixed":
        engine.eos = frozenset()
    start = clock()
    done = engine.generate(prompts, o1core.SamplingParams(n=args.samples, max_new_tokens=limit, seed=seed))
    return sum(len(c.ids) for group in done for c in group) / (clock() - start)


@torch.inference_mode()
def generate(
    args: argparse.Namespace,
    theirs: Any,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    limit: int,
    case: str,
    seed: int,
) -> float:
    """Tokens a second of transformers' generate on the whole batch, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(seed)
    clock = CLOCKS[args.clock]
    start = clock()
    out = theirs.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        num_return_sequences=args.samples,
        max_new_tokens=limit,
        min_new_tokens=limit if case == "fixed" else None,
        eos_token_id=list(tokenizer.eos_ids),
        pad_token_id=0,
    )
    seconds = clock() - start
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


def product_rate(dtype: torch.dtype, size: int = 2048, runs: int = 5) -> float:
    """FLOP/s of a large matrix multiplication here: the best of a few."""
    a, b = torch.randn(2, size, size).to(dtype)
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
