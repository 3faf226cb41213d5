"""The product on a pretended cuda:0: a part of `python -m bench.gpu --dry` under a build of torch that knows CUDA.

torch's FakeTensorMode takes device="cuda" there: tensors have a place and no numbers, and a tensor that was left on the CPU,
or an operator that has no CUDA kernel, raises as it would on the day. Walked is what the trainer does with a model: prefill,
decode steps by pages (kernels stopped before their launch, graphs that run their step), sampling, packing, reference
log-probs, the loss and its backward pass by hand (the autograd engine asks for a driver), a fused optimiser step, and the
copy of its moments to the host. A CPU build refuses such tensors. Left out on purpose: offload, which resizes storages that
are not there.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.pretended_gpu import pretended_gpu
from o1core import Engine, SamplingParams, Tokenizer, Transformer
from o1core.distributed.states import to_host
from o1core.kernels import dispatch
from o1core.kernels.numbers import Clip, Needs, Sequences, Softmax, Upstream
from o1core.model import ModelConfig
from o1core.rollout import engine, pages
from o1core.training import reference_logprobs
from o1core.types import Example

CAPABILITY = 90
GPU = torch.device("cuda", 0)
CONFIG = ModelConfig("Qwen2ForCausalLM", 512, 64, 96, 2, 4, 2, 16, 1e-6, 1e4, 2048, True, torch.bfloat16)
EXAMPLES = [
    Example("p", torch.arange(n, dtype=torch.int32), torch.arange(9, dtype=torch.int32), torch.zeros(9), 1.0, False)
    for n in (3, 5)
]
aten = torch.ops.aten


READS = (aten.item.default, aten._local_scalar_dense.default, aten.nonzero.default)


class HostReads(TorchDispatchMode):
    """Copies to the host are zeros there, as FakeTensorMode cannot know them; inside a captured step they raise."""

    capturing = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in READS and isinstance(args[0], fake_tensor.FakeTensor):
            assert not HostReads.capturing, f"{function} waits for the device inside a captured step"
            if function is aten.nonzero.default:
                return args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.int64)
            return 0
        if function in (aten.pin_memory.default, aten._pin_memory.default):
            return args[0]
        if kwargs.get("pin_memory"):
            kwargs = kwargs | {"pin_memory": False}
        return function(*args, **kwargs)


@contextlib.contextmanager
def on_pretended_gpu(launched: Callable[..., None]) -> Iterator[None]:
    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None)
    stream = SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: None)
    patched = {
        "get_device_capability": lambda *_: (CAPABILITY // 10, CAPABILITY % 10),
        "current_device": lambda: 0,
        "mem_get_info": lambda *_: (8 << 30, 80 << 30),
        "memory_reserved": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=80 << 30, multi_processor_count=132),
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "Event": lambda *_, **__: event,
        "Stream": lambda *_, **__: stream,
        "current_stream": lambda *_: stream,
    }
    dispatch._new_enough.cache_clear()
    with contextlib.ExitStack() as stack:
        stack.enter_context(pretended_gpu(CAPABILITY, launched))
        for name, value in patched.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(pages, "Captured", Captured))
        batches = SimpleNamespace(base=256, holds=True)  # measured on the numbers of a real device
        stack.enter_context(mock.patch.object(engine, "model_sizes", lambda *_: batches))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda *_: None))  # there is none
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(HostReads())
        yield


class Captured:
    """Runs each step as if it were captured."""

    def __call__(self, step: Any, *numbers: int) -> None:
        HostReads.capturing = True
        try:
            step(*numbers)
        finally:
            HostReads.capturing = False


def model_on_gpu() -> Transformer:
    with torch.device("meta"):
        model = Transformer(CONFIG)
    for module in model.modules():  # one by one: what moves a module as a whole does not take pretended tensors
        for name, p in module._parameters.items():
            if p is not None:
                weight = torch.empty(p.shape, dtype=CONFIG.dtype, device=GPU)
                module._parameters[name] = torch.nn.Parameter(weight)
    return model


def rollouts() -> None:
    tokenizer = SimpleNamespace(eos_ids=(), size=500)
    sampler = Engine(model_on_gpu(), cast(Tokenizer, tokenizer), slots=3)
    sampler.generate([[1, 2, 3], list(range(70))], SamplingParams(n=2, max_new_tokens=3, temperature=0.5, top_p=0.8))


def update() -> None:
    """A training step but for autograd's walk: each Function's backward by hand, on the gradient that the loss has made."""
    model = model_on_gpu()
    reference_logprobs(model, 500, EXAMPLES, 64)
    hidden = model.hidden(torch.zeros(2, 12, dtype=torch.int64, device=GPU)).flatten(0, 1).detach()
    weight, targets = model.lm_head.detach(), torch.zeros(24, dtype=torch.int64, device=GPU)
    run, softmax = dispatch.primitives(GPU), Softmax(1.0, 500)
    known = run.linear_forward(hidden, weight, targets, softmax, False)
    advantage, ends = torch.ones(2, device=GPU), torch.tensor([0, 12, 24], device=GPU)
    _, d_logp, _ = run.surrogate(
        known.logp, Sequences(known.logp, advantage, ends, None), Clip("sequence", 0.2, 0.2, 2.0)
    )
    run.linear_backward(hidden, weight, targets, softmax, known, Upstream(d_logp), Needs(True, True))
    kept = run.kept_forward(hidden, weight, targets, softmax)
    run.kept_gradient(kept, targets, d_logp, 1.0, None)
    masters = [p.detach().float() for p in model.parameters()]
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimiser = torch.optim.AdamW(masters, lr=1e-6, fused=True)
    optimiser.step()
    moments = [optimiser.state[m]["exp_avg"] for m in masters]
    for tensor in moments:
        assert to_host(tensor, 1 << 10).device.type == "cpu"


def walk_product() -> str:
    """How it was walked. Raises what a part raises."""
    if torch.version.cuda is None:
        return f"not walked, for torch {torch.__version__} knows no CUDA"
    kernels: set[str] = set()
    with warnings.catch_warnings(), on_pretended_gpu(lambda kernel, options, build: kernels.add(kernel.fn.__name__)):
        warnings.simplefilter("ignore")  # addresses of tensors that have none
        rollouts()
        update()
    return f"on a pretended cuda:0, {len(kernels)} kernels, torch {torch.__version__}"
