"""Low-rank adapters (LoRA, arXiv 2106.09685): the base is frozen, y = W x + b + (alpha / rank) B A x is trained.

Each published projection has its own A [rank, in] and B [out, rank], as PEFT adapters have; an expert's projections get
some where asked for. Those of a fused weight lie in two tensors: A of q, k and v are stacked, and B's rows are the
fused weight's. They are fp32 and compute in the base's dtype. B starts at zero, so an adapted model begins with the
base's outputs, to the bit.

To sample, merged_weights puts W + (alpha / rank) B A in W's place, rounded to W's dtype once, and the base back
afterwards: it was never written to. Left out on purpose: dropout, adapters of the embedding and the head, biases; and
training on merged weights, since making them for each pass takes as long as the thin products that they save, and in bf16
rounds small adapters away.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..choices import LORA_TARGETS
from ..errors import UserError
from ..files import write_atomic, write_json
from ..hub import repo_of
from ..seeds import seed_of
from .checkpoint import layout
from .config import ModelConfig, check_trained
from .experts import GroupedLinear, grouped_product
from .folder import shown
from .transformer import Transformer

ROLES = {  # a block's fused projections whose last name is none of these
    "delta.inputs": "qkv",
    "delta.out": "o",
    "experts.shared_gate_up": "gate_up",
    "experts.shared_down": "down",
    "experts.gate_up": "experts",
    "experts.down": "experts",
}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names
PREFIX = "base_model.model."


class Projection(NamedTuple):
    """A published projection ("model.layers.0.self_attn.q_proj") and the rows of a fused weight that are its own."""

    name: str
    start: int
    rows: int


class AdaptedLinear(nn.Linear):
    """A frozen projection with adapters: lora_a fp32 [P rank, in], lora_b fp32 [out, rank], P published projections. One of
    experts takes rows sorted by expert and how many each has, as GroupedLinear does."""

    def __init__(self, base: nn.Linear, projections: list[Projection], rank: int, alpha: float) -> None:
        """Takes the base's parameters as they are, and leaves the adapters' unfilled: see draw_adapters."""
        device = base.weight.device
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.groups = base.groups if isinstance(base, GroupedLinear) else 1
        self.requires_grad_(False)
        self.projections, self.rank, self.alpha = projections, rank, alpha
        shape = (len(projections) * rank, base.in_features), (base.out_features, rank)
        self.lora_a = nn.Parameter(torch.empty(shape[0], dtype=torch.float32, device=device))
        self.lora_b = nn.Parameter(torch.empty(shape[1], dtype=torch.float32, device=device))
        self.merged = False  # whether `weight` holds the adapters already

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        if counts is not None:
            out = grouped_product(x, self.weight, counts)
            return out if self.merged else out + self.grouped_adapters(x, counts)
        if self.merged:
            return F.linear(x, self.weight, self.bias)
        rows = [(p.start, p.start + p.rows) for p in self.projections]
        return AdaptedProduct.apply(x, self.weight, self.bias, self.lora_a, self.lora_b, self.alpha / self.rank, rows)

    def grouped_adapters(self, x: Tensor, counts: Tensor) -> Tensor:
        """scale B A x of each row's own expert, whose projections (gate and up, or down) lie one above the other."""
        low = grouped_product(x, self.lora_a.to(x.dtype), counts)  # [N, projections of an expert x rank]
        # B's rows by expert and projection, so that a slice of them is again a stack of the experts' own.
        b = self.lora_b.to(x.dtype).view(self.groups, -1, self.projections[0].rows, self.rank)
        parts = zip(low.split(self.rank, dim=1), b.unbind(1))
        out = torch.cat([grouped_product(own, of.flatten(0, 1), counts) for own, of in parts], dim=1)
        return out * (self.alpha / self.rank)

    def parts(self) -> Iterator[tuple[Projection, Tensor, Tensor]]:
        """Each projection with its A [rank, in] and B [rows, rank], views."""
        for i, p in enumerate(self.projections):
            a, b = self.lora_a.detach(), self.lora_b.detach()
            yield p, a[i * self.rank : (i + 1) * self.rank], b[p.start : p.start + p.rows]

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight with the adapters added in fp32, in the base's dtype; the base itself where B is zero."""
        if not self.lora_b.any():
            return self.weight
        merged = torch.empty_like(self.weight)
        for p, a, b in self.parts():
            rows = slice(p.start, p.start + p.rows)
            merged[rows] = torch.addmm(self.weight[rows].to(b.dtype), b, a, alpha=self.alpha / self.rank)
        return merged


class AdaptedProduct(torch.autograd.Function):
    """x W^T + bias + scale B A x with gradients for x, A and B alone. Holds x and A x for the backward pass, nothing
    more: added up by autograd, the same would write the output once more for each projection."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        rows: list[tuple[int, int]],
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = F.linear(flat, weight, bias)
        low = flat @ a.to(x.dtype).T  # [N, P rank]
        b_compute, rank = b.to(x.dtype), b.shape[1]
        for i, (start, end) in enumerate(rows):
            out[:, start:end].addmm_(low[:, i * rank : (i + 1) * rank], b_compute[start:end].T, alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scale, ctx.rows, ctx.shape = scale, rows, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        flat, weight, a, b, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        d_low, d_b = torch.empty_like(low), torch.empty_like(b)
        b_compute, rank = b.to(grad.dtype), b.shape[1]
        for i, (start, end) in enumerate(ctx.rows):
            columns = slice(i * rank, (i + 1) * rank)
            d_low[:, columns] = grad[:, start:end] @ b_compute[start:end]
            d_b[start:end] = grad[:, start:end].T @ low[:, columns]
        d_low *= ctx.scale
        d_b *= ctx.scale
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (grad @ weight).addmm_(d_low, a.to(grad.dtype)).view(ctx.shape)
        return d_x, None, None, (d_low.T @ flat).to(a.dtype), d_b, None, None


def add_adapters(
    model: Transformer, rank: int, alpha: float | None, targets: str, last_layers: int | None, experts: bool = False
) -> None:
    """Give the projections of `targets` adapters, in all layers or the last ones; everything else is frozen. experts: those
    of a mixture's experts too.

    alpha: None is twice the rank. Their values are still to be drawn. Raises UserError where the rank is above the
    model's hidden size, or the model has fewer layers.
    """
    c = model.config
    check_trained(c, rank, last_layers)
    model.requires_grad_(False)
    projections = fused_projections(c)
    for name, own in projections.items():
        if layer_of(name) >= c.num_layers - (last_layers or c.num_layers) and gets_adapters(name, targets, experts):
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear)
            model.set_submodule(name, AdaptedLinear(base, own, rank, 2 * rank if alpha is None else alpha))


def gets_adapters(name: str, targets: str, experts: bool) -> bool:
    """Whether a fused projection of ours ("blocks.0.qkv") is one of the targets."""
    own = name.split(".", 2)[2]
    role = ROLES.get(own, own)
    return role in LORA_TARGETS[targets] or (role == "experts" and experts)


def layer_of(name: str) -> int:
    """The layer of one of our weights or modules ("blocks.0.qkv"), -1 where it is in none."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def fused_projections(config: ModelConfig) -> dict[str, list[Projection]]:
    """The published projections in each of our fused ones ("blocks.0.qkv")."""
    found: dict[str, list[Projection]] = {}
    for theirs, ours, start, shape in layout(config):
        if theirs.endswith(".weight") and "_proj" in theirs.split(".")[-2]:
            projection = Projection(theirs.removesuffix(".weight"), start, shape[0])
            found.setdefault(ours.removesuffix(".weight"), []).append(projection)
    return found


def adapted(model: Transformer) -> list[AdaptedLinear]:
    """The projections that have adapters, in the model's order."""
    return [module for module in model.modules() if isinstance(module, AdaptedLinear)]


@torch.no_grad()
def draw_adapters(model: Transformer, seed: int) -> None:
    """Start values: A uniform within 1 / sqrt(in), as PEFT draws it, from a seed for each projection; B zero."""
    for module in adapted(model):
        module.lora_b.zero_()
        for p, a, _ in module.parts():
            generator = torch.Generator().manual_seed(seed_of(seed, p.name))
            a.copy_((2 * torch.rand(a.shape, generator=generator) - 1) / math.sqrt(module.in_features))


@contextmanager
def merged_weights(model: Transformer) -> Iterator[None]:
    """Inside, the model computes with merged weights, which take their own memory; after it the base is back as it was."""
    modules = adapted(model)
    bases = [module.weight for module in modules]
    try:
        for module in modules:
            module.weight, module.merged = nn.Parameter(module.merged_weight(), requires_grad=False), True
        yield
    finally:
        for module, base in zip(modules, bases):
            module.weight, module.merged = base, False


def fold_adapters(model: Transformer) -> None:
    """Turn an adapted model into a plain one that computes with the merged weights; the base is overwritten."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear):
            inputs, outputs = module.in_features, module.out_features
            with torch.device("meta"):
                if module.groups > 1:
                    plain: nn.Linear = GroupedLinear(module.groups, inputs, outputs // module.groups)
                else:
                    plain = nn.Linear(inputs, outputs, bias=module.bias is not None)
            plain.weight, plain.bias = module.weight, module.bias
            with torch.no_grad():
                plain.weight.copy_(module.merged_weight())
            model.set_submodule(name, plain)


def adapter_tensors(model: Transformer) -> dict[str, Tensor]:
    """A and B of every projection by PEFT's names, fp32 views."""
    tensors = {}
    for module in adapted(model):
        for p, a, b in module.parts():
            tensors[f"{PREFIX}{p.name}.lora_A.weight"] = a
            tensors[f"{PREFIX}{p.name}.lora_B.weight"] = b
    return tensors


def load_adapter(model: Transformer, folder: Path) -> None:
    """Fill the adapters that a model has been given with those of a folder that save_adapter wrote.

    Raises UserError where the folder's are of other projections or of another rank.
    """
    path = folder / WEIGHTS
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}; make the adapter again") from None
    wanted = adapter_tensors(model)
    shapes, held = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (wanted, stored))
    if other := next((name for name in shapes.keys() | held.keys() if shapes.get(name) != held.get(name)), None):
        raise UserError(f"{path}: {shown(other)} is not that of this run's settings; restore the run's own adapter")
    for name, view in wanted.items():
        view.copy_(stored[name])


def save_adapter(model: Transformer, source: Path, folder: Path) -> None:
    """Write the adapters as a folder that PEFT loads onto `source`, the base, which goes by its name on the hub, or by that of
    its folder: the rest of the path is this machine's."""
    base = repo_of(source)
    modules = adapted(model)
    names = {p.name.rpartition(".")[2] for module in modules for p in module.projections}
    layers = {int(p.name.partition(".layers.")[2].split(".")[0]) for module in modules for p in module.projections}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name if base else source.absolute().name,
        "revision": base.revision if base else None,
        "r": modules[0].rank,
        "lora_alpha": modules[0].alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(names),
        "layers_to_transform": sorted(layers),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.contiguous() for name, t in adapter_tensors(model).items()}
    write_atomic(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    write_json(folder / CONFIG, config)
