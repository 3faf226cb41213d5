"""Predicted bytes against measured ones, against torch's simulation of FSDP, and against the state that a run really holds."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import o1core.model
from o1core.model import DTYPES, ModelConfig, Transformer, Trees, layout, read_config
from o1core.recipe import Recipe
from o1core.runs.footprint import (
    Machine,
    Workload,
    count_weights,
    footprint,
    held_by_training,
    kept_by_layer,
    update,
    writing,
)
from o1core.training import Updater
from tests.model.test_families import SHAPES

HERE, DATA, GIB = Path(__file__).parent, Path(__file__).parents[1] / "data", 1 << 30
QWEN = ModelConfig("Qwen2ForCausalLM", 151936, 896, 4864, 24, 14, 2, 64, 1e-6, 1e6, 32768, True, torch.bfloat16)


@pytest.fixture
def real_widths(checkpoint):
    """One layer of QWEN in bf16, with as many tokens."""
    c = replace(QWEN, num_layers=1)
    config = {"vocab_size": c.vocab_size, "hidden_size": c.hidden_size, "intermediate_size": c.ffn_size, "head_dim": 64}
    config |= {"num_attention_heads": c.num_heads, "num_key_value_heads": c.num_kv_heads, "num_hidden_layers": 1}
    edit(checkpoint / "config.json", config)
    edit(checkpoint / "generation_config.json", {"eos_token_id": c.vocab_size - 1})
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    first = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {f"Ġ{i}": i for i in range(first, c.vocab_size - 3)}
    for i, token in enumerate(tokenizer["added_tokens"]):
        token["id"] = c.vocab_size - 3 + i
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    tensors = {name: torch.empty(shape, dtype=c.dtype).uniform_(-0.02, 0.02) for name, *_, shape in layout(c)}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def edit(path: Path, fields: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def child(asked: dict) -> list[int]:
    """What measured.py prints."""
    command = [sys.executable, str(HERE / "measured.py"), json.dumps(asked)]
    env = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    return [int(n) for n in subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.split()]


def grown(phase: str, shape: dict, settings: dict) -> int:
    """Bytes by which a process's resident memory grows over a phase: two steps, or the writing of a training state."""
    return child({"phase": phase, "shape": shape, "recipe": settings, "dtype": "float32"})[0]


@pytest.mark.parametrize(
    "shape, settings",
    [
        ({"num_layers": 1}, {"batch": 1, "cutoff": 128}),
        ({"num_layers": 1}, {"batch": 1, "cutoff": 64, "optimiser": "adam-mini"}),
        ({"num_layers": 2, "vocab_size": 4096}, {"batch": 4, "cutoff": 256}),
        ({"num_layers": 4, "vocab_size": 4096}, {"batch": 4, "cutoff": 256, "checkpointing": True}),
        ({"num_layers": 2, "vocab_size": 4096}, {"batch": 4, "cutoff": 256, "lora_rank": 16}),
        ({"num_layers": 1}, {"batch": 1, "cutoff": 32, "objective": "crisp"}),
    ],
    ids=["vocabulary", "adam-mini", "activations", "checkpointing", "adapters", "crisp"],
)
def test_an_update_at_real_widths_takes_what_is_predicted(shape, settings):
    """The widths of Qwen2.5-0.5B."""
    settings = {"ratio": "token", "max_new_tokens": 256} | settings
    measured = grown("update", shape, settings)
    config = replace(QWEN, **shape, dtype=torch.float32)
    workload = Workload.of(Recipe.of(**settings | {"save_every": 10**6}))  # nothing is written meanwhile
    predicted = next(p for p in footprint(config, workload, Machine(), 1, 16384) if p.name == "update")
    assert predicted.total - predicted.parts["libraries"] == pytest.approx(measured, rel=0.15), predicted.parts


SMALL_RUN = {"samples": 2, "picked": 2, "problems": 2, "eval_problems": 1, "batch": 2, "temperature": 1.0, "top_p": 1.0}


def test_a_small_run_at_real_widths_takes_what_is_planned(real_widths, problems, tmp_path):
    """One layer of Qwen2.5-0.5B with its vocabulary, which is frozen: an evaluation, a round, two steps and what is written
    on disk."""
    recipe = SMALL_RUN | {"max_new_tokens": 4, "train_last_layers": 1}
    asked = {"phase": "run", "model": str(real_widths), "data": str(problems), "recipe": recipe}
    measured, planned = child(asked | {"out": str(tmp_path / "run")})
    assert planned == pytest.approx(measured, rel=0.15)


def test_a_run_of_tiny_o1_takes_what_is_planned(tmp_path):
    """100 to 130 MiB, of which most are modules that come after the plan."""
    recipe = SMALL_RUN | {"problems": 8, "batch": 16, "max_new_tokens": 40, "rounds": 2}
    asked = {"phase": "run", "model": None, "data": None, "recipe": recipe, "out": str(tmp_path / "run")}
    measured, planned = child(asked)
    assert measured < planned < measured + (80 << 20)


FIRST_OPTIMISER = """
import sys
from pathlib import Path
import torch
from o1core.recipe import Recipe
from o1core.run_folder import RunFolder
from o1core.runs import Resources, open_job, open_session
from tests.runs.measured import resident
job = open_job(None, None, None, "float32", Recipe.of(problems=2, eval_problems=2))
with open_session(job, RunFolder(Path(sys.argv[1])), Resources(torch.device("cpu"), 2)) as session:
    session.check_memory()
before = resident()
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
print(resident() - before)
"""


def test_what_torch_loads_with_the_first_optimiser_is_not_taken_for_free_memory(tmp_path):
    command = [sys.executable, "-c", FIRST_OPTIMISER, str(tmp_path / "run")]
    env = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)
    assert grown < 10 << 20  # 140 MiB where the optimiser comes after the question


def test_writing_a_training_state_takes_what_is_predicted():
    """Of a state in two files."""
    shape = {"num_layers": 1}
    config, settings = replace(QWEN, **shape), Recipe.of().optimiser
    predicted = writing(config, settings, Machine())["state being written"]
    assert predicted == pytest.approx(grown("write", shape, {}), rel=0.1)
    assert writing(config, settings, Machine(ranks=2))["state being written"] == predicted // 2
    assert not writing(config, settings, Machine(cuda=True)), "there it is in the host's memory"


def test_crisps_teacher_is_counted():
    """Marco-o1 in bf16: the head as it was, the fp32 sum of its gradient, hidden states; frozen under adapters."""
    config, head = read_config(DATA / "marco-o1"), 152064 * 3584
    for machine in (Machine(cuda=True), Machine(8, cuda=True)):
        for settings, expected in (({}, (2 + 4) * head), ({"lora_rank": 8}, 0)):
            recipe = Recipe.of(objective="crisp", cutoff=4096, **settings)
            assert update(config, Workload.of(recipe), machine, 4096)["teacher"] == expected + 2 * 4096 * 3584
    assert "teacher" not in update(config, Workload.of(recipe.replace(objective="sft")), machine, 4096)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"optimiser": "adam-mini"}, {"train_last_layers": 1}, {"lora_rank": 4, "lora_targets": "mlp"}],
    ids=["adamw", "adam-mini", "last layer", "adapters"],
)
def test_the_state_of_training_is_what_the_updater_holds(checkpoint, dtype, settings):
    """Every byte of weights, masters, gradients and first moments; second moments of Adam-mini are left out."""
    recipe = Recipe.of(**settings)
    model, of = o1core.model.load(checkpoint, DTYPES[dtype])[0], recipe.optimiser
    if of.lora_rank:
        o1core.model.add_adapters(model, of.lora_rank, of.lora_alpha, of.lora_targets, None)
        o1core.model.draw_adapters(model, 0)
    updater = Updater(model, 259, recipe.objective, of, recipe.execution)
    for master in updater.masters:
        master.grad = torch.zeros_like(master)
    updater.optimiser.step()
    held = held_by_training(replace(model.config, dtype=DTYPES[dtype]), of, Machine())
    masters = [master for weight, master in updater.pairs.values() if weight is not master]
    moments = [t for state in updater.optimiser.state.values() for name, t in state.items() if t.ndim]
    if of.kind == "adam-mini":
        moments = [state["exp_avg"] for state in updater.optimiser.state.values()]
    assert held == {
        "weights": sum(p.nbytes for p in model.parameters()),
        "fp32 masters": sum(t.nbytes for t in masters),
        "gradients": sum(master.grad.nbytes for master in updater.masters),
        "moments": sum(t.nbytes for t in moments),
    }
    assert count_weights(model.config, of).trained == sum(master.numel() for master in updater.masters)


def test_the_trained_weights_of_experts_and_hybrids_are_counted(build_checkpoint, tmp_path):
    family, shape = SHAPES["hybrid with experts"]
    build_checkpoint(tmp_path / "m", family, **shape)
    experts = {"lora_rank": 4, "lora_experts": True, "lora_targets": "mlp"}
    for settings in ({}, {"train_router": True}, {"train_last_layers": 1}, {"lora_rank": 4}, experts):
        recipe, model = Recipe.of(**settings), o1core.model.load(tmp_path / "m", torch.float32)[0]
        of = recipe.optimiser
        if of.lora_rank:
            o1core.model.add_adapters(model, of.lora_rank, None, of.lora_targets, None, of.lora_experts)
        trained = Updater(model, 259, recipe.objective, of, recipe.execution).masters
        assert count_weights(model.config, of).trained == sum(master.numel() for master in trained), settings


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "experts", "hybrid", "hybrid with experts"])
def test_a_layer_keeps_the_bytes_that_are_predicted(build_checkpoint, tmp_path, family, dtype):
    """What autograd keeps of one more layer, whose completions share their prompt."""
    family, shape = SHAPES.get(family, (family, {"num_hidden_layers": 2}))
    build_checkpoint(tmp_path / "m", family, **shape)
    model = o1core.model.load(tmp_path / "m", DTYPES[dtype])[0]
    config, kept = replace(model.config, dtype=DTYPES[dtype]), [kept_bytes(model)]
    while len(model.blocks) > 1:
        del model.blocks[-1]
        kept.append(kept_bytes(model))
    found = [(more - less) / ROWS.rows for more, less in itertools.pairwise(kept)][::-1]
    predicted = [kept_by_layer(config, layer, cuda=False) for layer in range(1, config.num_layers)]
    assert predicted == pytest.approx(found, rel=0.1 if config.delta else 0.05 if config.experts else 0.03)


ROWS = Trees((64,), ((32, 32),))


def kept_bytes(model: Transformer) -> int:
    """Bytes of the distinct storages that autograd keeps of a forward pass over ROWS."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.packed(torch.arange(ROWS.rows) % 250, ROWS, False)
    return sum(size for size, _ in held.values())


@pytest.mark.parametrize(
    "name, ranks, last, static, peaks",
    [
        ("marco-o1", 2, None, 56.7, (63.9, 69.7)),
        ("marco-o1", 4, None, 28.4, (None, 41.3)),
        ("marco-o1", 8, None, 14.2, (None, 27.1)),
        ("qwq-32b", 8, 48, 45.8, (56.2, 67.3)),
        ("qwq-32b", 8, None, 61.0, (73.6, 86.5)),
    ],
)
def test_sharded_peaks_are_those_of_torchs_simulation(name, ranks, last, static, peaks):
    """GiB of rank 0 that FSDPMemTracker found with 4,096 and 16,384 tokens a micro-batch, checkpointing, the loss a stub."""
    config, machine = read_config(DATA / name), Machine(ranks, cuda=True)
    for tokens, peak in zip((4096, 16384), peaks):
        recipe = Recipe.of(checkpointing=True, train_last_layers=last, batch=10_000, cutoff=4096)
        held = sum(held_by_training(config, recipe.optimiser, machine).values())
        assert held / GIB == pytest.approx(static, abs=0.06)
        if peak is not None:
            parts = update(config, Workload.of(recipe), machine, tokens)
            parts.pop("loss scratch")
            assert (held + sum(parts.values())) / GIB == pytest.approx(peak, rel=0.05)


def test_one_process_holds_16_bytes_a_weight_in_fp32_and_12_with_adam_mini():
    config = read_config(DATA / "marco-o1")
    for kind, dtype, expected in (
        ("adamw", torch.float32, 16),
        ("adam-mini", torch.float32, 12),
        ("adamw", torch.bfloat16, 18),
    ):
        settings = Recipe.of(optimiser=kind).optimiser
        held = held_by_training(replace(config, dtype=dtype), settings, Machine())
        assert sum(held.values()) == expected * 7_615_616_512
