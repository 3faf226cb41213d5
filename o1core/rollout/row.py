"""A completion in the making."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..types import Completion

# Waits for a decode step; returns ids and log-probs, one a row, and each row's experts (types.Completion), if there are any.
Read = Callable[[], tuple[list[int], list[float], Tensor | None]]


@dataclass(eq=False)
class Row:
    """A completion being decoded.

    length: tokens in its cache once every launched step has run; steps: how many were launched; token: the last one that
    was read, and before the first step the prompt's last. Where the host looks a step ahead, ids has one token fewer than
    there were steps. restarted: the row lost its pages, and a new one starts in its place (`again`).
    """

    prompt: int
    sample: int
    key: int
    length: int
    token: int
    limit: int
    steps: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    routes: list[Tensor] = field(default_factory=list)
    finish_reason: str | None = None
    restarted: bool = False

    def launched(self) -> None:
        """A step with this row was launched."""
        self.length += 1
        self.steps += 1

    def append(self, token: int, logprob: float, route: Tensor | None, eos: frozenset[int]) -> None:
        """Take the token that was sampled; finish_reason says afterwards whether it was the last."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if route is not None:
            self.routes.append(route)
        self.token = token
        if token in eos:
            self.finish_reason = "stop"
        elif len(self.ids) == self.limit:
            self.finish_reason = "length"

    def again(self, prompt: list[int]) -> "Row":
        """The row that goes on from the tokens that were read. prompt: its ids."""
        tokens, steps = prompt + self.ids, len(self.ids)
        counts = len(tokens) - 1, tokens[-1], self.limit, steps
        return Row(self.prompt, self.sample, self.key, *counts, list(self.ids), list(self.logprobs), list(self.routes))

    @property
    def open(self) -> bool:
        """Whether its next token is wanted."""
        return self.finish_reason is None and not self.restarted

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        routes = torch.stack(self.routes) if self.routes else None
        return Completion(self.ids, self.logprobs, self.finish_reason, routes)
