"""The decode step that a GPU captures, looked at on a CPU: what it launches, that it waits for nothing, and what it samples."""

import contextlib
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

import o1core
from o1core import Engine, SamplingParams, Transformer
from o1core.distributed import ALONE
from o1core.errors import UserError
from o1core.kernels import configs, dispatch
from o1core.model import ModelConfig, causal_attention, initialise
from o1core.rollout import cache_kind, engine, pages
from o1core.rollout.pages import Captured, PagedCache, PageDecoder, rounded_splits
from o1core.rollout.row_bits import head_columns, head_product
from o1core.rollout.sampling import device_uniforms, uniforms
from tests.campaigns.bits import Words
from tests.kernels.triton_cases import needs_interpreter
from tests.rollout.graphed import Graphed, captured

SHAPE = ModelConfig("Qwen2ForCausalLM", 75, 64, 96, 2, 6, 2, 16, 1e-6, 1e4, 512, True, torch.float64)
PARAMS = SamplingParams(n=2, max_new_tokens=4, seed=3)
PROMPTS = [[5, 6, 7], list(range(1, 65))]


def model_of(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    model = Transformer(config)
    initialise(model, seed=0, std=0.2)
    return model.to(dtype)


def test_the_device_makes_the_random_numbers_of_the_host():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**63), 2**63 - 1, (2000,), generator=generator)
    steps = torch.randint(0, 20_000, (2000,), generator=generator)
    expected = uniforms([key % 2**64 for key in keys.tolist()], steps.tolist())
    assert device_uniforms(keys, steps).tolist() == expected.tolist()


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch; refuses what would leave the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        name = str(function)
        assert "_local_scalar_dense" not in name and "nonzero" not in name
        inputs = [x for x in args if isinstance(x, torch.Tensor)]
        outputs = list(out) if isinstance(out, tuple | list) else [out]
        assert all(tensor.device.type == "meta" for tensor in (*inputs, *outputs)), name
        storages = {tensor.untyped_storage()._cdata for tensor in inputs}
        view = all(tensor.untyped_storage()._cdata in storages for tensor in outputs) and "_." not in name
        if not view and "empty" not in name:
            self.names.append(name)
        return out


def launches_of_a_step(config: ModelConfig, monkeypatch, backend: str = "triton") -> list[str]:
    """Everything that the captured step of 256 rows launches on a GPU. Tensors have no numbers, so nothing can be read back;
    kernels are noted and not run, and an RMSNorm is one of torch's own, as it is on a GPU."""
    launches, device = Launches(), torch.device("meta")
    monkeypatch.setenv("O1CORE_KERNELS", backend)
    monkeypatch.setattr(configs, "target", lambda device: "sm_90")
    monkeypatch.setattr(InterpretedFunction, "run", lambda self, *_, **__: launches.names.append(self.fn.__name__))
    monkeypatch.setattr(F, "rms_norm", lambda *arguments: torch.ops.aten._fused_rms_norm(*arguments)[0])
    with device:
        model = Transformer(config).to(torch.bfloat16)
    cache = PagedCache(config, 256, 16, 512, torch.bfloat16, device)
    batches, head = SimpleNamespace(base=256), lambda hidden: F.linear(hidden, model.lm_head)
    decoder = PageDecoder(model, head, cache, batches, SamplingParams(temperature=0.6, top_p=0.9), ALONE)
    with torch.inference_mode(), launches:
        decoder._compute(0, 256, 1)
    return launches.names


@needs_interpreter
@pytest.mark.parametrize(
    "family, most", [("Qwen2ForCausalLM", 13), ("Qwen3ForCausalLM", 17), ("SmolLM3ForCausalLM", 13)]
)
def test_a_captured_step_launches_few_kernels_a_layer_and_never_asks_the_host(monkeypatch, family, most):
    """A layer's launches are the difference that one more layer makes; one that is not rotated launches as many. Of Qwen3's
    two are copies of q and k before their norms, which torch's own norm would make inside."""
    nope = (2,) if family.startswith("SmolLM3") else ()
    config = ModelConfig(family, 75, 64, 96, 2, 6, 2, 16, 1e-6, 1e4, 512, True, torch.bfloat16, nope_layers=nope)
    two, three = (launches_of_a_step(replaced(config, num_layers=n), monkeypatch) for n in (2, 3))
    assert len(three) - len(two) <= most
    assert three.count("write_pages_kernel") == three.count("paged_attention_kernel") == 3
    assert three.count("sample_candidates_kernel") == three.count("sample_row_kernel") == 1


def test_the_head_is_cut_at_a_multiple_of_64_tokens_on_a_gpu():
    cut = [
        head_columns(rows, vocab, True) for rows, vocab in ((152_064, 151_646), (151_650, 151_646), (128_256, 128_256))
    ]
    assert cut == [151_680, 151_650, 128_256]
    assert head_columns(152_064, 151_646, on_gpu=False) == 151_646


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_of_a_gpu_are_not_rounded_to_16_bits(dtype):
    with torch.device("meta"):
        logits = head_product(torch.empty(75, 64, dtype=dtype), False)(torch.empty(256, 64, dtype=dtype))
    assert logits.shape == (256, 75) and logits.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("dtype, heads", [(torch.float32, 6), (torch.bfloat16, 2)])
def test_grouped_heads_reach_a_kernel_of_a_gpu_that_takes_them(monkeypatch, dtype, heads):
    """In fp32 none does, so keys and values are repeated there."""
    seen, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: seen.append((a[1], k)) or attention(*a, **k))
    q, k, v = (torch.empty(2, 9, n, 16, dtype=dtype, device="meta") for n in (6, 2, 2))
    assert causal_attention(0, q, k, v).shape == (2, 9, 6, 16)
    ((keys, options),) = seen
    assert keys.shape == (2, heads, 9, 16) and options["enable_gqa"] == (heads != 6)


def test_the_torch_twins_are_seen_to_ask_the_host(monkeypatch):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        launches_of_a_step(SHAPE, monkeypatch, "torch")


def replaced(config: ModelConfig, **changes) -> ModelConfig:
    return ModelConfig(**vars(config) | changes)


@needs_interpreter
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_kernels_of_a_gpu_sample_what_their_torch_twins_sample(monkeypatch):
    """float64, in Triton's interpreter: attention over pages, the write of pages and the sampler, a step ahead."""
    monkeypatch.setenv("O1CORE_CACHE", "pages")
    model, words = model_of(replaced(SHAPE, num_layers=1, num_heads=2, num_kv_heads=1), torch.float64), Words(75)
    params = SamplingParams(max_new_tokens=3, seed=3, temperature=0.7)
    expected = Engine(model, words, slots=4).generate(PROMPTS, params)
    monkeypatch.setenv("O1CORE_KERNELS", "triton")
    monkeypatch.setattr(engine, "PageDecoder", OneAhead)
    found = Engine(model, words, slots=4).generate(PROMPTS, params)
    assert [[c.ids for c in group] for group in found] == [[c.ids for c in group] for group in expected]
    for a, b in zip(chain(*found), chain(*expected)):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-6)


class OneAhead(PageDecoder):
    """With the host as far ahead as it is on a GPU."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        assert self.triton
        self.lookahead = 1


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "Qwen3ForCausalLM"},
        {"architecture": "SmolLM3ForCausalLM", "nope_layers": (1,)},
        {"num_heads": 2, "scaling": o1core.model.rope.Yarn(4.0, 1.2, 32.0, 1.0, 128, True)},
    ],
    ids=["norms of heads", "a layer without a rotary embedding", "yarn"],
)
def test_every_kind_of_layer_has_the_tokens_of_lanes(monkeypatch, changes):
    model, found = model_of(replaced(SHAPE, **changes), torch.float64), {}
    for kind in ("lanes", "pages"):
        monkeypatch.setenv("O1CORE_CACHE", kind)
        found[kind] = Engine(model, Words(75), slots=4).generate(PROMPTS, PARAMS)
    for a, b in zip(chain(*found["lanes"]), chain(*found["pages"])):
        assert a.ids == b.ids and a.logprobs == pytest.approx(b.logprobs, abs=1e-6)


def test_splits_are_a_power_of_two_or_the_most_there_can_be():
    found = [rounded_splits(longest, 512, 17) for longest in (0, 1, 512, 513, 1024, 1025, 2049, 4097, 8193, 8704)]
    assert found == [1, 1, 1, 2, 2, 4, 8, 16, 17, 17]


def test_graphs_are_captured_once_and_replayed(monkeypatch):
    """Against a stand-in for torch's graphs, which notes what is run while it captures and runs it at a replay."""
    calls, capturing = [], []

    class Graph:
        def replay(self):
            calls.append(("replay", self.numbers))

        def pool(self):
            return "pool"

    @contextlib.contextmanager
    def graph(made, pool, capture_error_mode):
        assert capture_error_mode == "thread_local", "another thread may use the device meanwhile"
        capturing.append(pool)
        yield
        made.numbers = calls.pop()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(
        pages.torch,
        "cuda",
        SimpleNamespace(
            CUDAGraph=Graph,
            Stream=lambda: stream,
            current_stream=lambda: stream,
            stream=lambda s: contextlib.nullcontext(),
            graph=graph,
        ),
    )
    places, seen_places = torch.tensor([3, 1]), []
    captured = Captured(places)

    def step(*numbers):
        calls.append(numbers)
        seen_places.append(places.tolist())

    for numbers in ((0, 256, 1), (256, 256, 1), (0, 256, 1)):
        captured(step, *numbers)
    assert capturing == [None, "pool"]
    assert seen_places == [[0, 0], [3, 1]] * 2, (
        "a rehearsal moves nobody's states, and what is captured those of the rows"
    )
    first, second = (0, 256, 1), (256, 256, 1)
    assert calls == [first, ("replay", first), second, ("replay", second), ("replay", first)]


def test_graphs_are_kept_until_something_moves(monkeypatch):
    """Across calls of the engine, other seeds and an update in place; not when a weight has moved, for tokens that are drawn
    otherwise, or when the cache was given back or is another one."""
    monkeypatch.setenv("O1CORE_CACHE", "pages")
    model, words = model_of(SHAPE, torch.float64), Words(75)

    def tokens(engine: Engine, params: SamplingParams) -> list[list[int]]:
        return [c.ids for c in chain(*engine.generate(PROMPTS, params))]

    def captures(change=lambda: None, params: SamplingParams = PARAMS) -> int:
        captured.clear()
        change()
        with monkeypatch.context() as patch:
            patch.setattr(engine, "PageDecoder", Graphed)
            found = tokens(kept, params)
        assert found == tokens(Engine(model, words, slots=4), params), "as without graphs"
        return len(captured)

    def update() -> None:
        with torch.no_grad():
            model.blocks[0].o.weight.mul_(1.5)

    def move() -> None:
        model.blocks[1].down.weight.data = model.blocks[1].down.weight.data.clone()

    kept = Engine(model, words, slots=4)
    assert captures() > 0
    assert captures() == captures(update) == captures(params=replace(PARAMS, seed=4, n=1)) == 0
    for change in (move, kept.release):
        assert captures(change) > 0
        assert captures() == 0
    for params in (
        replace(PARAMS, temperature=0.5),
        replace(PARAMS, top_p=0.9),
        replace(PARAMS, max_new_tokens=65, n=1),
    ):
        assert captures(params=params) > 0


def test_logits_that_are_not_finite_are_refused(monkeypatch):
    monkeypatch.setenv("O1CORE_CACHE", "pages")
    model = model_of(SHAPE, torch.float32)
    with torch.no_grad():
        model.norm.fill_(float("nan"))
    with pytest.raises(UserError, match="logits are not finite"):
        Engine(model, Words(75)).generate(PROMPTS, PARAMS)


@pytest.mark.parametrize("changes, reason", [({"head_dim": 24}, "head size 24"), ({"num_heads": 34}, "17 query heads")])
def test_a_gpu_has_lanes_where_the_kernels_do_not_take_the_heads(monkeypatch, caplog, changes, reason):
    monkeypatch.delenv("O1CORE_CACHE", raising=False)
    engine._warn_once.cache_clear()
    config, device = replaced(SHAPE, **changes), torch.device("cuda")
    assert [cache_kind(config, device) for _ in range(2)] == ["lanes", "lanes"]
    (line,) = caplog.messages
    assert reason in line and "lanes run instead of pages" in line and "\n" not in line
    assert cache_kind(SHAPE, device) == "pages" and cache_kind(config, torch.device("cpu")) == "lanes"


def test_an_old_gpu_has_lanes_with_one_line(monkeypatch):
    monkeypatch.delenv("O1CORE_CACHE", raising=False)
    monkeypatch.delenv("O1CORE_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    dispatch._new_enough.cache_clear()
    with pytest.warns(UserWarning, match=r"compute capability 7.5: .* torch runs instead$") as lines:
        assert cache_kind(SHAPE, torch.device("cuda", 0)) == "lanes"
    assert len(lines) == 1
    dispatch._new_enough.cache_clear()
