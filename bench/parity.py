"""A real checkpoint held against transformers: logits and greedy text.

    python -m bench.parity --model DIR [--tokens 64]

Prints the largest difference of fp32 logits over three prompts, and whether the greedy completions are equal.
"""

import argparse
from pathlib import Path

import torch

import o1core.model
from bench.peers import import_transformers

QUESTIONS = ("What is 17 * 23?", "Name the capital of France.", "Write a haiku about long proofs.")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    ap.add_argument("--tokens", type=int, default=64, help="of the greedy completions (default: %(default)s)")
    args = ap.parse_args()
    transformers = import_transformers()
    model, tokenizer = o1core.model.load(args.model, torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    prompts = [tokenizer.prompt(q) for q in QUESTIONS]
    with torch.no_grad():
        gap = max(
            (model.logits(torch.tensor([p])) - theirs(torch.tensor([p])).logits).abs().max().item() for p in prompts
        )
    print(f"largest difference of fp32 logits: {gap:.2e}")
    params = o1core.SamplingParams(temperature=0, max_new_tokens=args.tokens)
    ours = [c.ids for (c,) in o1core.Engine(model, tokenizer).generate(prompts, params)]
    for question, prompt, ids in zip(QUESTIONS, prompts, ours):
        ended = theirs.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=args.tokens,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=list(tokenizer.eos_ids),
            pad_token_id=0,
        )
        same = ended[0, len(prompt) :].tolist() == ids
        print(f"greedy, {len(ids)} tokens, {'equal' if same else 'DIFFERENT'}: {question}")


if __name__ == "__main__":
    main()
