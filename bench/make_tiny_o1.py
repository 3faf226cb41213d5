"""Makes tiny-o1, the small long-thought model inside the package: tokenizer, training, and a table of what it does.

    python -m bench.make_tiny_o1 [--out DIR] [--steps N] [--seed S]

Under 30 minutes on one core. The data is generated (o1core/problems/arithmetic.py and thoughts.py, train split only), easy
things first: see STAGES. The model is our own runtime in float32, saved in bfloat16. The table at the end is sampled from the
saved folder with our own engine, on the validation split. The same seed, torch and number of threads give the same weights.
To ship a new model, replace o1core/tiny_o1 by the folder that this program writes.

Left out on purpose: checkpoints and resuming (training takes minutes), and a validation loss (what counts is what the
model samples).
"""

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from torch import Tensor
from tqdm import tqdm

from bench.thoughts import LAW, ThoughtLaw, instructed, text_of, write_thought
from bench.tiny_o1_behaviour import EVALUATED, behaviour
from o1core.errors import UserError
from o1core.model import Tokenizer, Transformer, initialise, read_config, save_checkpoint
from o1core.problems.arithmetic import arithmetic_tasks
from o1core.rollout import keep_freed_memory

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 512,  # some more than the tokenizer has, as in the real ones
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "dtype": "float32",
}
STEPS = 6000
BATCH_TOKENS = 2048  # padding included
CHUNK = 1024  # examples drawn and sorted by length together
MUON_RATE = 0.02  # of the matrices; at 0.05 they learn more slowly
ADAM_RATE = 3e-3  # of the embedding, the norms and the biases
WARM_UP = 150  # steps
INSTRUCTED = 0.4  # share of the thoughts that heed an instruction
SUMS = replace(LAW, slip=(0.0,) * 4, careful=(0.0,) * 4, unchecked=(0.4,) * 4, stop=(0.7,) * 4)
SURE = replace(LAW, most=2, slip=(0.003, 0.012, 0.03, 0.03))


class Stage(NamedTuple):
    """A part of the training. until: fraction of all steps."""

    until: float
    law: ThoughtLaw


STAGES = (Stage(0.42, SUMS), Stage(0.5, SURE), Stage(1.0, LAW))


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
        table = behaviour(saved)
        print(table)
        size = sum(p.numel() for p in model.parameters())
        (source / "README.md").write_text(readme(table, size, steps, seed, minutes), encoding="utf-8")
        save_checkpoint(model, source, out, torch.bfloat16)
        os.replace(source / "README.md", out / "README.md")
    print(f"{out}: {size:,} parameters, trained in {minutes:.1f} minutes")


def write_tokenizer_and_configs(folder: Path) -> None:
    """Everything of a checkpoint but its weights."""
    rng = random.Random(0)
    texts = []
    for task, problem in arithmetic_tasks("train", 4000, seed=0):
        asked, thought = instructed(task, problem, rng)
        texts += [problem.question, asked.question, text_of(thought)]
    backend = train_tokenizer(texts)
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
    """Cosine decay to zero, with a warm-up. The loss counts completion tokens, the one that ends them included.

    The matrices are trained by Muon (Jordan et al. 2024; torch's own), the rest by AdamW: after 1.2 million tokens of
    sums the loss was 0.16, against 0.43 with AdamW alone.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name != "embed"]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or name == "embed"]
    muon = torch.optim.Muon(matrices, weight_decay=0.05, momentum=0.95)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    progress = tqdm(total=steps, unit="step", mininterval=2)
    stream = batches(tokenizer, seed, steps)
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


def batches(tokenizer: Tokenizer, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless fresh batches: ids int64 [B, T] padded on the right, and bool [B, T], true at tokens of a completion.

    Rows of a batch are of similar length, so that little is padding.
    """
    rng = random.Random(seed)
    made = 0
    for chunk in range(10**9):
        law = next((stage.law for stage in STAGES if made < stage.until * steps), LAW)
        rows = []
        for task, problem in arithmetic_tasks("train", CHUNK, 10**6 * (seed + 1) + chunk):
            if law is LAW and rng.random() < INSTRUCTED:
                problem, thought = instructed(task, problem, rng)
            else:
                thought = write_thought(task, rng, law)
            rows.append((tokenizer.prompt(problem.question), tokenizer.encode(text_of(thought) + STOP)))
        rows.sort(key=size)
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * size(row) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        made += len(groups)
        for group in groups:
            yield padded(group)


def size(row: tuple[list[int], list[int]]) -> int:
    """Tokens of prompt and completion."""
    return len(row[0]) + len(row[1])


def padded(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    longest = max(map(size, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    counts = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[i, :end] = torch.tensor(prompt + completion)
        counts[i, len(prompt) : end] = True
    return ids, counts


def readme(table: str, size: int, steps: int, seed: int, minutes: float) -> str:
    return f"""# tiny-o1

A Qwen2 model of {size:,} parameters that works out short sums, or which of two is larger, and checks itself far too often:
checks help on hard problems, but it does not know where to stop. It is the embedded default of o1core, made by

    OMP_NUM_THREADS={torch.get_num_threads()} python -m bench.make_tiny_o1 --steps {steps} --seed {seed}

in {minutes:.0f} minutes. {EVALUATED} problems of the validation split, one sample each at temperature 1; a level is a number of
operations; the sampler is o1core's own (`python -m bench.tiny_o1_behaviour`):

{table}

License: Apache-2.0, as the package.
"""


if __name__ == "__main__":
    sys.exit(main())
