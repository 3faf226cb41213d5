"""An optimiser step: ours beside transformers, all weights and LoRA; tokens a second, peak memory, and the floor.

    python -m bench.update [--config DIR] [--layers 8 --problems 1 --samples 4 --prompt 64 --completion 192] [--json FILE]

A step is the clipped surrogate (token ratio) over all completion tokens of a batch, its gradient, clipping and AdamW. The
samples of a problem share their prompt: o1core forwards it once for all that are in one micro-batch, transformers once for
each; tokens a second count it once for each either way. A micro-batch has as many rows for all.

Each way runs in a process of its own, in turn; o1core.rollout.keep_freed_memory is on for all. Weights are drawn: a step
takes as long with any, so only config.json is read (default: the shapes of Qwen2.5-0.5B). A way that is killed, for memory as
a rule, is a row that says so. Ways:

    o1core, o1core lora                       what `o1core prune` runs, without and with --lora-rank
    o1core checkpointing                      the same with --checkpointing
    transformers, transformers lora           its model, fp32 log-probs from whole logits; peft's adapters
    transformers chunked                      its body, log-probs by F.linear_cross_entropy in chunks

The first step of a process is reported separately, because it alone touches all memory for the first time. The floor is
the time of the matrix multiplications alone, of the rows that the way computes, each at the rate that its own shape reaches
here: forward, gradient of the input, and gradient of the weight where it is trained.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.peers import import_transformers
from o1core.model import DTYPES, ModelConfig, Transformer, add_adapters, draw_adapters, initialise, read_config
from o1core.recipe import Recipe
from o1core.rollout import keep_freed_memory
from o1core.runs import peak_memory
from o1core.training import Updater, with_reference
from o1core.types import Example

WAYS = ("o1core", "o1core lora", "o1core checkpointing", "transformers", "transformers lora", "transformers chunked")
QWEN = ModelConfig(  # Qwen2.5-0.5B and Qwen2.5-Coder-0.5B
    "Qwen2ForCausalLM", 151936, 896, 4864, 24, 14, 2, 64, 1e-6, 1e6, 32768, True, torch.bfloat16
)
EPS, CHUNK = 0.2, 512  # the clip; rows of logits at once, where a peer is asked (its own choice is slower here)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    args = arguments()
    if args.child:
        print(json.dumps(one_process(args, args.child)))
        return
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    ended: dict[str, str] = {}
    for _ in range(args.runs):
        for way in args.ways:
            if way in ended:  # it would be again
                continue
            command = [sys.executable, "-m", "bench.update", *sys.argv[1:], "--child", way]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode == 0:
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
            else:
                ended[way] = "killed" if done.returncode in (-9, 137) else f"failed ({done.returncode})"
    report(args, runs, ended)
    if args.json:
        found = {"threads": torch.get_num_threads(), "runs": runs, "ended": ended}
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--config", type=Path, help="a folder with a config.json (default: the shapes of Qwen2.5-0.5B)")
    ap.add_argument("--layers", type=int, default=8, help="of the model's, its first (default: %(default)s)")
    ap.add_argument("--problems", type=int, default=1, help="in a batch (default: %(default)s)")
    ap.add_argument("--samples", type=int, default=4, help="of each problem (default: %(default)s)")
    ap.add_argument("--prompt", type=int, default=64, help="tokens of a prompt (default: %(default)s)")
    ap.add_argument("--completion", type=int, default=192, help="tokens of a completion (default: %(default)s)")
    ap.add_argument("--micro-batch", type=int, default=4, help="whole sequences at once (default: %(default)s)")
    ap.add_argument("--steps", type=int, default=3, help="of a process, after its first (default: %(default)s)")
    ap.add_argument("--rank", type=int, default=32, help="of the adapters (default: %(default)s)")
    ap.add_argument("--dtype", choices=DTYPES, default="float32", help="that computes (default: %(default)s)")
    ap.add_argument("--runs", type=int, default=3, help="processes of each way (default: %(default)s)")
    ap.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    ap.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: seconds of the process itself, for a machine that others use too; with one thread",
    )
    ap.add_argument("--json", type=Path, help="write the figures there too")
    ap.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    return ap.parse_args()


def report(args: argparse.Namespace, runs: dict[str, list[dict[str, float]]], ended: dict[str, str]) -> None:
    """A line for each way; ratios are of the runs that followed one another."""
    tokens = args.problems * args.samples * (args.prompt + args.completion)
    print(
        f"{args.problems} x {args.samples} samples, {args.prompt} + {args.completion} tokens, micro-batch "
        f"{args.micro_batch}, {args.layers} layers, {args.dtype}, {torch.get_num_threads()} threads, {args.runs} runs in "
        f"turn, {args.clock} time"
    )
    base = next((way for way, found in runs.items() if found), "")
    for way, found in runs.items():
        if way in ended:
            print(f"  {way:22} {ended[way]} in run {len(found) + 1}")
        if not found:
            continue
        ratio = median(of_base["seconds"] / run["seconds"] for of_base, run in zip(runs[base], found))
        seconds, floor = median(run["seconds"] for run in found), min(run["floor"] for run in found)
        print(
            f"  {way:22} {tokens / seconds:7.0f} tokens/s, {ratio:5.2f} x {base}; "
            f"peak {max(run['peak_gib'] for run in found):5.2f} GiB; "
            f"first step {median(run['first'] / run['seconds'] for run in found):4.2f} x the others; "
            f"floor {tokens / floor:6.0f} tokens/s, {floor / seconds:4.0%} reached",
            flush=True,
        )


def one_process(args: argparse.Namespace, way: str) -> dict[str, float]:
    """Seconds of the first step and the median of the others; peak memory of the process; floor in seconds."""
    keep_freed_memory()
    config = replace(read_config(args.config) if args.config else QWEN, num_layers=args.layers)
    examples = random_examples(args, config.vocab_size)
    step = (our_step if way.startswith("o1core") else their_step)(args, way, config, examples)
    clock = CLOCKS[args.clock]
    seconds = [timed(step, clock) for _ in range(args.steps + 1)]
    peak = peak_memory(torch.device("cpu")) / 1024
    floor = floor_seconds(config, args, shared=way.startswith("o1core"), frozen="lora" in way)
    return {"first": seconds[0], "seconds": median(seconds[1:]), "peak_gib": peak, "floor": floor}


def random_examples(args: argparse.Namespace, vocab: int) -> list[Example]:
    """The samples of a problem follow one another."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for i in range(args.problems):
        prompt = torch.randint(vocab, (args.prompt,), generator=generator, dtype=torch.int32)
        for k in range(args.samples):
            ids = torch.randint(vocab, (args.completion,), generator=generator, dtype=torch.int32)
            examples.append(Example(f"p{i}", prompt, ids, torch.full(ids.shape, -12.0), 1.0 - 2 * (k % 2), False))
    return examples


def our_step(args: argparse.Namespace, way: str, config: ModelConfig, examples: list[Example]) -> Callable[[], Any]:
    lora = args.rank if "lora" in way else None
    recipe = Recipe.of(
        ratio="token",
        micro_tokens=args.micro_batch * (args.prompt + args.completion),
        lora_rank=lora,
        checkpointing="checkpointing" in way,
    )
    with torch.device("meta"):
        model = Transformer(config).to(DTYPES[args.dtype])
    model.to_empty(device="cpu")
    initialise(model, 0)
    if lora:
        add_adapters(model, lora, None, "all", None)
        draw_adapters(model, 0)
    updater = Updater(model, config.vocab_size, recipe.objective, recipe.optimiser, recipe.execution)
    reference = [e.logprobs for e in examples]
    return lambda: updater.step(with_reference(examples, reference), 1e-6)


def their_step(args: argparse.Namespace, way: str, config: ModelConfig, examples: list[Example]) -> Callable[[], None]:
    """The same loss on transformers' model. Its bf16 weights are trained as they are, without fp32 masters."""
    model = their_model(args, config)
    if "lora" in way:
        import peft

        targets = "all-linear"
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=targets, task_type="CAUSAL_LM")
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0, fused=True)
    logprobs = chunked_logprobs if "chunked" in way else whole_logprobs
    units = sum(len(e.ids) for e in examples)

    def step() -> None:
        optimiser.zero_grad(set_to_none=False)
        for i in range(0, len(examples), args.micro_batch):
            chosen = examples[i : i + args.micro_batch]
            ids = torch.stack([torch.cat((e.prompt, e.ids)) for e in chosen]).long()
            logp = logprobs(model, ids, len(chosen[0].prompt))
            gap = logp - torch.stack([e.logprobs for e in chosen])
            weight = torch.tensor([[e.advantage] for e in chosen])
            ratio = gap.exp()
            value = torch.minimum(ratio * weight, ratio.clamp(1 - EPS, 1 + EPS) * weight)
            (-value.sum() / units).backward()
        torch.nn.utils.clip_grad_norm_(trained, 10.0)
        optimiser.step()

    return step


def their_model(args: argparse.Namespace, config: ModelConfig) -> Any:
    transformers = import_transformers()
    shape = transformers.AutoConfig.for_model(
        {"Qwen2": "qwen2", "Qwen3": "qwen3", "Llama": "llama"}[config.architecture.removesuffix("ForCausalLM")],
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tied,
        use_cache=False,
    )
    return transformers.AutoModelForCausalLM.from_config(shape, dtype=DTYPES[args.dtype]).train()


def whole_logprobs(model: Any, ids: Tensor, prompt: int) -> Tensor:
    """float32 [B, L] log-probs of the tokens after the prompt, from whole logits of those positions."""
    logits = model(ids, logits_to_keep=ids.shape[1] - prompt + 1).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, prompt:, None])[..., 0]


def chunked_logprobs(model: Any, ids: Tensor, prompt: int) -> Tensor:
    """The same by torch's linear_cross_entropy, which holds the logits of a chunk of rows at a time."""
    hidden = model.model(ids).last_hidden_state[:, prompt - 1 : -1].flatten(0, 1)
    targets = ids[:, prompt:].flatten()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=min(CHUNK, len(targets)))
    loss = F.linear_cross_entropy(hidden, model.lm_head.weight, targets, reduction="none", options=options)
    return -loss.float().view(len(ids), -1)


def floor_seconds(config: ModelConfig, args: argparse.Namespace, shared: bool, frozen: bool) -> float:
    """Seconds of a step's matrix products alone, at the size of a micro-batch. shared: a prompt is one for all its samples;
    frozen: without the products of weight gradients."""
    dtype, c, clock = DTYPES[args.dtype], config, CLOCKS[args.clock]
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    sequences = args.problems * args.samples
    prompts = args.problems if shared else sequences
    rows = prompts * args.prompt + sequences * args.completion
    at_once = min(rows, args.micro_batch * (args.prompt + args.completion))
    of_block = [(c.hidden_size, q + 2 * kv), (q, c.hidden_size), (c.hidden_size, 2 * c.ffn_size)]
    of_block.append((c.ffn_size, c.hidden_size))
    body = sum(product_seconds(at_once, inside, outside, dtype, frozen, clock) for inside, outside in of_block)
    predicted = args.micro_batch * args.completion
    head = product_seconds(predicted, c.hidden_size, c.vocab_size, dtype, frozen, clock)
    return c.num_layers * body * rows / at_once + head * sequences / args.micro_batch


def product_seconds(
    rows: int, inside: int, outside: int, dtype: torch.dtype, frozen: bool, clock: Callable[[], float]
) -> float:
    """The best of two times of a forward product, the gradient of its input, and unless frozen that of its weight."""
    x, w = torch.ones(rows, inside, dtype=dtype), torch.ones(outside, inside, dtype=dtype)
    y = torch.ones(rows, outside, dtype=dtype)
    products: list[Callable[[], Tensor]] = [lambda: x @ w.T, lambda: y @ w]
    if not frozen:
        products.append(lambda: y.T @ x)
    return sum(min(timed(product, clock) for _ in range(2)) for product in products)


def timed(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


if __name__ == "__main__":
    main()
