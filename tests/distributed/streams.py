"""Streams and events of a GPU that is not there: work is queued, and done when somebody has to wait for it.

A tensor `OnGpu` is one of the host's memory that says it lies on a GPU. A copy from it that need not be waited for goes to the
stream that is current in the thread, so that whoever reads the copy too early reads what was there before.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

HERE = threading.local()  # .stream, .device


class Stream:
    """Work in order."""

    def __init__(self, name: str = "beside") -> None:
        self.name, self.queue, self.done = name, list[Callable[[], object]](), 0

    def wait_event(self, event: "Event") -> None:
        self.queue.append(event.synchronize)

    def run(self, until: int) -> None:
        while self.done < until:
            self.done += 1
            self.queue[self.done - 1]()


class Event:
    """The end of what a stream had to do when it was recorded; of none before."""

    def __init__(self) -> None:
        self.stream, self.place = current(), 0

    def record(self) -> None:
        self.stream, self.place = current(), len(current().queue)

    def synchronize(self) -> None:
        self.stream.run(self.place)


def current() -> Stream:
    return HERE.stream


class OnGpu(Tensor):
    is_cuda = True
    copies: ClassVar[list[tuple[str, int]]] = []  # the stream and the device of each

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.copy_ and kwargs.pop("non_blocking", False):
            to, source = args[0], args[1].as_subclass(Tensor)
            cls.copies.append((current().name, HERE.device))
            current().queue.append(lambda: to.copy_(source))
            return to
        return super().__torch_function__(function, types, args, kwargs)


@contextlib.contextmanager
def streams() -> Iterator[Stream]:
    """Inside, torch.cuda's streams and events are these. Yields the one that this thread launches on."""
    main, empty = Stream("default"), torch.empty
    HERE.stream, HERE.device, OnGpu.copies = main, 0, []

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, HERE.stream = getattr(HERE, "stream", None), stream
        yield
        HERE.stream = before

    patched = {
        "Stream": Stream,
        "Event": Event,
        "stream": on,
        "set_device": lambda device: setattr(HERE, "device", torch.device(device).index),
    }
    with contextlib.ExitStack() as stack:
        for name, value in patched.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k)))
        yield main
