"""One update: picked completions become a gradient (objectives.py), and a gradient becomes new weights.

The picked samples of a problem share their prompt: packed as a tree, it is forwarded once for all of them (model/trees.py).
Every micro-batch is divided by the unit count of the whole batch, so how a batch is cut cannot change the gradient.
Positions, never token values, say what belongs to a completion, so its end-of-text token is trained. Left out on purpose:
value net, KL term, entropy bonus; the method has none.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..choices import Offload
from ..distributed import (
    BackgroundSave,
    HostMemory,
    clip_gradients,
    is_sharded,
    largest,
    of_this_rank,
    processes,
    reshard,
    split_by_cost,
    total,
)
from ..errors import UserError
from ..kernels import SurrogateMetrics, linear_logprob
from ..model import Choose, Routes, Transformer, Trees, adapted, check_trained, keep_choice
from ..recipe import ExecutionSettings, ObjectiveSettings, OptimiserSettings, most_micro_tokens
from ..rollout import FreedMemory
from ..types import Example
from .objectives import LossInputs, Objective, objective_of, reference_of
from .optimisers import AdamMini, make_optimiser, master_of, select_trained

log = logging.getLogger(__name__)

# Mean nats a token. The ratio of 400 such tokens is off by 0.025 (the gaps' signs are random), an eighth of the usual clip.
AGREEMENT = 1e-3
LEAST_COMPARED = 8  # examples


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences, and where their completions are predicted.

    ids int64 [N], the rows of `trees`; places int64 [M]: the rows that predict a completion token, example after example (a
    prompt's last row predicts the first token of each of its completions); targets int64 [M]: those tokens; cu_seqlens int64
    [S + 1]: where each completion starts among the M.
    """

    ids: Tensor
    trees: Trees
    places: Tensor
    targets: Tensor
    cu_seqlens: Tensor

    def hidden(self, model: Transformer, recompute: bool = False, choose: Choose = keep_choice) -> Tensor:
        """Hidden states [M, H] at the places."""
        # An embedding, because its gradient adds up a row that is taken several times in the same order each time.
        return F.embedding(self.places, model.packed(self.ids, self.trees, recompute, choose))

    def routes(self, examples: list[Example], model: Transformer, replay: bool) -> Routes | None:
        """The experts that sampled the examples which were packed; None where there are none. Raises UserError where they are
        to be replayed and are not there."""
        experts = model.config.experts
        if experts is None:
            return None
        sampled = torch.full((len(self.ids), len(experts.layers), experts.chosen), -1, dtype=torch.int16)
        for e, places in zip(examples, self.places.cpu().split(self.cu_seqlens.diff().tolist())):
            if e.routes is None and replay:
                raise UserError(
                    f"--replay-router: the rollouts of problem {e.problem} do not say which experts computed them (an older "
                    "version sampled them); delete the round's folder and run the same command again"
                )
            if e.routes is not None:
                # A token's experts were noted when the one after it was sampled. The prompt's last token is shared.
                known = min(len(e.routes), len(e.ids) - 1)
                sampled[places[len(places) - known :]] = e.routes[len(e.routes) - known :].to(torch.int16)
        return Routes(sampled.to(self.ids.device), experts.layers, replay)


def pack(examples: list[Example], device: torch.device) -> MicroBatch:
    """Completions of one prompt become the branches of a tree. The last token of a completion is predicted but never fed."""
    forked, plain = list[list[int]](), list[list[int]]()
    for group in by_prompt(examples, range(len(examples))):
        forks = len(group) > 1 and any(len(examples[i].ids) > 1 for i in group)
        (forked if forks else plain).append(group)
    roots = [examples[group[0]].prompt for group in forked]
    roots += [torch.cat((examples[group[0]].prompt, examples[group[0]].ids[:-1])) for group in plain]
    branches = [[fed for i in group if len(fed := examples[i].ids[:-1])] for group in forked]
    trees = Trees(tuple(map(len, roots)), tuple(tuple(map(len, of_root)) for of_root in branches))
    places = [torch.tensor([])] * len(examples)
    for root, group in zip(trees.of_roots, forked + plain):
        start = root.start + len(examples[group[0]].prompt) - 1
        for i in group:
            places[i] = torch.arange(start, start + len(examples[i].ids))
    for group, of_root in zip(forked, trees.of_branches):
        rows = iter(of_root)
        for i in group:
            branch = next(rows) if len(examples[i].ids) > 1 else slice(0, 0)
            places[i] = torch.cat((places[i][:1], torch.arange(branch.start, branch.stop)))
    ends = torch.tensor([len(e.ids) for e in examples]).cumsum(0)
    return MicroBatch(
        torch.cat(roots + [ids for of_root in branches for ids in of_root]).to(device, torch.int64),
        trees,
        torch.cat(places).to(device),
        torch.cat([e.ids for e in examples]).to(device, torch.int64),
        torch.cat((torch.zeros(1, dtype=torch.int64), ends)).to(device),
    )


def by_prompt(examples: list[Example], indices: Iterable[int]) -> list[list[int]]:
    """Indices of examples, those of equal prompts together."""
    groups: dict[bytes, list[int]] = {}
    for i in indices:
        groups.setdefault(examples[i].prompt.numpy().tobytes(), []).append(i)
    return list(groups.values())


def rows_of(examples: list[Example], indices: Iterable[int]) -> int:
    """The rows that these examples are when they are packed."""
    groups = by_prompt(examples, indices)
    return sum(len(examples[g[0]].prompt) + sum(len(examples[i].ids) - 1 for i in g) for g in groups)


def micro_batches(examples: list[Example], indices: list[int], budget: int, unit_size: int = 1) -> list[list[int]]:
    """Cut examples into index lists of at most `budget` packed rows, a prompt's completions together where they fit.

    indices: of examples, whole units. unit_size: so many examples in a row (a pair of DPO: 2) are never parted.
    """
    pieces = cut_by_prompt(examples, indices, budget, unit_size)
    sizes = [rows_of(examples, piece) for piece in pieces]
    cuts: list[list[int]] = []
    room: list[int] = []
    for p in sorted(range(len(pieces)), key=lambda p: -sizes[p]):  # the largest first, each to where it first fits
        at = next((c for c, left in enumerate(room) if sizes[p] <= left), len(cuts))
        if at == len(cuts):
            cuts.append([])
            room.append(budget)
        cuts[at] += pieces[p]
        room[at] -= sizes[p]
    return cuts


def cut_by_prompt(examples: list[Example], indices: list[int], limit: int, unit_size: int) -> list[list[int]]:
    """Pieces of at most `limit` packed rows, each of one prompt's units; a unit that is larger is a piece of its own."""
    pieces: list[list[int]] = []
    firsts = indices[::unit_size]
    for group in by_prompt(examples, firsts):
        piece: list[int] = []
        for first in group:
            unit = list(range(first, first + unit_size))
            if piece and rows_of(examples, piece + unit) > limit:
                pieces.append(piece)
                piece = []
            piece = piece + unit
        pieces.append(piece)
    return pieces


def micro_batches_of_this_rank(examples: list[Example], budget: int, unit_size: int = 1) -> tuple[list[list[int]], int]:
    """(this rank's micro-batches, how many of them are real).

    All ranks get the same number, since each forward is one of all of them together: short lists are filled up with the
    batch's cheapest unit, which must not count.
    """
    everything, ranks = list(range(len(examples))), processes()
    # A prompt that is cut is forwarded twice; four pieces a rank are few enough, and still share out evenly.
    limit = budget if ranks == 1 else min(budget, -(-rows_of(examples, everything) // (4 * ranks)))
    pieces = cut_by_prompt(examples, everything, limit, unit_size)
    of_ranks = []
    for share in split_by_cost([rows_of(examples, piece) for piece in pieces]):
        of_ranks.append(micro_batches(examples, sorted(i for p in share for i in pieces[p]), budget, unit_size))
    mine = of_this_rank(of_ranks)
    units = [list(range(i, i + unit_size)) for i in range(0, len(examples), unit_size)]
    spare = min(units, key=lambda unit: rows_of(examples, unit))
    return mine + [spare] * (max(map(len, of_ranks)) - len(mine)), len(mine)


@torch.no_grad()
def reference_logprobs(
    model: Transformer, vocab: int, examples: list[Example], micro_tokens: int, replay: bool = False
) -> list[Tensor]:
    """float32 log-probs [L] of each example under the model as it is now, by the trainer's own forward.

    vocab: ids at or above it have probability 0, as in the sampler. micro_tokens: packed rows of a forward pass. replay: by the
    experts that sampled.
    Each rank computes its share, and all get all.
    """
    device = model.embed.device
    result = [torch.zeros(len(e.ids)) for e in examples]
    batches, real = micro_batches_of_this_rank(examples, micro_tokens)
    for b, chosen in enumerate(tqdm(batches, desc="reference log-probs", unit="batch")):
        batch = pack([examples[i] for i in chosen], device)
        routes = batch.routes([examples[i] for i in chosen], model, True) if replay else None
        hidden = batch.hidden(model, choose=routes or keep_choice)
        if b >= real:
            continue
        logp = linear_logprob(hidden, model.lm_head, batch.targets, vocab_size=vocab).cpu()
        for i, part in zip(chosen, logp.split([len(examples[i].ids) for i in chosen])):
            result[i] = part.clone()
    reshard(model)
    whole = total(torch.cat(result).to(device)).cpu()
    return [part.clone() for part in whole.split([len(e.ids) for e in examples])]


def sampler_logprobs(examples: list[Example], by_trainer: Callable[[list[Example]], list[Tensor]]) -> list[Tensor]:
    """float32 log-probs [L] of each example as the sampler kept them, where it agrees with the trainer: a forward pass saved.

    by_trainer: computes the trainer's. Both are compared on the first eighth of the examples; where they are further apart
    than AGREEMENT, the trainer's are returned. Raises UserError where the sampler's are missing.
    """
    for e in examples:
        if len(e.logprobs) != len(e.ids) or not e.logprobs.isfinite().all():
            raise UserError(
                f"--reference sampler: the rollouts of problem {e.problem} hold no log-probs of their sampler; use "
                "--reference trainer"
            )
    count = max(LEAST_COMPARED, len(examples) // 8)
    compared = by_trainer(examples[:count])
    gap = torch.cat([(mine - e.logprobs).abs() for e, mine in zip(examples, compared)]).mean().item()
    if gap <= AGREEMENT:
        log.info(
            "reference: the sampler's log-probs, %.2g nats a token from the trainer's (at most %g)", gap, AGREEMENT
        )
        return [e.logprobs for e in examples]
    said = "reference: the trainer's log-probs; the sampler's are %.2g nats a token from them (more than %g)"
    log.warning(said, gap, AGREEMENT)
    return compared + (by_trainer(examples[count:]) if examples[count:] else [])


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
        self.grad_clip, self.execution, self.replay = optimiser.grad_clip, execution, optimiser.replay_router
        check_trained(model.config, optimiser.lora_rank, optimiser.train_last_layers, self.replay)
        self.micro_tokens = execution.micro_tokens or most_micro_tokens(model.embed.is_cuda)
        assert bool(optimiser.lora_rank) == bool(adapted(model)), "give the model its adapters first"
        select_trained(model, optimiser.train_last_layers, optimiser.train_router)
        # name: (the weight that computes, the fp32 weight that is trained; one and the same for fp32)
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad and p.dtype == torch.float32:
                self.pairs[name] = (p, p)
            elif p.requires_grad:
                self.pairs[name] = (p, master_of(p))
        self.masters = [master for _, master in self.pairs.values()]
        self.freed = FreedMemory()
        self.host = HostMemory()  # for what is offloaded
        self.writing: BackgroundSave | None = None  # of a training state, from these tensors
        self.teacher_head: Tensor | None = None  # CRISP's, where it is not the policy's own frozen one
        trained = {name: master for name, (_, master) in self.pairs.items()}
        self.optimiser = make_optimiser(optimiser, trained, model) if make is None else make(trained)

    def step(self, examples: list[Example], lr: float) -> dict[str, float]:
        """One optimiser step on a batch of examples with their reference log-probs. Returns the objective's metrics from
        before the step: loss, ratio_mean, ratio_max, clip_fraction, approx_kl (nats a token) and grad_norm; and of a mixture
        of experts routed_alike, the share of tokens and layers whose experts are those that sampled.

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
        with self.host.holding(on_gpu(named)):
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
        alike = torch.zeros(2, dtype=torch.float64, device=device)
        for b, chosen in enumerate(batches):
            batch = pack([examples[i] for i in chosen], device)
            routes = batch.routes([examples[i] for i in chosen], self.model, self.replay)
            inputs = LossInputs(
                batch.hidden(self.model, self.execution.checkpointing, routes or keep_choice),
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
                alike += 0 if routes is None else routes.counts
            else:
                loss = loss * 0
            loss.backward()
        found = SurrogateMetrics(total(metrics.sums), largest(metrics.ratio_max.double())).finalize()
        if self.model.config.experts is not None:
            same, compared = total(alike).tolist()
            found |= {"routed_alike": same / compared} if compared else {}
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
