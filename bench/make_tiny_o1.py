"""Makes tiny-o1, the small long-thought model inside the package: tokenizer, training, and a table of what it does.

    python -m bench.make_tiny_o1 [--out DIR] [--steps N] [--seed S]

About 10 minutes on one core of a busy machine. The data is generated (o1core/problems/arithmetic.py, train split
only). The model is our own runtime in float32, saved in bfloat16. The table at the end is sampled from the saved folder
with our own engine, on the validation split. The same seed, torch and number of threads give the same weights. To ship a
new model, replace o1core/tiny_o1 by the folder that this program writes.

Left out on purpose: checkpoints and resuming (training takes minutes), and a validation loss (what counts is what the
model samples).
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from torch import Tensor
from tqdm import tqdm

import o1core
from o1core.errors import UserError
from o1core.grading import extract_answer
from o1core.model import Tokenizer, Transformer, initialise, read_config, save_checkpoint
from o1core.problems import arithmetic_examples, arithmetic_problems
from o1core.problems.arithmetic import LAW, ThoughtLaw
from o1core.rollout import Engine, SamplingParams, keep_freed_memory

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 384,  # some more than the tokenizer has, as in the real ones
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "dtype": "float32",
}
STEPS = 2000
BATCH_TOKENS = 2048  # padding included
CHUNK = 2048  # examples drawn and sorted by length together
MUON_RATE = 0.02  # of the matrices; at 0.05 they learn more slowly
ADAM_RATE = 3e-3  # of the embedding, the norms and the biases
WARM_UP = 100
SHORT_FRACTION = 0.35  # of the steps come first and see thoughts without re-checks: there the model learns sums
SHORT_LAW = ThoughtLaw(stop_first=(1.0,) * len(LAW.stop_first))
EVALUATED = 2000  # validation problems, one sample each


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tiny-o1"), help="folder to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data and weights (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        make(args.out, args.steps, args.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make(out: Path, steps: int, seed: int) -> None:
    """Train tiny-o1 and write the folder `out`. Raises UserError where it exists already."""
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out")
    keep_freed_memory()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        source, saved = Path(scratch, "source"), Path(scratch, "saved")
        source.mkdir()
        write_tokenizer_and_configs(source)
        config = read_config(source)
        model = Transformer(config)
        initialise(model, seed)
        train(model, Tokenizer(source, config.vocab_size), steps, seed)
        minutes = (time.perf_counter() - started) / 60
        save_checkpoint(model, source, saved, torch.bfloat16)
        table = evaluate(saved)
        print(table)
        size = sum(p.numel() for p in model.parameters())
        (source / "README.md").write_text(readme(table, size, steps, seed, minutes), encoding="utf-8")
        save_checkpoint(model, source, out, torch.bfloat16)
        os.replace(source / "README.md", out / "README.md")
    print(f"{out}: {size:,} parameters, trained in {minutes:.1f} minutes")


def write_tokenizer_and_configs(folder: Path) -> None:
    """Everything of a checkpoint but its weights."""
    backend = train_tokenizer(
        [
            text
            for problem, thought in arithmetic_examples("train", 4000, seed=0)
            for text in (problem.question, thought)
        ]
    )
    backend.save(str(folder / "tokenizer.json"))
    end, stop = backend.token_to_id(END), backend.token_to_id(STOP)
    tokenizer = {
        "tokenizer_class": "Qwen2Tokenizer",
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "eos_token": STOP,
        "pad_token": END,
        "chat_template": CHATML,
    }
    generation = {"do_sample": True, "temperature": 1.0, "eos_token_id": [stop, end], "pad_token_id": end}
    for name, content in (
        ("config.json", {**CONFIG, "eos_token_id": stop, "pad_token_id": end}),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(texts: list[str]) -> Backend:
    """Byte-level BPE with Qwen2's way of cutting text, so that a word is one token and a number one token a digit.

    It has to be theirs: transformers puts Qwen2's own in place of whatever tokenizer.json says.
    """
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (END, START, STOP)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*texts, *["system\nuser\nassistant\n"] * 10], trainer)
    return backend


def train(model: Transformer, tokenizer: Tokenizer, steps: int, seed: int) -> None:
    """Warm-up, then cosine decay to zero. The loss counts completion tokens, the one that ends them included.

    The matrices are trained by Muon (Jordan et al. 2024; torch's own), the rest by AdamW: after 1.2 million tokens of
    sums the loss was 0.16, against 0.43 with AdamW alone.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name != "embed"]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or name == "embed"]
    muon = torch.optim.Muon(matrices, weight_decay=0.05, momentum=0.95)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    progress = tqdm(total=steps, unit="step", mininterval=2)
    stream = batches(tokenizer, seed, short_steps=int(SHORT_FRACTION * steps))
    smooth: float | None = None
    for step in range(steps):
        schedule = min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = MUON_RATE * schedule, ADAM_RATE * schedule
        ids, counts = next(stream)
        hidden = model.hidden(ids)[:, :-1][counts[:, 1:]]
        loss = F.cross_entropy(F.linear(hidden, model.lm_head), ids[:, 1:][counts[:, 1:]])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        progress.set_postfix_str(f"loss {smooth:.4f}", refresh=False)
        progress.update()
    progress.close()


def batches(tokenizer: Tokenizer, seed: int, short_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless fresh batches: ids int64 [B, T] padded on the right, and bool [B, T], true at tokens of a completion.

    The first `short_steps` have no re-checks. Rows of a batch are of similar length, so that little is padding.
    """
    rng = random.Random(seed)
    made = 0
    for chunk in range(10**9):
        law = SHORT_LAW if made < short_steps else LAW
        drawn = arithmetic_examples("train", CHUNK, seed=10**6 * (seed + 1) + chunk, law=law)
        rows = [(tokenizer.prompt(p.question), tokenizer.encode(thought + STOP)) for p, thought in drawn]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * (len(row[0]) + len(row[1])) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        made += len(groups)
        for group in groups:
            yield padded(group)


def padded(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    counts = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[i, :end] = torch.tensor(prompt + completion)
        counts[i, len(prompt) : end] = True
    return ids, counts


def evaluate(folder: Path) -> str:
    """A Markdown table of what the saved model does at temperature 1 on the validation split."""
    model, tokenizer = o1core.load(folder, dtype=torch.float32)
    asked = arithmetic_problems("validation", EVALUATED, seed=0)
    prompts = [tokenizer.prompt(problem.question) for problem in asked]
    params = SamplingParams(max_new_tokens=450, seed=0)
    started = time.perf_counter()
    completions = [c[0] for c in Engine(model, tokenizer, slots=128).generate(prompts, params)]
    seconds = time.perf_counter() - started
    texts = [tokenizer.decode(c.ids) for c in completions]
    samples = [
        (f"level {p.level}", min(max(text.count("\n") - 1, 0), 5), len(c.ids), extract_answer(text) == p.answer)
        for p, text, c in zip(asked, texts, completions)
    ]
    lines = ["| samples | share | accuracy | mean tokens |", "|---|---|---|---|", row("all", samples, EVALUATED)]
    for count in sorted({s[1] for s in samples}):
        name = f"{count} re-checks" if count < 5 else "5 or more"
        lines.append(row(name, [s for s in samples if s[1] == count], EVALUATED))
    for level in sorted({s[0] for s in samples}):
        lines.append(row(level, [s for s in samples if s[0] == level], EVALUATED))
    tokens = sum(s[2] for s in samples)
    print(f"{EVALUATED} samples, {tokens} tokens in {seconds:.0f} s ({tokens / seconds:.0f} tokens/s)")
    print(f"{asked[0].question}\n{texts[0]}")
    return "\n".join(lines)


def row(name: str, samples: list[tuple[str, int, int, bool]], total: int) -> str:
    """A line of the table; the accuracy with half the width of its 95 % interval."""
    accuracy = statistics.mean(s[3] for s in samples)
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(samples))
    tokens = statistics.mean(s[2] for s in samples)
    return f"| {name} | {len(samples) / total:.3f} | {accuracy:.3f} ± {half:.3f} | {tokens:.1f} |"


def readme(table: str, size: int, steps: int, seed: int, minutes: float) -> str:
    return f"""# tiny-o1

A Qwen2 model of {size:,} parameters that works out short sums, and checks itself far too often. It is the embedded
default of o1core, made by `python -m bench.make_tiny_o1 --steps {steps} --seed {seed}` in {minutes:.0f} minutes with
OMP_NUM_THREADS={torch.get_num_threads()}. License: Apache-2.0, as the package.

{EVALUATED} problems of the validation split, one sample each at temperature 1; the sampler is o1core's own:

{table}
"""


if __name__ == "__main__":
    sys.exit(main())
