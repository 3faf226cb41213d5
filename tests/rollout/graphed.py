"""CUDA graphs pretended: what the engine does with them, without a GPU."""

from types import SimpleNamespace

from o1core.rollout.pages import Captured, PageDecoder

captured: list[tuple[int, int, int]] = []  # the numbers of every capture


class PretendedGraphs(Captured):
    """Graphs that run the step they were captured with, and notice where a GPU's would read what is no longer there."""

    def _capture(self, step, numbers):
        decoder = step.__self__
        captured.append(numbers)
        assumed = decoder.assumptions(decoder.params)
        self._rehearse(step, numbers)

        def replay():
            assert decoder.assumptions(decoder.params) == assumed
            step(*numbers)

        return SimpleNamespace(replay=replay)


class Graphed(PageDecoder):
    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.graphs = PretendedGraphs(self.sent[5])
