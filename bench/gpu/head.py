"""Rows about the log-probs and the loss of a large vocabulary: right, the same twice, and fast."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

from bench.kernel_providers import Case, logp_providers, surrogate_of, surrogate_rest
from o1core import kernels
from o1core.kernels.dispatch import primitives
from o1core.kernels.numbers import OnePassBudget, accumulator, add_product
from o1core.runs import Machine
from o1core.runs.footprint import scratch_of_head
from tests.kernels import reference

from .measure import CARD_BYTES, FLUSH, Bar, Found, Row, Sizes, integers, milliseconds, normal, seven_b

AT_MOST_TWICE = Bar("at most", 2.0)


def addmm(sizes: Sizes) -> Found:
    """total += a^T b of bf16 operands in fp32: a transposed view of padded rows into a part of total, as dW takes it."""
    rows, columns, width = sizes.tokens, sizes.head_hidden, sizes.check_hidden
    padded = normal(rows, width + 8, sizes=sizes, seed=0, dtype=torch.bfloat16)
    a, b = padded[:, :width], normal(rows, columns, sizes=sizes, seed=1, dtype=torch.bfloat16)
    total = normal(width + 1, columns, sizes=sizes, seed=2, dtype=torch.float32)
    truth = total[1:].double() + a.double().T @ b.double()
    add_product(total[1:], a.T, b)
    return {"relative error": ((total[1:] - truth).norm() / truth.norm()).item()}


@contextmanager
def backend(name: str) -> Iterator[None]:
    with mock.patch.dict(os.environ, {"O1CORE_KERNELS": name}):
        yield


@contextmanager
def passes(rows_a_wave: int) -> Iterator[None]:
    """linear_surrogate in two passes (0) or in one with waves of so many rows."""
    with mock.patch.object(OnePassBudget, "rows_a_wave", return_value=rows_a_wave):
        yield


def of_linear(
    ops: ModuleType, hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor, entropy: bool
) -> list[Tensor]:
    """Log-probs (and entropies) of a linear head, and both gradients."""
    leaves = [t.detach().requires_grad_() for t in (hidden, weight)]
    found = ops.linear_logprob(*leaves, targets, entropy=entropy)
    outputs = list(found) if entropy else [found]
    return [*outputs, *torch.autograd.grad(outputs, leaves, [upstream.to(o.dtype) for o in outputs])]


def of_logits(ops: ModuleType, logits: Tensor, targets: Tensor, upstream: Tensor, entropy: bool) -> list[Tensor]:
    """The same from stored logits, and their gradient."""
    leaf = logits.detach().requires_grad_()
    found = ops.gather_logprob(leaf, targets, entropy=entropy)
    outputs = list(found) if entropy else [found]
    return [*outputs, *torch.autograd.grad(outputs, leaf, [upstream.to(o.dtype) for o in outputs])]


def of_surrogate(
    ops: ModuleType, hidden: Tensor, weight: Tensor, targets: Tensor, rest: Sequence[Tensor | None]
) -> list[Tensor]:
    """Both gradients of the clipped loss."""
    leaves = [t.detach().requires_grad_() for t in (hidden, weight)]
    acc = accumulator(hidden.dtype)
    rest = [t.to(acc) if t is not None and t.is_floating_point() else t for t in rest]
    settings = {"ratio": "token", "eps_low": 0.2, "eps_high": 0.2, "normalizer": float(len(targets))}
    loss = ops.linear_surrogate(*leaves, targets, *rest, **settings)[0]
    return list(torch.autograd.grad(loss, leaves))


def times_torch(ours: list[Tensor], of_torch: list[Tensor], truth: list[Tensor]) -> float:
    """The largest ratio of our relative error to torch's own in the same dtype; errors below 1e-6 count as 1e-6."""

    def errors(found: list[Tensor]) -> list[float]:
        return [max(((f.double() - t).abs().max() / t.abs().max()).item(), 1e-6) for f, t in zip(found, truth)]

    return max(a / b for a, b in zip(errors(ours), errors(of_torch)))


def gradients(sizes: Sizes) -> Found:
    """Every path against float64, in fp32 and in the head's dtype. Logits lie around 20, where tokens are confident."""
    n, h, v = sizes.check_tokens, sizes.check_hidden, sizes.check_vocab
    exact = normal(n, h, sizes=sizes, seed=3, dtype=torch.float64)
    exact_weight = normal(v, h, sizes=sizes, seed=4, scale=6 * h**-0.5, dtype=torch.float64)
    targets = (exact @ exact_weight.T).argmax(1)
    targets[::2] = integers(v, n, sizes=sizes, seed=5)[::2]
    upstream = torch.linspace(0.5, 2.0, n, dtype=torch.float64, device=sizes.device)
    found: Found = {}
    for dtype in dict.fromkeys((torch.float32, sizes.dtype)):
        x, w = exact.to(dtype), exact_weight.to(dtype)
        name = str(dtype).removeprefix("torch.")
        linear = partial(of_linear, hidden=x, weight=w, targets=targets, upstream=upstream)
        truths = {e: of_linear(reference, x.double(), w.double(), targets, upstream, e) for e in (False, True)}
        for path, choice in {"chunked": "torch", "linear": "triton"}.items():
            with backend(choice):
                pairs = [(linear(kernels, entropy=e), linear(reference, entropy=e), truths[e]) for e in truths]
            found[f"{path} {name}"] = max(times_torch(*pair) for pair in pairs)
        z = x @ w.T
        gather = partial(of_logits, logits=z, targets=targets, upstream=upstream, entropy=True)
        truth = of_logits(reference, z.double(), targets, upstream, True)
        with backend("triton"):
            found[f"gather {name}"] = times_torch(gather(kernels), gather(reference), truth)
        at_start = reference.linear_logprob(x.double(), w.double(), targets)
        rest = [at_start + 0.01, *surrogate_rest(n, 0.0, sizes.device)[1:]]
        loss = partial(of_surrogate, hidden=x, weight=w, targets=targets, rest=rest)
        truth = of_surrogate(reference, x.double(), w.double(), targets, rest)
        for path, wave in {"kept": n, "waves": -(-n // 2)}.items():
            with backend("triton"), passes(wave):
                found[f"{path} {name}"] = times_torch(loss(kernels), loss(reference), truth)
    return found


def head_case(sizes: Sizes) -> Case:
    """Inputs of the head at its full size, made on the device."""
    n, h, v = sizes.tokens, sizes.head_hidden, sizes.head_vocab
    hidden = normal(n, h, sizes=sizes, seed=6).requires_grad_()
    weight = normal(v, h, sizes=sizes, seed=7, scale=3 * h**-0.5).requires_grad_()
    targets = integers(v, n, sizes=sizes, seed=8)
    upstream = normal(n, sizes=sizes, seed=9, dtype=torch.float32)
    with torch.no_grad():
        logp = kernels.linear_logprob(hidden, weight, targets)
    return Case(hidden, weight, targets, upstream, logp, surrogate_rest(n, 0.0, sizes.device))


def planned(sizes: Sizes) -> int:
    """Bytes of the head's inputs and their gradients, of what the plan of an update has for the loss, and of a timing."""
    config = replace(seven_b(sizes), vocab_size=sizes.head_vocab, hidden_size=sizes.head_hidden)
    inputs = (sizes.tokens + sizes.head_vocab) * sizes.head_hidden * sizes.dtype.itemsize
    machine = Machine(cuda=True, memory=CARD_BYTES)
    return 2 * inputs + scratch_of_head(config, sizes.tokens, machine) + FLUSH


def bits(sizes: Sizes) -> Found:
    """Each op twice on the same inputs."""
    case = head_case(sizes)
    few = slice(0, sizes.check_tokens)
    hidden, weight, targets = case.hidden.detach()[few], case.weight.detach(), case.targets[few]
    upstream = case.upstream[few]
    logits = hidden @ weight.T
    rest = [case.logp[few] + 0.01, *surrogate_rest(len(upstream), 0.0, sizes.device)[1:]]
    runs: list[Callable[[], list[Tensor]]] = [
        lambda: of_linear(kernels, hidden, weight, targets, upstream, True),
        lambda: of_logits(kernels, logits, targets, upstream, True),
        *(partial(loss_in_waves, wave, hidden, weight, targets, rest) for wave in (0, len(upstream))),
    ]
    different = sum(not torch.equal(a, b) for run in runs for a, b in zip(run(), run()))
    return {"tensors that differ": different}


def loss_in_waves(
    wave: int, hidden: Tensor, weight: Tensor, targets: Tensor, rest: Sequence[Tensor | None]
) -> list[Tensor]:
    with passes(wave):
        return of_surrogate(kernels, hidden, weight, targets, rest)


def row_order(sizes: Sizes) -> Found:
    """Log-probs of the rows in another order, and of the first rows alone."""
    case = head_case(sizes)
    hidden, weight = case.hidden.detach(), case.weight.detach()
    order = torch.randperm(sizes.tokens, generator=torch.Generator().manual_seed(1)).to(sizes.device)
    turned = kernels.linear_logprob(hidden[order], weight, case.targets[order])
    alone = kernels.linear_logprob(hidden[:1], weight, case.targets[:1])
    return {"rows that differ": int((turned != case.logp[order]).sum()) + int((alone != case.logp[:1]).sum())}


def work(sizes: Sizes) -> float:
    """NVH in units of 1e9: a product's FLOPs are twice that, and over milliseconds they are TFLOP/s / 500."""
    return sizes.tokens * sizes.head_vocab * sizes.head_hidden / 1e9


def forward(sizes: Sizes) -> Found:
    case = head_case(sizes)
    inputs = case.hidden.detach(), case.weight.detach(), case.targets
    taken = milliseconds(lambda: kernels.linear_logprob(*inputs), sizes)
    return {"TFLOP/s": 2 * work(sizes) / taken, "ms": taken}


def backward(sizes: Sizes) -> Found:
    case = head_case(sizes)
    logp = kernels.linear_logprob(case.hidden, case.weight, case.targets)
    leaves = case.hidden, case.weight
    taken = milliseconds(lambda: torch.autograd.grad(logp, leaves, case.upstream, retain_graph=True), sizes)
    return {"TFLOP/s": 6 * work(sizes) / taken, "ms": taken}


def one_pass(sizes: Sizes) -> Found:
    """Loss and gradients; and that the budget takes the whole batch at once."""
    case = head_case(sizes)
    leaves = case.hidden, case.weight

    def step() -> object:
        loss = surrogate_of(None, "sequence_mean", *leaves, case.targets, case)
        return torch.autograd.grad(loss, leaves)

    run = primitives(case.hidden.device)
    rows = run.one_pass.rows_a_wave(sizes.tokens, case.weight, "sequence_mean")
    return {"ms": milliseconds(step, sizes), "rows at a time / tokens": rows / sizes.tokens}


def against(peer: str, sizes: Sizes) -> Found:
    """Forward and backward of the log-probs, theirs over ours."""
    providers = logp_providers(sizes.device)
    if peer not in providers:
        return {"theirs / ours": f"{peer} is not installed"}
    case = head_case(sizes)
    leaves = case.hidden, case.weight

    def full(name: str) -> float:
        return milliseconds(
            lambda: torch.autograd.grad(providers[name](*leaves, case.targets), leaves, case.upstream), sizes
        )

    ours, theirs = full("ours"), full(peer)
    return {"theirs / ours": theirs / ours, "our ms": ours, "their ms": theirs}


HEAD = "{tokens:,} tokens x {head_hidden} x {head_vocab:,}"
PATHS = [
    f"{path} {dtype}" for dtype in ("float32", "bfloat16") for path in ("chunked", "linear", "gather", "kept", "waves")
]
ROWS = [
    Row(
        "addmm",
        "fp32 total += bf16 [{check_hidden}, {tokens}] [{tokens}, {head_hidden}]",
        {"relative error": Bar("at most", 1e-5)},
        addmm,
    ),
    Row(
        "gradients",
        "{check_tokens} tokens x {check_hidden} x {check_vocab}: error against float64 over torch's own",
        dict.fromkeys(PATHS, AT_MOST_TWICE),
        gradients,
        limit=150,
    ),
    Row(
        "same bits",
        "each op twice, {check_tokens} tokens x {head_hidden} x {head_vocab:,}",
        {"tensors that differ": Bar("at most", 0)},
        bits,
        planned=planned,
    ),
    Row(
        "row order",
        HEAD + ", rows shuffled, and one alone",
        {"rows that differ": Bar("at most", 0)},
        row_order,
        planned=planned,
    ),
    Row("forward", HEAD, {"TFLOP/s": Bar("at least", 700, "flops")}, forward, planned=planned),
    Row("backward", HEAD + ", two passes, 6NVH", {"TFLOP/s": Bar("at least", 690, "flops")}, backward, planned=planned),
    Row(
        "one pass",
        HEAD + ", loss and gradients",
        {"ms": Bar("at most", 39, "flops"), "rows at a time / tokens": Bar("at least", 1)},
        one_pass,
        planned=planned,
    ),
    *(
        Row(
            f"against {peer}",
            HEAD + ", forward and backward",
            {"theirs / ours": Bar("at least", 1)},
            partial(against, peer),
        )
        for peer in ("linear_cross_entropy", "liger_kernel", "cut_cross_entropy", "trl")
    ),
]
