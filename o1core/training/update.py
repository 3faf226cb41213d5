"""One update: picked completions become a gradient (objectives.py), and a gradient becomes new weights.

Every micro-batch is divided by the unit count of the whole batch, so how a batch is cut cannot change the gradient.
Positions, never token values, say what belongs to a completion, so its end-of-text token is trained. Left out on purpose:
value net, KL term, entropy bonus; the method has none.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..distributed import (
    BackgroundSave,
    Offload,
    clip_gradients,
    is_sharded,
    largest,
    of_this_rank,
    offloaded,
    reshard,
    split_by_cost,
    total,
)
from ..errors import UserError
from ..kernels import SurrogateMetrics, linear_logprob
from ..model import Transformer, adapted
from ..recipe import MOST_MICRO_TOKENS, ExecutionSettings, ObjectiveSettings, OptimiserSettings
from ..rollout import FreedMemory
from ..types import Example
from .objectives import LossInputs, Objective, objective_of, reference_of
from .optimisers import AdamMini, make_optimiser, master_of, select_trained


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


def micro_batches_of_this_rank(examples: list[Example], budget: int, unit_size: int = 1) -> tuple[list[list[int]], int]:
    """(this rank's micro-batches, how many of them are real).

    All ranks get the same number, since each forward is one of all of them together: short lists are filled up with the
    batch's cheapest unit, which must not count.
    """
    units = [range(i, i + unit_size) for i in range(0, len(examples), unit_size)]
    costs = [sum(examples[i].tokens for i in unit) for unit in units]
    of_ranks = []
    for share in split_by_cost(costs):
        indices = [i for u in share for i in units[u]]
        cuts = micro_batches([examples[i] for i in indices], budget, unit_size)
        of_ranks.append([[indices[i] for i in cut] for cut in cuts])
    mine = of_this_rank(of_ranks)
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
    batches, real = micro_batches_of_this_rank(examples, micro_tokens)
    for b, chosen in enumerate(tqdm(batches, desc="reference log-probs", unit="batch")):
        batch = collate([examples[i] for i in chosen], device)
        hidden = model.hidden(batch.ids).flatten(0, 1)[batch.places]
        if b >= real:
            continue
        logp = linear_logprob(hidden, model.lm_head, batch.targets, vocab_size=vocab).cpu()
        for i, part in zip(chosen, logp.split(batch.cu_seqlens.diff().tolist())):
            result[i] = part.clone()
    reshard(model)
    whole = total(torch.cat(result).to(device)).cpu()
    return [part.clone() for part in whole.split([len(e.ids) for e in examples])]


def with_reference(examples: list[Example], reference: list[Tensor]) -> list[Example]:
    """The examples with their reference log-probs, float32 [L] of each."""
    return [replace(e, reference=r) for e, r in zip(examples, reference)]


class Updater:
    """The trained weights, their moments and the one step that changes them.

    Weights that compute in bf16 have fp32 masters here: at |w| = 0.02, bf16 numbers are 1.2e-4 apart and an Adam step of
    2e-7 would round away to nothing. Their gradients are added up in fp32 over micro-batches.
    """

    def __init__(
        self,
        model: Transformer,
        vocab: int,
        objective: ObjectiveSettings | Objective,
        optimiser: OptimiserSettings,
        execution: ExecutionSettings,
        make: Callable[[dict[str, Tensor]], torch.optim.Optimizer] | None = None,
    ) -> None:
        """vocab: ids at or above it have probability 0. make: an optimiser of your own, from {name: fp32 weight}. Raises
        UserError where the model has fewer layers than are trained, or the objective trains nothing."""
        self.model, self.vocab = model, vocab
        self.objective = objective_of(objective) if isinstance(objective, ObjectiveSettings) else objective
        self.grad_clip, self.execution = optimiser.grad_clip, execution
        self.micro_tokens = execution.micro_tokens or MOST_MICRO_TOKENS
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
        self.writing: BackgroundSave | None = None  # of a training state, from these tensors
        self.teacher_head: Tensor | None = None  # CRISP's, where it is not the policy's own frozen one
        trained = {name: master for name, (_, master) in self.pairs.items()}
        self.optimiser = make_optimiser(optimiser, trained, model) if make is None else make(trained)

    def step(self, examples: list[Example], lr: float) -> dict[str, float]:
        """One optimiser step on a batch of examples with their reference log-probs. Returns the objective's metrics from
        before the step: loss, ratio_mean, ratio_max, clip_fraction, approx_kl (nats a token) and grad_norm.

        Raises UserError, with the weights as they were, where the loss or the gradient is not finite, a training state
        could not be written, or the batch holds part of a unit.
        """
        if len(examples) % self.objective.unit_size:
            raise UserError(
                f"a batch of {len(examples)} examples, of which the objective wants {self.objective.unit_size} together; "
                "pick them with the same objective"
            )
        result = self.accumulate(examples)
        norm = clip_gradients(self.masters, self.grad_clip)
        if not (math.isfinite(result["loss"]) and math.isfinite(norm)):
            problems = ", ".join(sorted({e.problem for e in examples})[:8])
            raise UserError(
                f"loss {result['loss']}, gradient norm {norm}: not finite, in the batch of problems {problems}"
            )
        self.written()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
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
        reshard(self.model)
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
        reshard(self.model)
        moments = [t for m in self.masters for n, t in self.optimiser.state.get(m, {}).items() if n != "step"]
        masters = [m for w, m in self.pairs.values() if m is not w or is_sharded(m)]
        named = {"none": [], "moments": moments, "optimiser": moments + masters}[offload]
        with offloaded(on_gpu(named)):
            yield

    def accumulate(self, examples: list[Example]) -> dict[str, float]:
        """Make the batch's gradient, a micro-batch at a time. Returns its metrics."""
        device, objective = self.model.embed.device, self.objective
        masks = objective.masks(examples)
        units = objective.units(examples, masks)
        for master in self.masters:
            if master.grad is not None:
                master.grad.zero_()
        batches, real = micro_batches_of_this_rank(examples, self.micro_tokens, objective.unit_size)
        sums = torch.zeros(6, dtype=torch.float64, device=device)
        metrics = SurrogateMetrics(sums, torch.zeros((), device=device))
        for b, chosen in enumerate(batches):
            batch = collate([examples[i] for i in chosen], device)
            hidden = self.model.hidden(batch.ids, recompute=self.execution.checkpointing).flatten(0, 1)[batch.places]
            inputs = LossInputs(
                hidden,
                self.model.lm_head,
                batch.targets,
                torch.cat([reference_of(examples[i]) for i in chosen]).to(device),
                torch.tensor([examples[i].advantage for i in chosen], device=device),
                batch.cu_seqlens,
                self.vocab,
                None if masks is None else torch.cat([masks[i] for i in chosen]).to(device),
                *self.teacher([examples[i] for i in chosen]),
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

    def teacher(self, examples: list[Example]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """CRISP's teacher: its hidden states [N, H] of the examples' completions, and the head they are multiplied with."""
        hidden = [e.taught() for e in examples if e.taught is not None]
        if not hidden:
            return None, None
        head = self.model.lm_head.detach() if self.teacher_head is None else self.teacher_head
        return torch.cat(hidden).to(head.device), head


def on_gpu(tensors: list[Tensor]) -> list[Tensor]:
    """Those that are not in the host's memory anyway."""
    return [t for t in tensors if t.device.type != "cpu"]
