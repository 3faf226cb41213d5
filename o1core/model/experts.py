"""A mixture of experts in place of the MLP: a router chooses a few of many small gated MLPs for each token.

Tokens are sorted by expert, so that each expert multiplies its own rows once: torch's grouped product on a GPU, a loop over
the experts that were chosen on a CPU. In a decode step the rollout engine cuts an expert's rows into blocks of fixed sizes
(rollout/row_bits.py), so a token's bits do not depend on who else was sent there; on a GPU that rests on the grouped
product, which is not tested there. Left out on purpose: the auxiliary loss (an update here moves a trained model a little, and
the router is frozen unless asked for), capacity limits (no token is ever dropped) and noise.

Two experts that score nearly alike may change places when a product rounds otherwise, and a token is then computed by others
than the ones that sampled it. So the rollout engine keeps which ones it used, an update says how many it agrees with, and
takes them instead of its own where it is asked to (routing replay, arXiv 2507.18071 and 2510.11370).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .elementwise import at_least_float32, silu

Choose = Callable[[int, Tensor], Tensor]  # (layer, experts int64 [..., chosen] of each token) -> those that compute it


def keep_choice(layer: int, chosen: Tensor) -> Tensor:
    """The router's own."""
    return chosen


class GroupedLinear(nn.Linear):
    """As many linear maps as there are groups, their rows stacked: weight [G out, in]. forward takes rows sorted by group
    and how many each group has."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__(inputs, groups * outputs, bias=False)
        self.groups = groups

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        assert counts is not None
        return grouped_product(x, self.weight, counts)


class Experts(nn.Module):
    """The experts of one layer, and where the family has one, a shared expert that computes every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        c = self.config = config.experts
        hidden = config.hidden_size
        self.router = nn.Linear(hidden, c.count, bias=False)
        self.gate_up = GroupedLinear(c.count, hidden, 2 * c.ffn_size)
        self.down = GroupedLinear(c.count, c.ffn_size, hidden)
        if c.shared_size:
            self.shared_router = nn.Linear(hidden, 1, bias=False)
            self.shared_gate_up = nn.Linear(hidden, 2 * c.shared_size, bias=False)
            self.shared_down = nn.Linear(c.shared_size, hidden, bias=False)

    def forward(self, x: Tensor, choose: Choose = keep_choice, layer: int = 0) -> Tensor:
        """The sum of the chosen experts' outputs, weighted, of x [..., H]."""
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.route(flat, choose, layer)
        order = chosen.flatten().argsort(stable=True)  # a place for each pair of token and expert, by expert
        # bincount would wait for the device to learn the largest number.
        counts = order.new_zeros(self.router.out_features).scatter_add_(0, chosen.flatten(), torch.ones_like(order))
        gate, up = self.gate_up(flat[order // chosen.shape[1]], counts).chunk(2, dim=-1)
        found = self.down(silu(gate) * up, counts)
        found = found[order.argsort()].view(*chosen.shape, -1)  # back beside their token, [N, chosen, H]
        out = (found * weights[..., None]).sum(1)
        if self.config.shared_size:
            gate, up = self.shared_gate_up(flat).chunk(2, dim=-1)
            out = out + self.shared_router(flat).sigmoid() * self.shared_down(silu(gate) * up)
        return out.view(x.shape)

    def route(self, flat: Tensor, choose: Choose, layer: int) -> tuple[Tensor, Tensor]:
        """The weights [N, chosen] and the numbers, int64, of the experts of tokens [N, H]."""
        logits = self.router(flat)
        scores = at_least_float32(logits).softmax(-1)
        chosen = choose(layer, scores.topk(self.config.chosen).indices)
        weights = scores.gather(-1, chosen)
        if self.config.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(logits.dtype), chosen


class Routes:
    """`choose` of an update: counts how often the router chooses the experts that sampled, in any order, and with `replay`
    takes theirs, weighted by the router's own scores of them.

    sampled: int16 [N, L, chosen], of the packed rows and the layers with experts; -1 where it is not known (a prompt's tokens).
    counts float64 [2]: pairs of a token and a layer that are alike, and all that were compared.
    """

    def __init__(self, sampled: Tensor, layers: tuple[int, ...], replay: bool) -> None:
        self.sampled, self.replay = sampled, replay
        self.index = {layer: i for i, layer in enumerate(layers)}
        self.counts = torch.zeros(2, dtype=torch.float64, device=sampled.device)

    def __call__(self, layer: int, chosen: Tensor) -> Tensor:
        theirs = self.sampled[:, self.index[layer]].long()
        known = theirs[:, :1] >= 0
        alike = known & (theirs.sort().values == chosen.sort().values).all(-1, keepdim=True)
        self.counts += torch.stack((alike.sum(), known.sum()))
        return torch.where(known, theirs, chosen) if self.replay else chosen


def stays_on_device(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a GPU multiplies groups without asking the host how large they are: torch's grouped product does so in bf16 on an
    H100 or B200, and copies the sizes to the host elsewhere."""
    return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device)[0] in (9, 10)


def grouped_product(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """x_g weight_g^T for each group g of rows: x [N, in] sorted by group, weight [G out, in], counts int64 [G]. [N, out]."""
    matrices = weight.view(len(counts), -1, weight.shape[1])
    aligned = x.shape[1] % 8 == 0 and matrices.shape[1] % 8 == 0
    if x.is_cuda and x.dtype == torch.bfloat16 and aligned:  # what it takes
        return F.grouped_mm(x.contiguous(), matrices.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
    # One unbind: its gradient is stacked once, where slices would each fill a gradient of all groups.
    parts = zip(x.split(counts.tolist()), matrices.unbind())
    return torch.cat([F.linear(part, matrix) for part, matrix in parts if len(part)])
