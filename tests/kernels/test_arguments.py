"""A wrong argument of an op of o1core.kernels is a ValueError that begins with the argument's name, before any launch."""

import pytest
import torch

from o1core import kernels
from tests.kernels.kernel_cases import CLIP, head_case


def linear(**changes):
    hidden, weight, targets = head_case(4, 9)
    return kernels.linear_logprob(**{"hidden": hidden, "weight": weight, "targets": targets} | changes)


def gather(**changes):
    return kernels.gather_logprob(
        **{"logits": torch.zeros(4, 9), "targets": torch.zeros(4, dtype=torch.long)} | changes
    )


SURROGATE = {
    "ref_logp": torch.zeros(4, dtype=torch.float64),
    "advantage": torch.zeros(2, dtype=torch.float64),
    "cu_seqlens": torch.tensor([0, 3, 4]),
    "mask": None,
    "ratio": "token",
    "normalizer": 1.0,
    **CLIP,
}


def clipped(**changes):
    return kernels.clipped_surrogate(**{"logp": torch.zeros(4), **SURROGATE} | changes)


def fused(**changes):
    hidden, weight, targets = head_case(4, 9)
    return kernels.linear_surrogate(**{"hidden": hidden, "weight": weight, "targets": targets, **SURROGATE} | changes)


def advantage(**changes):
    values = {
        "lengths": torch.tensor([3, 4]),
        "correct": torch.tensor([0, 1]),
        "group": torch.tensor([0, 0]),
        "lam": 2.0,
    }
    return kernels.length_harmonizing_advantage(**values | changes)


WRONG_HEAD = [
    ("targets", torch.tensor([0, 1, 2, -1])),
    ("targets", torch.tensor([0, 1, 2, 9])),
    ("targets", torch.tensor([0, 1, 2])),
    ("targets", torch.tensor([0.0, 1, 2, 3])),
    ("hidden", torch.zeros(16, dtype=torch.float64)),
    ("hidden", torch.zeros(4, 16, dtype=torch.int64)),
    ("weight", torch.zeros(9, 15, dtype=torch.float64)),
    ("weight", torch.zeros(9, 16, dtype=torch.float32)),
    ("weight", torch.zeros(16, 9, dtype=torch.float64).T),
    ("weight", torch.zeros(0, 16, dtype=torch.float64)),
    ("weight", torch.zeros(9, 16, 1, dtype=torch.float64)),
    ("temperature", 0.0),
    ("temperature", float("nan")),
    ("vocab_size", 0),
    ("vocab_size", 10),
    ("vocab_size", 2.5),
]
WRONG_SURROGATE = [
    ("ref_logp", torch.zeros(3)),
    ("ref_logp", torch.zeros(4, dtype=torch.long)),
    ("advantage", torch.zeros(3)),
    ("advantage", torch.zeros(2, dtype=torch.bool)),
    ("cu_seqlens", torch.tensor([0, 3, 5])),
    ("cu_seqlens", torch.tensor([1, 3, 4])),
    ("cu_seqlens", torch.tensor([0, 5, 4])),
    ("cu_seqlens", torch.tensor([0.0, 3, 4])),
    ("cu_seqlens", torch.tensor([], dtype=torch.long)),
    ("mask", torch.ones(4)),
    ("mask", torch.ones(5, dtype=torch.bool)),
    ("ratio", "word"),
    ("eps_low", -0.1),
    ("eps_high", -0.1),
    ("normalizer", 0.0),
    ("normalizer", float("inf")),
]
WRONG_REST = [
    (linear, "targets", {"targets": torch.tensor([0, 1, 2, 7]), "vocab_size": 7}),
    (gather, "logits", {"logits": torch.zeros(9, 4).T}),
    (gather, "logits", {"logits": torch.zeros(9)}),
    (gather, "logits", {"logits": torch.zeros(4, 0)}),
    (gather, "targets", {"targets": torch.tensor([0, 1, 2, 9])}),
    (gather, "vocab_size", {"vocab_size": 10}),
    (clipped, "logp", {"logp": torch.zeros(2, 2)}),
    (advantage, "lengths", {"lengths": torch.tensor([3, 0])}),
    (advantage, "correct", {"correct": torch.tensor([1])}),
    (advantage, "group", {"group": torch.tensor([0, -1])}),
    (advantage, "group", {"group": torch.tensor([0.0, 1.0])}),
    (advantage, "lam", {"lam": float("inf")}),
]
WRONG = [
    *((op, name, {name: value}) for op in (linear, fused) for name, value in WRONG_HEAD),
    *((op, name, {name: value}) for op in (clipped, fused) for name, value in WRONG_SURROGATE),
    *WRONG_REST,
]


@pytest.mark.parametrize("op, name, changes", WRONG, ids=[f"{op.__name__}-{name}" for op, name, _ in WRONG])
def test_a_wrong_argument_is_named(op, name, changes):
    with pytest.raises(ValueError, match=f"^{name}: "):
        op(**changes)


@pytest.mark.parametrize("op", [linear, gather, clipped, fused, advantage])
def test_the_arguments_that_the_wrong_ones_replace_are_right(op):
    op()


def test_an_unknown_backend_is_named(monkeypatch):
    monkeypatch.setenv("O1CORE_KERNELS", "cuda")
    with pytest.raises(ValueError, match=r"^O1CORE_KERNELS: "):
        linear()
