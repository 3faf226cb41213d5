"""A decode step as a CUDA graph: hundreds of launches become one.

A step is called with (first row, rows, splits of attention). Elsewhere than on a GPU it is a plain call. On a GPU it is
captured the first time that its numbers are seen, and replayed from then on: it must read and write the same tensors every
time, wait for nothing and ask the host for nothing (tests/rollout/test_page_decoder.py holds it to that on a CPU).

Attention has one program for each split of 512 tokens that the longest row has, so the number of splits is rounded up to
1, 2, 4, 8, ... or the most there can be, and a graph serves all lengths up to that. Graphs live as long as one call of the
engine: between two of them an update moves weights, whose addresses are in the graph. Nothing here ran on a GPU.
"""

from collections.abc import Callable

import torch

Step = Callable[[int, int, int], None]


class Captured:
    """Steps in graphs, one for each set of numbers that they are called with; all share one pool of memory.

    The step is handed over with each call and not kept: a step that its owner keeps would keep the owner, and with it the
    cache, past its time.
    """

    def __init__(self) -> None:
        self.graphs: dict[tuple[int, int, int], torch.cuda.CUDAGraph] = {}

    def __call__(self, step: Step, first: int, rows: int, splits: int) -> None:
        """Replay the step of these numbers; `step` itself is called where there is no graph of it yet."""
        numbers = first, rows, splits
        if numbers not in self.graphs:
            self.graphs[numbers] = self._capture(step, numbers)
        self.graphs[numbers].replay()

    def _capture(self, step: Step, numbers: tuple[int, int, int]) -> torch.cuda.CUDAGraph:
        """A graph of the step. The step runs once before: kernels are compiled then, and libraries take their workspaces.
        It does no harm: what a step writes does not change what it reads."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            step(*numbers)
        torch.cuda.current_stream().wait_stream(beside)
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            step(*numbers)
        return graph


def rounded_splits(longest: int, split: int, most: int) -> int:
    """Splits of `split` tokens that a step for rows of up to `longest` tokens is made for: a power of two, or `most`."""
    needed = max(1, -(-longest // split))
    return min(most, 1 << (needed - 1).bit_length())
