"""One update: picked rollouts become a gradient, and a gradient becomes new weights.

    loss = - mean over units of min(r R, clip(r, 1 - eps_low, 1 + eps_high) R)            (arXiv 2501.12570, Eq. 11)

The units are sequences or tokens (Recipe.ratio). Every micro-batch is divided by the unit count of the whole batch, so
how a batch is cut cannot change the gradient. Log-probs and loss come from o1core.kernels; positions, never token values,
say what belongs to a completion, so its end-of-text token is trained. Left out on purpose: value net, KL term, entropy
bonus; the method has none.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UserError
from .kernels import linear_logprob, linear_surrogate
from .recipe import Recipe
from .rewards import clip_reward, length_harmonizing, standardise
from .store import Group, lengths_and_verdicts
from .transformer import Transformer


@dataclass(frozen=True)
class Example:
    """A picked completion. prompt int32 [T], ids int32 [L], the sampler's logprobs float32 [L], advantage: its reward."""

    problem: str
    prompt: Tensor
    ids: Tensor
    logprobs: Tensor
    advantage: float
    truncated: bool

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.ids)


@dataclass(frozen=True)
class Picked:
    """What a round trains on, and what was left out of it: over the cut-off, or truncated and masked."""

    examples: list[Example]
    over_cutoff: int
    masked: int


def pick_examples(groups: list[Group], recipe: Recipe, round: int) -> Picked:
    """Reward all K samples of each problem, pick m of them at random and keep those that may be trained on."""
    lengths, correct = lengths_and_verdicts(groups)
    truncated = torch.tensor([[s.finish_reason == "length" for s in g.samples] for g in groups])
    if recipe.truncated == "wrong":
        correct &= ~truncated
    reward = length_harmonizing(lengths, correct, recipe.lam)
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, round, "pick"))
    chosen = torch.rand(reward.shape, generator=generator).argsort(dim=1)[:, : recipe.picked]
    advantage = reward.gather(1, chosen)
    if recipe.reward_low is not None or recipe.reward_high is not None:
        advantage = clip_reward(advantage, recipe.reward_low, recipe.reward_high)
    if recipe.reward_zscore:
        advantage = standardise(advantage)
    examples, over, masked = [], 0, 0
    for group, ks, rewards in zip(groups, chosen.tolist(), advantage.tolist()):
        for k, r in zip(ks, rewards):
            s = group.samples[k]
            cut = s.finish_reason == "length"
            if len(group.prompt) + s.length > recipe.cutoff:
                over += 1
            elif cut and recipe.truncated == "mask":
                masked += 1
            else:
                examples.append(Example(group.problem, group.prompt, s.ids, s.logprobs, r, cut))
    return Picked(examples, over, masked)


def seed_of(*parts) -> int:
    """A 63-bit seed of what a random choice is for: no state to carry over a resume."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def micro_batches(examples: list[Example], budget: int) -> Iterator[list[int]]:
    """Cut a batch into index lists of at most `budget` tokens, padding included; alike lengths together."""
    order = sorted(range(len(examples)), key=lambda i: -examples[i].tokens)
    while order:
        count = max(1, budget // examples[order[0]].tokens)
        yield order[:count]
        order = order[count:]


@dataclass(frozen=True)
class MicroBatch:
    """Sequences padded on the right, and where their completions are predicted.

    ids int64 [B, T]; places int64 [N]: rows of the flattened hidden states that predict a completion token; targets
    int64 [N]: those tokens; cu_seqlens int64 [B + 1]: where each completion starts among the N.
    """

    ids: Tensor
    places: Tensor
    targets: Tensor
    cu_seqlens: Tensor


def collate(examples: list[Example], device: torch.device) -> MicroBatch:
    """Pad on the right. The last token of a completion is predicted but never fed."""
    width = max(e.tokens for e in examples) - 1
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    places = []
    for b, e in enumerate(examples):
        ids[b, : e.tokens - 1] = torch.cat((e.prompt, e.ids[:-1]))
        places.append(torch.arange(len(e.ids)) + (b * width + len(e.prompt) - 1))
    ends = torch.tensor([len(e.ids) for e in examples]).cumsum(0)
    return MicroBatch(
        ids.to(device),
        torch.cat(places).to(device),
        torch.cat([e.ids for e in examples]).to(device, torch.int64),
        torch.cat((torch.zeros(1, dtype=torch.int64), ends)).to(device),
    )


@torch.no_grad()
def reference_logprobs(model: Transformer, vocab: int, examples: list[Example], recipe: Recipe) -> list[Tensor]:
    """float32 log-probs [L] of each example under the model as it is now, by the trainer's own forward.

    vocab: ids at or above it have probability 0, as in the sampler.
    """
    result = [None] * len(examples)
    for chosen in micro_batches(examples, recipe.micro_tokens):
        batch = collate([examples[i] for i in chosen], model.embed.device)
        hidden = model.hidden(batch.ids).flatten(0, 1)[batch.places]
        logp = linear_logprob(hidden, model.lm_head, batch.targets, vocab_size=vocab).cpu()
        for i, part in zip(chosen, logp.split(batch.cu_seqlens.diff().tolist())):
            result[i] = part.clone()
    return result


class Updater:
    """The trained weights, their AdamW state and the one step that changes them.

    Weights that compute in bf16 have fp32 masters here: at |w| = 0.02, bf16 numbers are 1.2e-4 apart and an Adam step of
    2e-7 would round away to nothing. Their gradients are added up in fp32 over micro-batches.
    """

    def __init__(self, model: Transformer, vocab: int, recipe: Recipe):
        self.model, self.vocab, self.recipe = model, vocab, recipe
        select_trained(model, recipe.train_last_layers)
        self.pairs = {}  # name: (the weight that computes, the fp32 weight that is trained; one and the same for fp32)
        for name, p in model.named_parameters():
            if p.requires_grad and p.dtype == torch.float32:
                self.pairs[name] = (p, p)
            elif p.requires_grad:
                master = p.detach().float()
                master.grad = torch.zeros_like(master)
                p.register_post_accumulate_grad_hook(lambda p, master=master: move_gradient(p, master))
                self.pairs[name] = (p, master)
        self.masters = [master for _, master in self.pairs.values()]
        self.optimiser = torch.optim.AdamW(
            self.masters, lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=recipe.weight_decay, fused=True
        )

    def step(self, examples: list[Example], reference: list[Tensor], lr: float) -> dict[str, float]:
        """One optimiser step on a batch. Returns the metrics of Eq. 11 before the step.

        Raises UserError, with the weights as they were, where the loss or the gradient is not finite.
        """
        recipe, device = self.recipe, self.model.embed.device
        units = sum(len(e.ids) for e in examples) if recipe.ratio == "token" else len(examples)
        total = None
        for master in self.masters:
            if master.grad is not None:
                master.grad.zero_()
        for chosen in micro_batches(examples, recipe.micro_tokens):
            batch = collate([examples[i] for i in chosen], device)
            hidden = self.model.hidden(batch.ids, recompute=recipe.checkpointing).flatten(0, 1)[batch.places]
            loss, metrics = linear_surrogate(
                hidden,
                self.model.lm_head,
                batch.targets,
                torch.cat([reference[i] for i in chosen]).to(device),
                torch.tensor([examples[i].advantage for i in chosen], device=device),
                batch.cu_seqlens,
                None,
                ratio=recipe.ratio,
                eps_low=recipe.eps_low,
                eps_high=recipe.eps_high,
                normalizer=units,
                vocab_size=self.vocab,
            )
            loss.backward()
            total = metrics if total is None else total.merge(metrics)
        norm = torch.nn.utils.clip_grad_norm_(self.masters, recipe.grad_clip).item()
        result = total.finalize() | {"grad_norm": norm}
        if not (math.isfinite(result["loss"]) and math.isfinite(norm)):
            problems = ", ".join(sorted({e.problem for e in examples})[:8])
            raise UserError(
                f"loss {result['loss']}, gradient norm {norm}: not finite, in the batch of problems {problems}"
            )
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.step()
        with torch.no_grad():
            for weight, master in self.pairs.values():
                if weight is not master:
                    weight.copy_(master)
        return result


def move_gradient(weight: Tensor, master: Tensor) -> None:
    """Add a finished bf16 gradient to the fp32 one and free it, so that only one weight's bf16 gradient is alive."""
    master.grad.add_(weight.grad)
    weight.grad = None


def select_trained(model: Transformer, last_layers: int | None) -> None:
    """Let gradients reach all weights, or those of the last N layers alone (embedding, last norm and head frozen)."""
    layers = model.config.num_layers
    if last_layers is not None and last_layers > layers:
        raise UserError(f"--train-last-layers: {last_layers} of the model's {layers} layers")
    model.requires_grad_(last_layers is None)
    if last_layers is not None:
        for block in model.blocks[layers - last_layers :]:
            block.requires_grad_(True)


def learning_rate(progress: float, recipe: Recipe) -> float:
    """The rate at `progress`, the fraction of all steps done: linear warm-up, then cosine to 0 or constant."""
    if progress < recipe.warmup:
        return recipe.lr * progress / recipe.warmup
    if recipe.schedule == "constant":
        return recipe.lr
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (progress - recipe.warmup) / max(1e-12, 1 - recipe.warmup)))
