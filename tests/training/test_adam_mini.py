"""Adam-mini against the package that its authors publish, against AdamW, and over a kill."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import o1core.model
from o1core.model import Transformer, layout, published_tensors, read_config
from o1core.recipe import Recipe
from o1core.run_folder import RunFolder
from o1core.training import Updater, reference_logprobs, with_reference
from o1core.training.optimisers import AdamMini
from o1core.training.state import Progress, load_state, save_state
from o1core.types import Example
from tests.distributed.worlds import run_world

STEPS = 5


def train_alone(model: Transformer, lr: float, weight_decay: float, seed: int = 0) -> AdamMini:
    """STEPS steps of ours on random gradients, a few rows of which are zero as those of tokens that do not occur."""
    optimiser = AdamMini(model.named_parameters(), model.config, lr, weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator) * 10 ** float(torch.randn((), generator=generator))
        model.embed.grad[3:7] = 0
        optimiser.step()
    return optimiser


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_step_is_that_of_the_published_package(build_checkpoint, tmp_path, family, tied):
    """The package is given the checkpoint's own tensors; ours trains the fused ones. Weights relative to what they moved."""
    package = pytest.importorskip("adam_mini")
    lr, decay = 1e-3, 0.1
    build_checkpoint(tmp_path / "m", family, tie_word_embeddings=tied)
    ours = o1core.model.load(tmp_path / "m", torch.float32)[0]
    before = {name: t.clone() for name, t in published_tensors(ours).items()}
    theirs = {name: torch.nn.Parameter(t.clone()) for name, t in before.items()}
    c = ours.config
    assert c.hidden_size == c.num_heads * c.head_dim  # the package derives the head's size from these
    reference = package.Adam_mini(
        list(theirs.items()), lr, (0.9, 0.999), 1e-8, decay,
        dim=c.hidden_size, n_heads=c.num_heads, n_kv_heads=c.num_kv_heads, verbose=False,
    )  # fmt: skip
    optimiser = AdamMini(ours.named_parameters(), c, lr, decay)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        for p in ours.parameters():
            p.grad = torch.randn(p.shape, generator=generator) * 10 ** float(torch.randn((), generator=generator))
        ours.embed.grad[3:7] = 0
        grads = {name: p.grad for name, p in ours.named_parameters()}
        for name, own, start, shape in layout(c):
            theirs[name].grad = grads[own][start : start + shape[0]].clone()
        optimiser.step()
        reference.step()
    for name, found in published_tensors(ours).items():
        moved = (theirs[name].detach() - before[name]).abs().max()
        assert moved > lr, name
        # Numbers of about 1 are 1.2e-7 apart, and each of the steps rounds a few times.
        assert (found - theirs[name].detach()).abs().max() <= 1e-6 * before[name].abs().max() + 1e-5 * moved, name


def test_second_moments_are_one_for_a_head_a_row_or_a_token(checkpoint):
    model = o1core.model.load(checkpoint, torch.float32)[0]
    optimiser = train_alone(model, 1e-3, 0.0)
    counts = {name: optimiser.state[p]["exp_avg_sq"].numel() for name, p in model.named_parameters()}
    c = model.config
    assert counts["blocks.0.qkv.weight"] == c.num_heads + c.num_kv_heads + c.num_kv_heads * c.head_dim
    assert counts["blocks.1.gate_up.weight"] == 2 * c.ffn_size
    assert counts["embed"] == c.vocab_size and counts["norm"] == 1
    assert counts["blocks.0.qkv.bias"] == len(model.blocks[0].qkv.bias)


def test_where_a_block_is_one_weight_the_step_is_adamws(checkpoint):
    """Biases keep a second moment per element."""
    mine, twin = (o1core.model.load(checkpoint, torch.float32)[0].blocks[0].qkv.bias for _ in range(2))
    config = read_config(checkpoint)
    optimisers = (
        AdamMini([("blocks.0.qkv.bias", mine)], config, 1e-2, 0.0),
        torch.optim.AdamW([twin], lr=1e-2, weight_decay=0.0),
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        mine.grad = torch.randn(mine.shape, generator=generator)
        twin.grad = mine.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    torch.testing.assert_close(mine, twin, rtol=1e-6, atol=1e-7)


def test_sharded_steps_have_the_bits_of_one_process(checkpoint):
    """Three ranks, so that rows and heads do not divide evenly: a head of q has rows on two ranks."""
    model = o1core.model.load(checkpoint, torch.float32)[0]
    train_alone(model, 1e-3, 0.1)
    whole = {name: p.detach() for name, p in model.named_parameters()}
    found = run_world(train_sharded, 3, checkpoint)[0]
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def train_sharded(checkpoint) -> dict[str, torch.Tensor]:
    """What train_alone does, on rows dealt to three ranks."""
    mesh = init_device_mesh("cpu", (3,))
    model = o1core.model.load(checkpoint, torch.float32)[0]
    sharded = {name: distribute_tensor(p.detach(), mesh, [Shard(0)]) for name, p in model.named_parameters()}
    optimiser = AdamMini(sharded.items(), model.config, 1e-3, 0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        for name, p in sharded.items():
            grad = torch.randn(p.shape, generator=generator) * 10 ** float(torch.randn((), generator=generator))
            if name == "embed":
                grad[3:7] = 0
            p.grad = distribute_tensor(grad, mesh, [Shard(0)])
        optimiser.step()
    return {name: p.full_tensor() for name, p in sharded.items()}


def test_a_resumed_run_ends_with_the_same_bits(checkpoint, tmp_path):
    """Two steps, a state, two steps; against a new process's updater that starts from the state."""
    recipe = Recipe.of(optimiser="adam-mini", ratio="token")
    ids = torch.arange(12, dtype=torch.int32)
    examples = [Example(f"p{i}", ids[: 3 + i], ids[3 + i :], torch.zeros(9 - i), i - 1.5, False) for i in range(4)]

    def updater() -> Updater:
        model = o1core.model.load(checkpoint, torch.bfloat16)[0]
        return Updater(model, 259, recipe.objective, recipe.optimiser, recipe.execution)

    whole = updater()
    reference = reference_logprobs(whole.model, 259, examples, 1000)
    run = RunFolder(tmp_path / "run")
    for step in range(4):
        if step == 2:
            save_state(run, whole, Progress(0, 2, 2), recipe.to_json())
        whole.step(with_reference(examples, reference), 1e-3)
    resumed = updater()
    load_state(run, resumed, recipe.to_json())
    for _ in range(2):
        resumed.step(with_reference(examples, reference), 1e-3)
    for name, (weight, master) in whole.pairs.items():
        assert torch.equal(resumed.pairs[name][0], weight) and torch.equal(resumed.pairs[name][1], master), name
