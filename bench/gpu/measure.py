"""What the rows of bench.gpu are made of: sizes, bars and how they scale to a card, times, and verdicts."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import torch

from o1core.model import ModelConfig

# By a part of the card's name, the first that fits: dense bf16 FLOP/s (fp32 sums) and bytes a second, as published.
CARDS = {
    "B200": (2.25e15, 8.0e12),
    "H200": (989e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100 NVL": (835e12, 3.9e12),
    "H100": (989e12, 3.35e12),
    "H800": (989e12, 3.35e12),
    "A100-SXM4-40": (312e12, 1.555e12),
    "A100": (312e12, 2.039e12),
    "A800": (312e12, 2.039e12),
    "L40S": (362e12, 0.864e12),
    "A10": (125e12, 0.6e12),
    "RTX 4090": (165e12, 1.008e12),
}
BASE = CARDS["H100"]  # whose bars the rows state
CARD_BYTES = 80 << 30  # of its memory
HELD = "peak / plan"  # a row's figure: the most that it held of a GPU's memory over what was planned
FLUSH = 1 << 30  # bytes that are written between two timings, more than a card's L2 cache holds


@dataclass(frozen=True)
class Sizes:
    """What the rows run at. The defaults are a 7B model's (Marco-o1: a head of `vocab` rows, `ids` of them tokens) on one H100;
    head_: of the head's own rows, as others publish them; small: a 1.5B model's."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    runs: int = 20  # timings of which the median is taken
    tokens: int = 8192
    head_hidden: int = 4096
    head_vocab: int = 131072
    hidden: int = 3584
    vocab: int = 152064
    ids: int = 151646
    check_tokens: int = 513  # of the rows that are held to float64
    check_hidden: int = 256
    check_vocab: int = 5003
    rows: int = 256  # decoded at once
    length: int = 1200  # tokens of each
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_size: int = 128
    ffn: int = 18944
    prompts: int = 32
    new_tokens: int = 500
    step_tokens: int = 128  # whose decoding is timed
    small_layers: int = 28
    small_hidden: int = 1536
    small_ffn: int = 8960
    small_heads: int = 12
    small_kv_heads: int = 2
    small_vocab: int = 151936
    batch: int = 16  # sequences of a training step
    sequence: int = 1025  # tokens of each: the last is never fed
    micro_tokens: int = 8192

    @property
    def on_gpu(self) -> bool:
        """Also a pretended one, whose tensors are torch's meta tensors."""
        return self.device != "cpu"


TINY = Sizes(
    device="cpu",
    dtype=torch.float32,
    runs=1,
    tokens=24,
    head_hidden=16,
    head_vocab=60,
    hidden=16,
    vocab=60,
    ids=58,
    check_tokens=5,
    check_hidden=8,
    check_vocab=75,
    rows=4,
    length=70,
    layers=1,
    heads=4,
    kv_heads=2,
    head_size=16,
    ffn=24,
    prompts=2,
    new_tokens=4,
    step_tokens=3,
    small_layers=1,
    small_hidden=16,
    small_ffn=24,
    small_heads=2,
    small_kv_heads=1,
    small_vocab=96,
    batch=2,
    sequence=9,
    micro_tokens=16,
)


@dataclass(frozen=True)
class Bar:
    """What a figure must reach on an H100. follows: what another card's bar is scaled by, its FLOP/s, its bytes a second,
    or nothing."""

    kind: Literal["at least", "at most"]
    value: float
    follows: Literal["flops", "bandwidth", ""] = ""

    def on(self, card: tuple[float, float] | None) -> "Bar | None":
        """The bar for a card of these FLOP/s and bytes a second; None where it is not known how the bar scales."""
        if not self.follows:
            return self
        if card is None:
            return None
        ratio = card[self.follows == "bandwidth"] / BASE[self.follows == "bandwidth"]
        return Bar(self.kind, self.value * ratio if self.kind == "at least" else self.value / ratio, self.follows)

    def met(self, value: float) -> bool:
        return value >= self.value if self.kind == "at least" else value <= self.value

    def __str__(self) -> str:
        return f"{self.kind} {self.value:,.5g}"


Found = dict[str, float | str]  # figure: its value, or why it was left out


@dataclass(frozen=True)
class Row:
    """One measurement. what: its sizes in words, with the fields of Sizes in braces; bars: by figure, the others have none;
    limit: seconds it may take; planned: bytes of a GPU that it may hold at its peak, where the product has a plan for what it
    does."""

    name: str
    what: str
    bars: dict[str, Bar]
    run: Callable[[Sizes], Found]
    limit: int = 60
    planned: Callable[[Sizes], int] | None = None

    def __post_init__(self) -> None:
        if self.planned is not None:
            self.bars[HELD] = Bar("at most", 1.0)

    def measure(self, sizes: Sizes) -> Found:
        """What the row finds, and the most that it held beside what is planned."""
        if sizes.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if sizes.on_gpu else 0
        found = self.run(sizes)
        if self.planned is not None:
            planned = self.planned(sizes)
            held = (torch.cuda.max_memory_allocated() - before) / planned if sizes.on_gpu else "no GPU"
            found |= {"planned GiB": planned / 2**30, HELD: held}
        return found

    def describe(self, sizes: Sizes) -> str:
        return self.what.format(**asdict(sizes))

    def bars_in_words(self) -> str:
        return "; ".join(f"{figure} {bar}" for figure, bar in self.bars.items()) or "no bar"

    def judge(self, result: dict[str, Any], card: tuple[float, float] | None) -> list[dict[str, Any]]:
        """The figures with their bars and verdicts. result: the row's figures as "found", or why there are none as "error"
        (its bars are missed) or "skipped"."""
        found: Found = result.get("found", {})
        why = (
            f"missed ({result['error']})" if "error" in result else f"skipped ({result.get('skipped', 'not measured')})"
        )
        figures = []
        for name in [*self.bars, *(name for name in found if name not in self.bars)]:
            value = found.get(name)
            bar = self.bars[name].on(card) if name in self.bars else None
            if value is None:
                verdict = why
            elif isinstance(value, str):
                verdict = f"skipped ({value})"
            elif bar is not None:
                verdict = "met" if bar.met(value) else "missed"
            else:
                verdict = f"an H100's bar: {self.bars[name]}" if name in self.bars else ""
            number = None if isinstance(value, str) else value
            figures.append({"figure": name, "value": number, "bar": str(bar) if bar else None, "verdict": verdict})
        return figures


def card_of(name: str) -> tuple[float, float] | None:
    """FLOP/s and bytes a second of the card of that name."""
    return next((rates for part, rates in CARDS.items() if part in name), None)


def milliseconds(work: Callable[[], object], sizes: Sizes) -> float:
    """The median time of a call. On a GPU by events, behind a write of 1 GiB that empties the L2 cache and gives the host
    time to launch."""
    if not sizes.on_gpu:
        start = time.perf_counter()
        work()
        return max(time.perf_counter() - start, 1e-9) * 1e3
    scratch = torch.empty(FLUSH, dtype=torch.int8, device=sizes.device)
    for _ in range(3):
        work()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(sizes.runs)]
    for start_mark, end_mark in marks:
        scratch.zero_()
        start_mark.record()
        work()
        end_mark.record()
    torch.cuda.synchronize()
    return median(a.elapsed_time(b) for a, b in marks)


def seven_b(sizes: Sizes) -> ModelConfig:
    """The shape of Qwen2-7B (Marco-o1)."""
    return ModelConfig(
        "Qwen2ForCausalLM",
        sizes.vocab,
        sizes.hidden,
        sizes.ffn,
        sizes.layers,
        sizes.heads,
        sizes.kv_heads,
        sizes.head_size,
        norm_eps=1e-6,
        rope_theta=1e6,
        max_positions=32768,
        tied=False,
        dtype=sizes.dtype,
    )


def generator_of(sizes: Sizes, seed: int) -> torch.Generator | None:
    """None for tensors that have no numbers."""
    return None if sizes.device == "meta" else torch.Generator(sizes.device).manual_seed(seed)


def normal(*shape: int, sizes: Sizes, seed: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Normal numbers of a standard deviation, made on the device."""
    generator = generator_of(sizes, seed)
    dtype = dtype or sizes.dtype
    return torch.empty(shape, dtype=dtype, device=sizes.device).normal_(0.0, scale, generator=generator)


def integers(high: int, *shape: int, sizes: Sizes, seed: int) -> torch.Tensor:
    """int64 from 0 to high - 1."""
    generator = generator_of(sizes, seed)
    return torch.randint(high, shape, generator=generator, device=sizes.device)
