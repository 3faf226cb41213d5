"""Sums over ranks, and the dealing of a batch to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .. import interrupts
from .world import rank, size, world

T = TypeVar("T")


def total(values: Tensor) -> Tensor:
    """The sum of every rank's values, in a new tensor; of one process, its own."""
    if world() is None:
        return values
    result = values.clone()
    dist.all_reduce(result, dist.ReduceOp.SUM)
    return result


def largest(values: Tensor) -> Tensor:
    """The elementwise maximum over ranks."""
    if world() is None:
        return values
    result = values.clone()
    dist.all_reduce(result, dist.ReduceOp.MAX)
    return result


def any_rank(true_here: bool) -> bool:
    """Whether it is true on one of the ranks."""
    opened = world()
    if opened is None:
        return true_here
    return bool(total(torch.tensor(float(true_here), device=opened.device)).item())


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """interrupts.deferred; what it yields says whether a signal has arrived on one of the ranks."""
    with interrupts.deferred() as arrived:
        yield lambda: any_rank(arrived())


def split_by_cost(costs: Sequence[int]) -> list[list[int]]:
    """Deal things of these costs to all ranks: the dearest first, each to whom has least. Returns each rank's indices,
    in order; some get none where there are fewer things than ranks. One process gets all."""
    loads = [0] * size()
    result: list[list[int]] = [[] for _ in loads]
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        poorest = loads.index(min(loads))
        loads[poorest] += costs[i]
        result[poorest].append(i)
    return [sorted(indices) for indices in result]


def of_this_rank(of_ranks: Sequence[T]) -> T:
    """This rank's item."""
    return of_ranks[rank()]
