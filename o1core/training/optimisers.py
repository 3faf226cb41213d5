"""How a gradient becomes new weights: which weights, their fp32 masters, AdamW or Adam-mini, and the learning rate.

Adam-mini (arXiv 2406.16793) is Adam with one second moment for a block of weights instead of one for each weight.
Blocks are those of the paper and of its package: a head of q and of k; a row (an output neuron) of every other matrix,
which for the embedding and the head of the vocabulary is a token; a whole norm; and each element of a bias, as in Adam.
Our fused matrices are cut as the checkpoint has them. So a trained fp32 weight takes 12 bytes (weight, gradient, first
moment; AdamW: 16), and the second moments are a few thousand numbers a layer.

Weights may be sharded by rows (DTensor): the mean squares of all rows are gathered, a vector, and every rank holds all
second moments. So their bits do not depend on the number of ranks. Left out on purpose: closures and several groups.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..distributed import is_sharded, local
from ..model import ModelConfig, Transformer, adapted, check_trained, layout
from ..recipe import OptimiserSettings

BETAS, EPS = (0.9, 0.999), 1e-8

Blocks = list[tuple[int, int]]  # (rows, rows in a block) of the parts of a parameter, in order


def select_trained(model: Transformer, last_layers: int | None, router: bool = False) -> None:
    """Let gradients reach all weights, or those of the last N layers alone (embedding, last norm and head frozen); in an
    adapted model the adapters alone. What chooses a mixture's experts stays frozen, unless `router`: tokens that change their
    expert between sampling and update ruin the ratios."""
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
    for name, p in model.named_parameters():
        if is_router(name) and not router:
            p.requires_grad_(False)


def is_router(name: str) -> bool:
    """Whether a weight of ours chooses experts."""
    return name.endswith("experts.router.weight")


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


def learning_rate(progress: float, settings: OptimiserSettings) -> float:
    """The rate at `progress`, the fraction of all steps done: linear warm-up, then cosine to 0 or constant."""
    if progress < settings.warmup:
        return settings.lr * progress / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (progress - settings.warmup) / max(1e-12, 1 - settings.warmup)))


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


class AdamMini(torch.optim.Optimizer):
    """torch.optim.AdamW with one second moment a block. Its state has AdamW's names: step, exp_avg, exp_avg_sq [blocks]."""

    def __init__(
        self, named: Iterable[tuple[str, Tensor]], config: ModelConfig, lr: float, weight_decay: float
    ) -> None:
        """named: our parameters' names and the fp32 weights; a name that no checkpoint of `config` has (an adapter) is cut
        into rows. weight_decay is for matrices alone, as in the package."""
        named = list(named)
        known = blocks_of(config)
        self.blocks = {weight: known.get(name, [(len(weight), 1)]) for name, weight in named}
        super().__init__([weight for _, weight in named], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Change every weight that has a gradient. closure: not supported."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.update(weight, weight.grad, group["lr"], group["weight_decay"] if weight.ndim > 1 else 0.0)

    def no_second_moment(self, weight: Tensor) -> Tensor:
        """Zeros for each block of a weight."""
        return torch.zeros(sum(rows // size for rows, size in self.blocks[weight]), device=weight.device)

    def update(self, weight: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        """One weight's step. Nothing of its size is allocated but the first moment, once."""
        blocks, state = self.blocks[weight], self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = self.no_second_moment(weight)
        state["step"] += 1
        step, (beta1, beta2) = state["step"].item(), BETAS
        state["exp_avg_sq"].lerp_(block_means(row_means(gradient), blocks), 1 - beta2)
        denominator = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(EPS)
        mine, gradient, momentum = (local(t) for t in (weight, gradient, state["exp_avg"]))
        momentum.lerp_(gradient, 1 - beta1)
        by_row = row_values(denominator, blocks)
        if is_sharded(weight):
            by_row = own_rows(by_row, weight)
        mine.mul_(1 - lr * weight_decay)
        mine.addcdiv_(momentum, by_row.view(-1, *[1] * (weight.ndim - 1)), value=-lr / (1 - beta1**step))


def blocks_of(config: ModelConfig) -> dict[str, Blocks]:
    """The blocks of each of our parameters."""
    blocks: dict[str, Blocks] = {}
    for theirs, ours, _, shape in layout(config):
        size = 1
        if theirs.endswith(("q_proj.weight", "k_proj.weight")):
            size = config.head_dim
        elif theirs.endswith("norm.weight"):
            size = shape[0]
        blocks.setdefault(ours, []).append((shape[0], size))
    return blocks


def row_means(gradient: Tensor) -> Tensor:
    """The mean square of each row [rows] of a gradient [rows, ...], all rows of one that is sharded."""
    mine = local(gradient)
    rows = mine.flatten(1) if mine.ndim > 1 else mine
    squares = mine.square() if mine.ndim == 1 else torch.linalg.vector_norm(rows, dim=1).square_() / rows.shape[1]
    return all_rows(squares, gradient) if is_sharded(gradient) else squares


def block_means(rows: Tensor, blocks: Blocks) -> Tensor:
    """The mean over each block [blocks] of a value per row [rows]."""
    parts = rows.split([count for count, _ in blocks])
    return torch.cat([part.view(-1, size).mean(1) for part, (_, size) in zip(parts, blocks)])


def row_values(values: Tensor, blocks: Blocks) -> Tensor:
    """A value per block [blocks], for each of its rows [rows]."""
    parts = values.split([rows // size for rows, size in blocks])
    return torch.cat([part.repeat_interleave(size) for part, (_, size) in zip(parts, blocks)])


def all_rows(rows: Tensor, sharded: Any) -> Tensor:
    """All ranks' values per row, gathered, where each holds those of its own rows of `sharded`."""
    from torch.distributed.tensor import DTensor

    shape, mesh = torch.Size((sharded.shape[0],)), sharded.device_mesh
    parts = DTensor.from_local(rows, mesh, sharded.placements, run_check=False, shape=shape, stride=(1,))
    return parts.full_tensor()


def own_rows(rows: Tensor, sharded: Any) -> Tensor:
    """Of a value per row [rows], those of the rows of `sharded` that this process holds."""
    from torch.distributed.tensor import DTensor

    whole = DTensor.from_local(rows, sharded.device_mesh, run_check=False)  # the same on every rank
    return whole.redistribute(placements=sharded.placements).to_local()
