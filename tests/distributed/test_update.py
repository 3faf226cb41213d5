"""An update on N processes against the same one on one: the sharded engine may change no result."""

import pytest
import torch

from tests.distributed.cases import train_all, train_at_real_widths
from tests.distributed.worlds import run_world

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, build_checkpoint):
    """(name, job) of each training."""
    tied, untied = (tmp_path_factory.mktemp("model") / name for name in ("tied", "untied"))
    build_checkpoint(tied, num_hidden_layers=3)
    build_checkpoint(untied, num_hidden_layers=3, tie_word_embeddings=False, vocab_size=275)
    return {
        "tied": (tied, FP32, 3, 9, {}),
        "untied": (untied, FP32, 3, 9, {"checkpointing": True}),
        "last 2 layers": (untied, FP32, 3, 9, {"train_last_layers": 2}),
        "shared prompts": (tied, FP32, 3, 9, {"samples": 3}),
        "pairs": (tied, FP32, 2, 6, {"objective": "dpo"}),
        "one example": (tied, FP32, 2, 1, {"ratio": "sequence"}),
        "adapters": (tied, FP32, 3, 9, {"lora_rank": 4}),
        "crisp": (tied, FP32, 3, 9, {"objective": "crisp"}),
        "crisp, adapters": (untied, FP32, 2, 5, {"objective": "crisp", "lora_rank": 4}),
        "bf16": (tied, BF16, 2, 5, {}),
        "bf16, last 2 layers": (tied, BF16, 2, 5, {"train_last_layers": 2}),
    }


@pytest.fixture(scope="module")
def plain(jobs):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = dict(zip(jobs, train_all(list(jobs.values()))))
    torch.set_num_threads(threads)
    return results


def test_one_process_in_shards_has_the_bits_of_one_without(jobs, plain):
    (found,) = run_world(train_all, 1, list(jobs.values()))
    for (name, expected), result in zip(plain.items(), found):
        assert result.metrics == expected.metrics, name
        for key, weight in expected.weights.items():
            assert torch.equal(result.weights[key].to(weight.dtype), weight), (name, key)


IN_FP32 = (
    "tied",
    "untied",
    "last 2 layers",
    "shared prompts",
    "pairs",
    "one example",
    "adapters",
    "crisp",
    "crisp, adapters",
)


@pytest.mark.parametrize(
    "size, per_node, names",
    [
        (2, 2, IN_FP32),
        (4, 4, ("untied", "shared prompts", "last 2 layers", "one example", "crisp")),
        (4, 2, ("tied", "shared prompts", "last 2 layers")),
    ],
    ids=["2", "4", "2 nodes of 2"],
)
def test_many_processes_end_with_the_weights_of_one(jobs, plain, size, per_node, names):
    wanted = {name: jobs[name] for name in names}
    results = run_world(train_all, size, list(wanted.values()), per_node=per_node)
    assert all(a.metrics == b.metrics for other in results for a, b in zip(other, results[0]))
    for name, found in zip(wanted, results[0]):
        expected = plain[name]
        assert found.norms == pytest.approx(expected.norms, rel=1e-4), name
        for one, many in zip(expected.metrics, found.metrics):
            assert many == pytest.approx(one, rel=1e-4, abs=1e-6), name
        for key, weight in expected.weights.items():
            assert (found.weights[key] - weight).norm() <= 1e-5 * weight.norm(), (name, key)


def test_two_processes_end_with_the_weights_of_one_at_real_widths(tmp_path, build_checkpoint):
    """One layer of Qwen2.5-0.5B with its vocabulary, in fp32."""
    heads = {"num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 1}
    widths = {"hidden_size": 896, "intermediate_size": 4864, "vocab_size": 151936}
    build_checkpoint(tmp_path / "model", dtype=torch.bfloat16, **heads, **widths)
    found = run_world(train_at_real_widths, 2, tmp_path / "model")[0]
    norm, weights = train_at_real_widths(tmp_path / "model")
    assert found[0] == pytest.approx(norm, rel=1e-4)
    for name, weight in weights.items():
        assert (found[1][name] - weight).norm() <= 1e-5 * weight.norm(), name
