"""Checkpoint folders in and out: published names and bytes, every tensor accounted for, nothing half written."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import o1core.model
from o1core.errors import UserError
from o1core.model import checkpoint as weights
from o1core.model import initialise, load_weights, read_config, save_checkpoint

CPU = torch.device("cpu")
EMBED = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def their_model(folder, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def rewrite(folder, change) -> None:
    """Apply change(dict of tensors) to the single weights file of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def sharded(tmp_path, build_checkpoint):
    build_checkpoint(tmp_path / "model", shard="60KB", tie_word_embeddings=False)
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    return tmp_path / "model"


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_gives_the_same_bytes_under_the_same_names(tmp_path, build_checkpoint, family, tied):
    build_checkpoint(tmp_path / "model", family, dtype=torch.bfloat16, tie_word_embeddings=tied)
    model = load_weights(tmp_path / "model", torch.bfloat16, CPU)
    save_checkpoint(model, tmp_path / "model", tmp_path / "copy")
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(tmp_path / "copy" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(
            tensor.view(torch.int16), after[name].view(torch.int16)
        )
    ids = torch.arange(60)[None]
    with torch.inference_mode():
        one, other = (their_model(tmp_path / name, torch.bfloat16)(ids).logits for name in ("model", "copy"))
    assert torch.equal(one, other)


def test_everything_else_is_copied(checkpoint, tmp_path):
    (checkpoint / "secret.txt").write_text("not ours")
    save_checkpoint(load_weights(checkpoint, torch.bfloat16, CPU), checkpoint, tmp_path / "copy")
    before, after = (json.loads((f / "config.json").read_text()) for f in (checkpoint, tmp_path / "copy"))
    assert before.pop("dtype") == "float32" and after.pop("dtype") == "bfloat16"
    assert before == after
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert not (tmp_path / "copy" / "secret.txt").exists()


def test_saved_in_another_dtype(checkpoint, tmp_path):
    model = load_weights(checkpoint, torch.float32, CPU)
    save_checkpoint(model, checkpoint, tmp_path / "copy", torch.bfloat16)
    before = load_file(checkpoint / "model.safetensors")
    for name, tensor in load_file(tmp_path / "copy" / "model.safetensors").items():
        assert torch.equal(tensor, before[name].bfloat16())
    assert o1core.model.load(tmp_path / "copy")[0].embed.dtype == torch.bfloat16  # what its config.json says


def test_the_old_spelling_of_dtype_stays(checkpoint, tmp_path, edit_json):
    edit_json(checkpoint / "config.json", dtype=None, torch_dtype="float32")
    save_checkpoint(load_weights(checkpoint, torch.bfloat16, CPU), checkpoint, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and "dtype" not in config


def test_sharded_in(sharded):
    ids = torch.arange(60)[None]
    with torch.inference_mode():
        ours = load_weights(sharded, torch.float32, CPU).logits(ids)
        torch.testing.assert_close(ours, their_model(sharded)(ids).logits, rtol=0, atol=1e-4)


def test_sharded_out(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 60_000)
    model = load_weights(checkpoint, torch.float32, CPU)
    save_checkpoint(model, checkpoint, tmp_path / "copy")
    files = sorted((tmp_path / "copy").glob("*.safetensors"))
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and {f.name for f in files} == set(index["weight_map"].values())
    stored = {}
    for file in files:
        tensors = load_file(file)
        size = sum(t.nbytes for t in tensors.values())
        assert size <= 60_000 or len(tensors) == 1
        assert all(index["weight_map"][name] == file.name for name in tensors)
        stored |= tensors
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored.values())
    before = load_file(checkpoint / "model.safetensors")
    assert before.keys() == stored.keys() and all(torch.equal(t, stored[n]) for n, t in before.items())
    ids = torch.arange(60)[None]
    with torch.inference_mode():
        ours = load_weights(tmp_path / "copy", torch.float32, CPU).logits(ids)
        assert torch.equal(ours, model.logits(ids))
        torch.testing.assert_close(their_model(tmp_path / "copy")(ids).logits, ours, rtol=0, atol=1e-4)


def test_qkv_and_gate_up_are_fused(checkpoint):
    model = load_weights(checkpoint, torch.float32, CPU)
    published = load_file(checkpoint / "model.safetensors")
    block, name = model.blocks[1], "model.layers.1."
    q, k, v = (published[f"{name}self_attn.{x}_proj.weight"] for x in "qkv")
    assert torch.equal(block.qkv.weight, torch.cat((q, k, v)))
    assert torch.equal(
        block.gate_up.weight, torch.cat([published[f"{name}mlp.{x}_proj.weight"] for x in ("gate", "up")])
    )


def test_old_exports_with_a_rotary_constant_and_a_stored_tied_head_load(checkpoint):
    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["lm_head.weight"] = tensors[EMBED].clone()

    rewrite(checkpoint, change)
    load_weights(checkpoint, torch.float32, CPU)


def remove(name):
    return lambda tensors: tensors.pop(name)


def put(name, make):
    return lambda tensors: tensors.__setitem__(name, make(tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(DOWN), f"tensor {DOWN} is missing"),
        (put(DOWN, lambda t: t[DOWN][:-1].clone()), f"tensor {DOWN} has shape [63, 96], config.json needs [64, 96]"),
        (put(EMBED, lambda t: t[EMBED][:-1].clone()), f"tensor {EMBED} has shape [271, 64], config.json needs"),
        (put("model.layers.2.mlp.up_proj.weight", lambda t: torch.ones(2)), "layers.2.mlp.up_proj.weight is left"),
        (put("model.layers.0.self_attn.o_proj.bias", lambda t: torch.ones(64)), "self_attn.o_proj.bias is left over"),
        (put(DOWN, lambda t: t[DOWN].to(torch.int8)), f"tensor {DOWN} is stored as I8; only F32, BF16 and F16"),
        (put("lm_head.weight", lambda t: t[EMBED] + 1), "lm_head.weight differs from the embedding; set tie_word"),
    ],
)
def test_tensors_that_do_not_fit(checkpoint, change, message):
    rewrite(checkpoint, change)
    with pytest.raises(UserError) as error:
        load_weights(checkpoint, torch.float32, CPU)
    assert str(checkpoint) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 5, 400, -1])
def test_truncated_file(checkpoint, size):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"not a whole safetensors file .*; fetch it again") as error:
        load_weights(checkpoint, torch.float32, CPU)
    assert "\n" not in str(error.value)


def test_no_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor model.safetensors.index.json is there"):
        load_weights(checkpoint, torch.float32, CPU)


def test_missing_shard(sharded):
    gone = sorted(sharded.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=f"{gone.name}: named by the index but missing; fetch it again"):
        load_weights(sharded, torch.float32, CPU)


def test_a_tensor_in_two_shards(sharded):
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    double = load_file(first)
    name = min(double)
    save_file(load_file(second) | {name: double[name]}, second, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{second.name}: tensor {name} is in {first.name} too"):
        load_weights(sharded, torch.float32, CPU)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..", ""]
)
def test_index_that_leaves_its_folder(sharded, name):
    index = sharded / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    target = sharded / name if name and not name.startswith("/etc") else None
    if target is not None and target.suffix:  # the file is there, and is a good one: only its place is wrong
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(next(sharded.glob("model-*.safetensors")), target)
    entries["weight_map"][EMBED] = name
    index.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"index\.json: weight_map names .* outside the checkpoint's folder"):
        load_weights(sharded, torch.float32, CPU)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": []}'])
def test_broken_index(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"model.safetensors.index.json: (not valid JSON|weight_map must map)"):
        load_weights(sharded, torch.float32, CPU)


def test_an_existing_folder_is_not_touched(checkpoint):
    before = sorted((f.name, f.stat().st_mtime_ns) for f in checkpoint.iterdir())
    with pytest.raises(UserError, match="exists already; choose another place"):
        save_checkpoint(load_weights(checkpoint, torch.float32, CPU), checkpoint, checkpoint)
    assert before == sorted((f.name, f.stat().st_mtime_ns) for f in checkpoint.iterdir())


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from o1core.errors import UserError
from o1core.model import load_weights, save_checkpoint

source, target = Path(sys.argv[1]), Path(sys.argv[2])
model = load_weights(source, torch.float32, torch.device("cpu"))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may grow past this: a disk that fills up
try:
    save_checkpoint(model, source, target)
except UserError as error:
    print(error)
"""


def test_a_disk_that_fills_up_leaves_nothing(checkpoint, tmp_path):
    (tmp_path / "runs").mkdir()
    target = tmp_path / "runs" / "copy"
    command = [sys.executable, "-c", FULL_DISK, checkpoint, target]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{target}: cannot be written: ") and done.stdout.count("\n") == 1
    assert os.listdir(tmp_path / "runs") == []


PEAK = """
import sys
from pathlib import Path
import torch
from o1core.model import load_weights

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field + ":"))

small, large, dtype = Path(sys.argv[1]), Path(sys.argv[2]), getattr(torch, sys.argv[3])
load_weights(small, dtype, torch.device("cpu"))  # what a first call imports and sets up is not weights
before = status("VmRSS")
model = load_weights(large, dtype, torch.device("cpu"))
print(sum(p.nbytes for p in model.parameters()), status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory, build_checkpoint, edit_json):
    """180 MB in bfloat16, of zeros, with the config of a model of that size."""
    folder = tmp_path_factory.mktemp("large")
    build_checkpoint(folder)
    edit_json(
        folder / "config.json",
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=8,
        head_dim=128,
        layer_types=None,
    )
    shapes = {name: shape for name, _, _, shape in weights.layout(read_config(folder))}
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    assert sum(t.nbytes for t in tensors.values()) > 180_000_000
    save_file(tensors, folder / "model.safetensors")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak of its memory from Linux")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_no_second_copy_of_the_weights_in_memory(checkpoint, large_checkpoint, dtype):
    # The file counts as far as it is mapped at once. A second copy would make it 2 x in bfloat16 and 1.5 x in float32.
    command = [sys.executable, "-c", PEAK, checkpoint, large_checkpoint, dtype]
    size, peak = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert 0.95 * size < peak < 1.15 * size


def test_the_file_is_not_kept_open(checkpoint):
    load_weights(checkpoint, torch.float32, CPU)
    with open("/proc/self/maps") as maps:
        assert str(checkpoint) not in maps.read()


def test_initialise_fills_every_weight(checkpoint):
    model = load_weights(checkpoint, torch.float32, CPU)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    initialise(model, seed=1)
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.norm.eq(1).all() and model.blocks[0].qkv.bias.eq(0).all()
    assert 0.019 < model.embed.std() < 0.021


def test_published_names_are_those_of_transformers(checkpoint):
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names == set(weights.published_tensors(load_weights(checkpoint, torch.float32, CPU)))
