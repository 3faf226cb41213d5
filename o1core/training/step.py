"""One update: picked completions become a gradient (objectives.py), and a gradient becomes new weights.

Every micro-batch is divided by the unit count of the whole batch, so how a batch is cut cannot change the gradient.
Positions, never token values, say what belongs to a completion, so its end-of-text token is trained. Left out on purpose:
value net, KL term, entropy bonus; the method has none.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..distributed import Offload, Writing, clip_gradients, is_sharded, largest, offloaded, own, settle, shares, total
from ..errors import UserError
from ..kernels import SurrogateMetrics, linear_logprob
from ..model import Transformer, adapted, check_trained
from ..recipe import ExecutionSettings, ObjectiveSettings, OptimiserSettings
from ..rollout import FreedMemory
from ..types import Example
from .adam_mini import BETAS, EPS, AdamMini
from .objectives import LossInputs, objective_of


def micro_batches(examples: list[Example], budget: int, unit_size: int = 1) -> Iterator[list[int]]:
    """Cut a batch into index lists of at most `budget` tokens, padding included; alike lengths together.

    unit_size: so many examples in a row (a pair of DPO: 2) are never parted.
    """
    units = [range(i, i + unit_size) for i in range(0, len(examples), unit_size)]
    longest = [max(examples[i].tokens for i in unit) for unit in units]
    order = sorted(range(len(units)), key=lambda u: -longest[u])
    while order:
        count = max(1, budget // (unit_size * longest[order[0]]))
        yield [i for u in order[:count] for i in units[u]]
        order = order[count:]


@dataclass(frozen=True)
class Taught:
    """What a teacher says of a batch. hidden: of an example, by its place in the batch, the hidden states [L, H] of its
    completion tokens; head [V, H]: None where it is the policy's own, which is frozen."""

    hidden: Callable[[int], Tensor]
    head: Tensor | None


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


def dealt(examples: list[Example], budget: int, unit_size: int = 1) -> tuple[list[list[int]], int]:
    """(this rank's micro-batches, how many of them are real).

    All ranks get the same number, since each forward is one of all of them together: short lists are filled up with the
    batch's cheapest unit, which must not count.
    """
    units = [range(i, i + unit_size) for i in range(0, len(examples), unit_size)]
    costs = [sum(examples[i].tokens for i in unit) for unit in units]
    of_ranks = []
    for share in shares(costs):
        indices = [i for u in share for i in units[u]]
        cuts = micro_batches([examples[i] for i in indices], budget, unit_size)
        of_ranks.append([[indices[i] for i in cut] for cut in cuts])
    mine = own(of_ranks)
    spare = list(units[min(range(len(units)), key=costs.__getitem__)])
    return mine + [spare] * (max(map(len, of_ranks)) - len(mine)), len(mine)


@torch.no_grad()
def reference_logprobs(model: Transformer, vocab: int, examples: list[Example], micro_tokens: int) -> list[Tensor]:
    """float32 log-probs [L] of each example under the model as it is now, by the trainer's own forward.

    vocab: ids at or above it have probability 0, as in the sampler. micro_tokens: per forward pass, padding included.
    Each rank computes its share, and all get all.
    """
    device = model.embed.device
    result = [torch.zeros(len(e.ids)) for e in examples]
    batches, real = dealt(examples, micro_tokens)
    for b, chosen in enumerate(tqdm(batches, desc="reference log-probs", unit="batch")):
        batch = collate([examples[i] for i in chosen], device)
        hidden = model.hidden(batch.ids).flatten(0, 1)[batch.places]
        if b >= real:
            continue
        logp = linear_logprob(hidden, model.lm_head, batch.targets, vocab_size=vocab).cpu()
        for i, part in zip(chosen, logp.split(batch.cu_seqlens.diff().tolist())):
            result[i] = part.clone()
    settle(model)
    whole = total(torch.cat(result).to(device)).cpu()
    return [part.clone() for part in whole.split([len(e.ids) for e in examples])]


class Updater:
    """The trained weights, their moments and the one step that changes them.

    Weights that compute in bf16 have fp32 masters here: at |w| = 0.02, bf16 numbers are 1.2e-4 apart and an Adam step of
    2e-7 would round away to nothing. Their gradients are added up in fp32 over micro-batches.
    """

    def __init__(
        self,
        model: Transformer,
        vocab: int,
        objective: ObjectiveSettings,
        optimiser: OptimiserSettings,
        execution: ExecutionSettings,
    ) -> None:
        """vocab: ids at or above it have probability 0. Raises UserError where the model has fewer layers than are
        trained, or the objective trains nothing."""
        self.model, self.vocab = model, vocab
        self.objective = objective_of(objective)
        self.grad_clip, self.execution = optimiser.grad_clip, execution
        assert bool(optimiser.lora_rank) == bool(adapted(model)), "give the model its adapters first"
        select_trained(model, optimiser.train_last_layers)
        # name: (the weight that computes, the fp32 weight that is trained; one and the same for fp32)
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad and p.dtype == torch.float32:
                self.pairs[name] = (p, p)
            elif p.requires_grad:
                self.pairs[name] = (p, master_of(p))
        self.masters = [master for _, master in self.pairs.values()]
        self.freed = FreedMemory()
        self.writing: Writing | None = None  # of a training state, from these tensors
        self.optimiser = make_optimiser(optimiser, {name: master for name, (_, master) in self.pairs.items()}, model)

    def step(
        self, examples: list[Example], reference: list[Tensor], lr: float, taught: Taught | None = None
    ) -> dict[str, float]:
        """One optimiser step on a batch. taught: of CRISP's teacher. Returns the objective's metrics before the step.

        Raises UserError, with the weights as they were, where the loss or the gradient is not finite, or a training state
        could not be written.
        """
        result = self.accumulate(examples, reference, taught)
        norm = clip_gradients(self.masters, self.grad_clip)
        if not (math.isfinite(result["loss"]) and math.isfinite(norm)):
            problems = ", ".join(sorted({e.problem for e in examples})[:8])
            raise UserError(
                f"loss {result['loss']}, gradient norm {norm}: not finite, in the batch of problems {problems}"
            )
        self.written()
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.step()
        self.follow_masters()
        self.freed.after_step()
        return result | {"grad_norm": norm}

    def written(self) -> None:
        """Wait until no training state is being written any more, so that the weights and moments may change. Raises the
        UserError of one that could not be."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.wait()

    @torch.no_grad()
    def follow_masters(self) -> None:
        """Let the weights that compute have the values of their masters."""
        settle(self.model)
        for weight, master in self.pairs.values():
            if weight is not master:
                weight.copy_(master)

    def reset(self, steps: int) -> None:
        """Moments of zero after `steps` steps, to be filled from a training state; before the first there are none."""
        self.written()
        self.optimiser.state.clear()
        for master in self.masters if steps else []:
            step, second = torch.tensor(float(steps), device=master.device), torch.zeros_like(master)
            if isinstance(self.optimiser, AdamMini):
                step, second = step.cpu(), self.optimiser.no_second_moment(master)
            self.optimiser.state[master] = {"step": step, "exp_avg": torch.zeros_like(master), "exp_avg_sq": second}

    @contextmanager
    def resting(self, offload: Offload) -> Iterator[None]:
        """Inside there is room for rollouts: gradients are dropped, and what `offload` names waits in the host's memory
        (moments: the optimiser's; optimiser: the fp32 weights too, so that nothing may read them). First the state that the
        rollouts belong to is on the disk."""
        self.written()
        for master in self.masters:
            master.grad = None
        settle(self.model)
        moments = [t for m in self.masters for n, t in self.optimiser.state.get(m, {}).items() if n != "step"]
        masters = [m for w, m in self.pairs.values() if m is not w or is_sharded(m)]
        named = {"none": [], "moments": moments, "optimiser": moments + masters}[offload]
        with offloaded(on_gpu(named)):
            yield

    def accumulate(
        self, examples: list[Example], reference: list[Tensor], taught: Taught | None = None
    ) -> dict[str, float]:
        """Make the batch's gradient, a micro-batch at a time. Returns its metrics."""
        device, objective = self.model.embed.device, self.objective
        masks = objective.masks(examples, reference)
        units = objective.units(examples, masks)
        for master in self.masters:
            if master.grad is not None:
                master.grad.zero_()
        batches, real = dealt(examples, self.execution.micro_tokens, objective.unit_size)
        sums = torch.zeros(6, dtype=torch.float64, device=device)
        metrics = SurrogateMetrics(sums, torch.zeros((), device=device))
        for b, chosen in enumerate(batches):
            batch = collate([examples[i] for i in chosen], device)
            hidden = self.model.hidden(batch.ids, recompute=self.execution.checkpointing).flatten(0, 1)[batch.places]
            teacher = teacher_head = None
            if taught is not None:
                teacher = torch.cat([taught.hidden(i) for i in chosen]).to(device)
                teacher_head = self.model.lm_head.detach() if taught.head is None else taught.head
            inputs = LossInputs(
                hidden,
                self.model.lm_head,
                batch.targets,
                torch.cat([reference[i] for i in chosen]).to(device),
                torch.tensor([examples[i].advantage for i in chosen], device=device),
                batch.cu_seqlens,
                self.vocab,
                None if masks is None else torch.cat([masks[i] for i in chosen]).to(device),
                teacher,
                teacher_head,
            )
            loss, of_batch = objective.loss(inputs, units)
            if b < real:
                metrics = metrics.merge(of_batch)
            else:
                loss = loss * 0
            loss.backward()
        found = SurrogateMetrics(total(metrics.sums), largest(metrics.ratio_max.double())).finalize()
        if masks is not None:
            found["masked_tokens"] = float(sum(int((~mask).sum()) for mask in masks))
        return found


def on_gpu(tensors: list[Tensor]) -> list[Tensor]:
    """Those that are not in the host's memory anyway."""
    return [t for t in tensors if t.device.type != "cpu"]


def make_optimiser(
    settings: OptimiserSettings, trained: dict[str, Tensor], model: Transformer
) -> torch.optim.Optimizer:
    """The optimiser of the fp32 weights `trained`, by name."""
    if settings.kind == "adam-mini":
        return AdamMini(trained.items(), model.config, settings.lr, settings.weight_decay)
    return torch.optim.AdamW(
        trained.values(), lr=settings.lr, betas=BETAS, eps=EPS, weight_decay=settings.weight_decay, fused=True
    )


def load_optimiser_modules() -> None:
    """Have torch load the 140 MiB of modules that come with a process's first optimiser, before memory is measured."""
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])


def master_of(weight: Tensor) -> Tensor:
    """The fp32 copy of a weight that is trained. Finished gradients of the weight are added to the copy's."""
    master = weight.detach().float()
    weight.register_post_accumulate_grad_hook(lambda p: move_gradient(p, master))
    return master


def move_gradient(weight: Tensor, master: Tensor) -> None:
    """Add a finished bf16 gradient to the fp32 one and free it, so that only one weight's bf16 gradient is alive."""
    assert weight.grad is not None
    if master.grad is None:
        master.grad = weight.grad.float()
    else:
        master.grad.add_(weight.grad)
    weight.grad = None


def select_trained(model: Transformer, last_layers: int | None) -> None:
    """Let gradients reach all weights, or those of the last N layers alone (embedding, last norm and head frozen); in an
    adapted model the adapters alone."""
    if modules := adapted(model):
        model.requires_grad_(False)
        for module in modules:
            module.lora_a.requires_grad_(True)
            module.lora_b.requires_grad_(True)
        return
    check_trained(model.config, None, last_layers)
    model.requires_grad_(last_layers is None)
    if last_layers is not None:
        for block in model.blocks[model.config.num_layers - last_layers :]:
            block.requires_grad_(True)


def learning_rate(progress: float, settings: OptimiserSettings) -> float:
    """The rate at `progress`, the fraction of all steps done: linear warm-up, then cosine to 0 or constant."""
    if progress < settings.warmup:
        return settings.lr * progress / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (progress - settings.warmup) / max(1e-12, 1 - settings.warmup)))
