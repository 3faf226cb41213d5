"""The product on a pretended cuda:0: a part of `python -m bench.gpu --dry` under a build of torch that knows CUDA.

torch's FakeTensorMode takes device="cuda" there: tensors have a place and no numbers. A tensor that was left on the CPU raises
as it would on the day, and so does an operator that has no CUDA kernel, or a captured step that waits for the device. Walked is
what the trainer does with a model: prefill, decode steps by pages (kernels stopped before their launch, graphs that run their
step), sampling, merging of adapters, packing, reference log-probs, the loss and its backward pass by hand (the autograd engine
asks for a driver), a fused optimiser step, offload, and the staging of a training state. A CPU build refuses such tensors.
"""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from safetensors.torch import save
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.pretended_gpu import Allocated, pretended_gpu, pretended_runtime
from o1core import Engine, SamplingParams, Tokenizer, Transformer
from o1core.distributed import offload, states
from o1core.kernels import dispatch
from o1core.kernels.numbers import Clip, Needs, Sequences, Softmax, Upstream
from o1core.model import (
    DeltaConfig,
    ExpertConfig,
    ModelConfig,
    adapted,
    add_adapters,
    draw_adapters,
    fold_adapters,
    merged_weights,
)
from o1core.rollout import engine, pages, row_bits
from o1core.rollout.prefill import prefill
from o1core.training import reference_logprobs
from o1core.types import Example

CAPABILITY = 90
GPU = torch.device("cuda", 0)
CONFIG = ModelConfig("Qwen2ForCausalLM", 512, 64, 96, 2, 4, 2, 16, 1e-6, 1e4, 2048, True, torch.bfloat16)
HYBRID = replace(
    CONFIG,
    architecture="Qwen3_5MoeForCausalLM",
    ffn_size=0,
    rotary_factor=0.25,
    experts=ExpertConfig(8, 2, 32, True, (0, 1), 32),
    delta=DeltaConfig(2, 4, 32, 32, 4, (0,)),
)
EXAMPLES = [
    Example("p", torch.arange(n, dtype=torch.int32), torch.arange(9, dtype=torch.int32), torch.zeros(9), 1.0, False)
    for n in (3, 5)
]
aten = torch.ops.aten


READS = (aten.item.default, aten._local_scalar_dense.default, aten.nonzero.default)


KEYS = ("CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd")


@cache
def runs_on_gpu(function: Any) -> bool:
    """Whether an operator has a CUDA kernel, is made of others, or asks for a property (prim)."""
    if function.namespace == "prim":
        return True
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), key) for key in KEYS)


class HostReads(TorchDispatchMode):
    """Copies to the host are zeros there, as FakeTensorMode cannot know them; inside a captured step they raise. So does an
    operator that has no CUDA kernel, of which FakeTensorMode asks for a shape alone."""

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
        on_gpu = any(isinstance(x, Tensor) and x.device.type == "cuda" for x in tree_leaves((args, kwargs)))
        if on_gpu and not runs_on_gpu(function):
            raise NotImplementedError(f"{function} has no CUDA kernel")
        if kwargs.get("pin_memory"):
            kwargs = kwargs | {"pin_memory": False}
        return function(*args, **kwargs)


@contextlib.contextmanager
def on_pretended_gpu(launched: Callable[..., None]) -> Iterator[None]:
    dispatch._new_enough.cache_clear()
    with contextlib.ExitStack() as stack:
        stack.enter_context(pretended_gpu(CAPABILITY, launched))
        stack.enter_context(pretended_runtime(CAPABILITY, Allocated("cuda")))
        stack.enter_context(mock.patch.object(pages, "Captured", Captured))
        batches = SimpleNamespace(base=256, holds=True)  # measured on the numbers of a real device
        for room, sizes in ((engine, "model_sizes"), (engine, "expert_sizes"), (row_bits, "expert_sizes")):
            stack.enter_context(mock.patch.object(room, sizes, lambda *_: batches))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda *_: None))  # there is none
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(HostReads())
        yield


class Captured:
    """Runs each step as if it were captured."""

    def __init__(self, places: Tensor | None) -> None:
        pass

    def __call__(self, step: Any, *numbers: int) -> None:
        HostReads.capturing = True
        try:
            step(*numbers)
        finally:
            HostReads.capturing = False


def model_on_gpu(config: ModelConfig = CONFIG) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    for module in model.modules():  # one by one: what moves a module as a whole does not take pretended tensors
        for name, p in module._parameters.items():
            if p is not None:
                weight = torch.empty(p.shape, dtype=config.dtype, device=GPU)
                module._parameters[name] = torch.nn.Parameter(weight)
    return model


def rollouts(config: ModelConfig) -> None:
    tokenizer = SimpleNamespace(eos_ids=(), size=500)
    sampler = Engine(model_on_gpu(config), cast(Tokenizer, tokenizer), slots=3)
    sampler.generate([[1, 2, 3], list(range(70))], SamplingParams(n=2, max_new_tokens=3, temperature=0.5, top_p=0.8))


def update() -> None:
    """A training step but for autograd's walk: each Function's backward by hand, on the gradient that the loss has made."""
    for config in (HYBRID, CONFIG):
        model = model_on_gpu(config)
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


def adapters() -> None:
    """Merged to sample, and the base back."""
    model = model_on_gpu()
    add_adapters(model, 4, None, "all", None)
    draw_adapters(model, 0)
    with merged_weights(model):
        prefill(model, [1, 2, 3])
    ids = torch.zeros(1, 4, dtype=torch.int64, device=GPU)
    assert model.hidden(ids).device == GPU
    fold_adapters(model)
    assert not adapted(model) and model.hidden(ids).device == GPU


def offloaded() -> None:
    """To the host's memory, which is page-locked, and back. Whole storages are moved, which a pretended tensor shares with no
    other and cannot show: what is copied from and to is another pretended tensor of its size."""
    tensors = [torch.empty(n, device=GPU) for n in (300, 5)]
    locks = Counter[str]()
    runtime = SimpleNamespace(
        cudaHostRegister=lambda place, size, flags: locks.update(register=1) or 0,
        cudaHostUnregister=lambda place: locks.update(unregister=1),
    )
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (offload, "bytes_of", lambda s: torch.empty(s.nbytes(), dtype=torch.uint8, device=GPU)),
            (torch.UntypedStorage, "data_ptr", lambda s: s._cdata),
            (torch.UntypedStorage, "device", GPU),
            (torch.cuda, "is_initialized", lambda: True),
            (torch.cuda, "cudart", lambda: runtime),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        host = offload.HostMemory()
        for part in (tensors[:1], tensors):  # the second takes a larger block
            with host.holding(part):
                assert not any(t.untyped_storage().nbytes() for t in part)
            assert all(t.untyped_storage().nbytes() == t.nbytes for t in part)
    assert locks == {"register": 2, "unregister": 1}


def staged() -> None:
    """A training state to a file through page-locked buffers. What arrives in the host's memory has no numbers: zeros of its
    shapes are written, outside the mode that pretends."""
    tensors = {"a": torch.empty(300, 70, device=GPU), "b": torch.empty(3, dtype=torch.bfloat16, device=GPU)}

    def written(found: dict[str, Tensor], **settings: Any) -> bytes:
        assert {name: (t.shape, t.dtype, t.device.type) for name, t in found.items()} == {
            name: (t.shape, t.dtype, "cpu") for name, t in tensors.items()
        }
        with unset_fake_temporarily():
            return save({name: torch.zeros(t.shape, dtype=t.dtype) for name, t in found.items()}, **settings)

    with (
        TemporaryDirectory() as folder,
        mock.patch.object(states, "STAGE_BYTES", 1 << 12),
        mock.patch.object(states, "to_host", mock.Mock(wraps=states.to_host)) as to_host,
        mock.patch("safetensors.torch.save", written),
    ):
        states.save_tensors(tensors, Path(folder))
        assert to_host.call_count == len(tensors) and list(Path(folder).iterdir()) == [Path(folder, states.SINGLE)]


def walk_product() -> str:
    """How it was walked. Raises what a part raises."""
    if torch.version.cuda is None:
        return f"not walked, for torch {torch.__version__} knows no CUDA"
    kernels: set[str] = set()
    with warnings.catch_warnings(), on_pretended_gpu(lambda kernel, options, build: kernels.add(kernel.fn.__name__)):
        warnings.simplefilter("ignore")  # addresses of tensors that have none
        rollouts(CONFIG)
        rollouts(HYBRID)
        adapters()
        update()
        offloaded()
        staged()
    return f"on a pretended cuda:0, {len(kernels)} kernels, torch {torch.__version__}"
