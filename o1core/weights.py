"""Checkpoint folders in and out: safetensors to a Transformer and back, every tensor accounted for.

`layout` is the one table between the published names and ours: q, k, v and gate, up are rows of one fused matrix each.
Loading copies from the memory-mapped file straight into the final storage and dtype, so no second copy of the weights
exists. Saving writes the published names and shapes, which transformers loads. Left out on purpose: pickled
checkpoints (.bin, .pt) are never opened.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import ModelConfig, read_config, read_json
from .errors import UserError
from .transformer import Transformer

SHARD_BYTES = 4 << 30
NAME_OF_DTYPE = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def layout(c: ModelConfig) -> Iterator[tuple[str, str, int, tuple[int, ...]]]:
    """(published name, our parameter, first row in it, shape) of every tensor of a checkpoint."""
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    yield "model.embed_tokens.weight", "embed", 0, (c.vocab_size, c.hidden_size)
    for i in range(c.num_layers):
        theirs, ours = f"model.layers.{i}.", f"blocks.{i}."
        yield theirs + "input_layernorm.weight", ours + "attention_norm", 0, (c.hidden_size,)
        for name, start, rows in (("q", 0, q), ("k", q, kv), ("v", q + kv, kv)):
            yield f"{theirs}self_attn.{name}_proj.weight", ours + "qkv.weight", start, (rows, c.hidden_size)
            if c.qkv_bias:
                yield f"{theirs}self_attn.{name}_proj.bias", ours + "qkv.bias", start, (rows,)
        if c.qk_norm:
            yield theirs + "self_attn.q_norm.weight", ours + "q_norm", 0, (c.head_dim,)
            yield theirs + "self_attn.k_norm.weight", ours + "k_norm", 0, (c.head_dim,)
        yield theirs + "self_attn.o_proj.weight", ours + "o.weight", 0, (c.hidden_size, q)
        yield theirs + "post_attention_layernorm.weight", ours + "mlp_norm", 0, (c.hidden_size,)
        yield theirs + "mlp.gate_proj.weight", ours + "gate_up.weight", 0, (c.ffn_size, c.hidden_size)
        yield theirs + "mlp.up_proj.weight", ours + "gate_up.weight", c.ffn_size, (c.ffn_size, c.hidden_size)
        yield theirs + "mlp.down_proj.weight", ours + "down.weight", 0, (c.hidden_size, c.ffn_size)
    yield "model.norm.weight", "norm", 0, (c.hidden_size,)
    if not c.tied:
        yield "lm_head.weight", "head", 0, (c.vocab_size, c.hidden_size)


def load_weights(folder: Path, dtype: torch.dtype, device: torch.device) -> Transformer:
    """Build the Transformer of a Hugging Face folder.

    Every parameter is filled exactly once. Raises UserError that names the tensor which is missing, left over or of
    another shape, the file that is missing or truncated, or the index entry that leaves the folder.
    """
    config = read_config(folder)
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    with ExitStack() as stack:
        files = {}
        for path in weight_files(folder):
            try:
                files[path] = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: not a whole safetensors file ({error}); fetch it again") from None
        where = {}
        for path, file in files.items():
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if name in where:
                    raise UserError(f"{path}: tensor {name} stands in {where[name].name} too")
                where[name] = path
        table = list(layout(config))
        check_names(folder, config, table, files, where)
        model.to_empty(device=device)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for theirs, ours, start, shape in table:
                parameters[ours][start : start + shape[0]].copy_(files[where[theirs]].get_tensor(theirs))
    return model


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, or those its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        single = folder / "model.safetensors"
        if not single.exists():
            raise UserError(f"{folder}: neither model.safetensors nor model.safetensors.index.json is there")
        return [single]
    entries = read_json(index)
    entries = entries.get("weight_map") if isinstance(entries, dict) else None
    if not isinstance(entries, dict) or not entries or not all(isinstance(v, str) for v in entries.values()):
        raise UserError(f"{index}: weight_map must map tensor names to file names")
    paths = []
    for name in sorted(set(entries.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{index}: weight_map names {name!r}, which is outside the checkpoint's folder")
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: named by the index but missing; fetch it again")
        paths.append(folder / name)
    return paths


def check_names(folder: Path, config: ModelConfig, table: list, files: dict, where: dict) -> None:
    """Hold the tensors that are there against the table, by name and shape, before anything is allocated."""
    spare = set(where)
    for theirs, _, _, shape in table:
        if theirs not in where:
            raise UserError(f"{folder}: tensor {theirs} is missing; the model in config.json needs it")
        found = tuple(files[where[theirs]].get_slice(theirs).get_shape())
        if found != shape:
            raise UserError(f"{where[theirs]}: tensor {theirs} has shape {list(found)}, config.json asks for {list(shape)}")
        spare.discard(theirs)
    spare = {name for name in spare if not name.endswith("rotary_emb.inv_freq")}  # old exports store this constant
    if config.tied and "lm_head.weight" in spare:
        head, embed = (files[where[n]].get_tensor(n) for n in ("lm_head.weight", "model.embed_tokens.weight"))
        if not torch.equal(head, embed):
            raise UserError(f"{folder}: config.json says tie_word_embeddings, but lm_head.weight differs from the embedding")
        spare.discard("lm_head.weight")
    if spare:
        raise UserError(f"{where[min(spare)]}: tensor {min(spare)} is left over; config.json describes no such tensor")


def published_tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights under their published names, as views of the fused storage."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return {theirs: parameters[ours][start : start + shape[0]] for theirs, ours, start, shape in layout(model.config)}


def save_checkpoint(model: Transformer, source: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write `folder` as a Hugging Face checkpoint: weights in `dtype` (default: as they are), the rest from `source`.

    The folder appears whole or not at all. Raises UserError where it exists already.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another place for the checkpoint")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tensors = {n: t.to("cpu", dtype or t.dtype) for n, t in published_tensors(model).items()}
        write_shards(partial, tensors)
        config = read_json(source / "config.json")
        config.pop("torch_dtype", None)
        config["dtype"] = NAME_OF_DTYPE[next(iter(tensors.values())).dtype]
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                     "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json"):  # fmt: skip
            if (source / name).exists():
                shutil.copyfile(source / name, partial / name)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file, or several of at most SHARD_BYTES each with an index."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def initialise(model: Transformer, seed: int, std: float = 0.02) -> None:
    """Fill a new model: norms with one, biases with zero, the rest from a normal of `std` (for training from scratch)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                nn.init.constant_(p, 0.0 if name.endswith("bias") else 1.0)
            else:
                nn.init.normal_(p, std=std, generator=generator)
