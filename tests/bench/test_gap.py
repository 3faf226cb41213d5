"""bench.gap on the embedded model, in float32, where no adapter is rounded away."""

import argparse

import o1core
from bench.gap import measure
from o1core import Problem


def test_in_float32_samplers_agree_with_the_trainer_and_adapters_move_the_policy():
    policy = o1core.load(o1core.EMBEDDED, "float32", "cpu", max_new_tokens=24)
    problems = [Problem(str(a), f"What is {a} + 5?", str(a + 5)) for a in (2, 17)]
    args = argparse.Namespace(rank=4, std=0.03, samples=2, max_new_tokens=24)
    rows = [row.strip("| ").split(" | ") for row in measure(policy, problems, args)]
    assert [row[0] for row in rows] == ["none", "merged", "unmerged"]
    for name, _, largest, moved, tokens, _ in rows:
        assert float(largest) < 1e-4 and int(tokens) > 24
        assert float(moved) == 0 if name == "none" else float(moved) > 1e-3
