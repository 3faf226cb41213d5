"""Checkpoint folders in and out: safetensors to a Transformer and back, every tensor accounted for.

`layout` is the one table between the published names and ours: q, k, v and gate, up are rows of one fused matrix each.
Loading copies from the memory-mapped files straight into the final storage and dtype, a tensor at a time: no second
copy of the weights exists. Saving writes the published names and shapes, which transformers loads. Left out on purpose:
pickled checkpoints (.bin, .pt), which are never opened, and quantised ones.
"""

import functools
import glob
import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import publish_folder, read_json, read_object, write_json
from ..text import one_line
from .config import ModelConfig, read_config
from .folder import checkpoint_file, need_file, shown
from .tokenizer import Tokenizer
from .transformer import Transformer

log = logging.getLogger(__name__)

SHARD_BYTES = 4 << 30
PIECE, BUFFER, THREADS = 64 << 20, 4 << 20, 8  # bytes that a thread hashes and reads at a time
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
COPIED = (  # what a checkpoint holds besides weights and config.json
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
    "preprocessor_config.json",  # how images come in, of a model that sees them
    "processor_config.json",
    "video_preprocessor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
)
BESIDE = {
    "vision": ("model.visual.", "visual."),
    "multi-token prediction": ("mtp.", "model.mtp."),
}  # how their names begin
ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
Place = tuple[str, str, int, tuple[int, ...]]
MORE_TEMPLATES, MOST_TEMPLATES = "additional_chat_templates", 100  # a folder of NAME.jinja


def layout(c: ModelConfig) -> Iterator[Place]:
    """(published name, our parameter, first row in it, shape) of every tensor of a checkpoint, experts one by one."""
    yield c.prefix + "embed_tokens.weight", "embed", 0, (c.vocab_size, c.hidden_size)
    for i in range(c.num_layers):
        theirs, ours = f"{c.prefix}layers.{i}.", f"blocks.{i}."
        yield theirs + "input_layernorm.weight", ours + "attention_norm", 0, (c.hidden_size,)
        yield from delta_layout(c, theirs, ours) if i in c.delta_layers else attention_layout(c, theirs, ours)
        yield theirs + "post_attention_layernorm.weight", ours + "mlp_norm", 0, (c.hidden_size,)
        if i in c.sparse_layers:
            yield from experts_layout(c, theirs + "mlp.", ours + "experts.")
        else:
            yield from mlp_layout(
                theirs + "mlp.", ours + "gate_up.weight", ours + "down.weight", c.ffn_size, c.hidden_size
            )
    yield c.prefix + "norm.weight", "norm", 0, (c.hidden_size,)
    if not c.tied:
        yield "lm_head.weight", "head", 0, (c.vocab_size, c.hidden_size)


def attention_layout(c: ModelConfig, theirs: str, ours: str) -> Iterator[Place]:
    """Of attention; in the hybrid families each query head has a gate of its size below it."""
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    queries = 2 * q if c.family.hybrid else q
    for name, start, rows in (("q", 0, queries), ("k", queries, kv), ("v", queries + kv, kv)):
        yield f"{theirs}self_attn.{name}_proj.weight", ours + "qkv.weight", start, (rows, c.hidden_size)
        if c.qkv_bias:
            yield f"{theirs}self_attn.{name}_proj.bias", ours + "qkv.bias", start, (rows,)
    if c.qk_norm:
        yield theirs + "self_attn.q_norm.weight", ours + "q_norm", 0, (c.head_dim,)
        yield theirs + "self_attn.k_norm.weight", ours + "k_norm", 0, (c.head_dim,)
    yield theirs + "self_attn.o_proj.weight", ours + "o.weight", 0, (c.hidden_size, q)


def delta_layout(c: ModelConfig, theirs: str, ours: str) -> Iterator[Place]:
    """Of the gated delta rule."""
    assert c.delta is not None
    theirs, ours, d = theirs + "linear_attn.", ours + "delta.", c.delta
    mixed, values, heads = sum(d.widths), d.widths[2], d.value_heads
    start = 0
    for name, rows in (("qkv", mixed), ("z", values), ("b", heads), ("a", heads)):
        yield f"{theirs}in_proj_{name}.weight", ours + "inputs.weight", start, (rows, c.hidden_size)
        start += rows
    yield theirs + "conv1d.weight", ours + "kernel", 0, (mixed, 1, d.kernel)
    yield theirs + "A_log", ours + "log_rate", 0, (heads,)
    yield theirs + "dt_bias", ours + "rate_bias", 0, (heads,)
    yield theirs + "norm.weight", ours + "norm", 0, (d.value_dim,)
    yield theirs + "out_proj.weight", ours + "out.weight", 0, (c.hidden_size, values)


def experts_layout(c: ModelConfig, theirs: str, ours: str) -> Iterator[Place]:
    """Of a mixture of experts, whose rows lie one expert after the other in ours."""
    assert c.experts is not None
    e, hidden = c.experts, c.hidden_size
    yield theirs + "gate.weight", ours + "router.weight", 0, (e.count, hidden)
    for i in range(e.count):
        of_expert = mlp_layout(
            f"{theirs}experts.{i}.", ours + "gate_up.weight", ours + "down.weight", e.ffn_size, hidden
        )
        for name, own, start, shape in of_expert:
            yield name, own, start + i * (hidden if name.endswith("down_proj.weight") else 2 * e.ffn_size), shape
    if e.shared_size:
        own = ours + "shared_"
        yield theirs + "shared_expert_gate.weight", own + "router.weight", 0, (1, hidden)
        yield from mlp_layout(
            theirs + "shared_expert.", own + "gate_up.weight", own + "down.weight", e.shared_size, hidden
        )


def mlp_layout(theirs: str, gate_up: str, down: str, width: int, hidden: int) -> Iterator[Place]:
    """Of a gated MLP."""
    yield theirs + "gate_proj.weight", gate_up, 0, (width, hidden)
    yield theirs + "up_proj.weight", gate_up, width, (width, hidden)
    yield theirs + "down_proj.weight", down, 0, (hidden, width)


def load(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    template_values: Mapping[str, Any] | None = None,
    day: str | None = None,
) -> tuple[Transformer, Tokenizer]:
    """Open a Hugging Face folder.

    dtype: of the weights, default the one config.json states. template_values and day: what the chat template is told
    (see ChatTemplate). Raises UserError naming the file and the field where the
    folder is not a whole checkpoint of a supported family.
    """
    folder = Path(path)
    config = read_config(folder)
    tokenizer = Tokenizer(folder, config.vocab_size, template_values, day)
    return load_weights(folder, dtype or config.dtype, torch.device(device)), tokenizer


def load_weights(folder: Path, dtype: torch.dtype, device: torch.device) -> Transformer:
    """Build the Transformer of a Hugging Face folder.

    Every parameter is filled exactly once. Raises UserError that names the tensor which is missing, left over or of
    another shape, the file that is missing or truncated, or the index entry that leaves the folder.
    """
    config = read_config(folder)
    stored = open_tensors(folder, config)
    with torch.device("meta"):  # shapes alone: weights that are about to be overwritten are never drawn
        model = Transformer(config).to(dtype)
    model.to_empty(device=device)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    everything = slice(None)
    fill(
        stored,
        (
            Piece(theirs, everything, everything, parameters[ours][start : start + shape[0]])
            for theirs, ours, start, shape in layout(config)
        ),
    )
    return model


class Piece(NamedTuple):
    """Rows and columns (of a vector: rows) of a published tensor, and the storage that they fill."""

    name: str
    rows: slice
    columns: slice
    target: Tensor


def fill(stored: "dict[str, Stored]", pieces: Iterable[Piece]) -> None:
    """Copy each piece from its mapped file; nothing else of the file is read."""
    for piece in pieces:
        # Pages of a mapped file count as the process's memory while it is open: so it is opened for each tensor.
        place = stored[piece.name]
        with safe_open(place.path, framework="pt") as file:
            if place.stack is None:
                index = (piece.rows, piece.columns)[: piece.target.ndim]
                piece.target.copy_(file.get_slice(piece.name)[index])
            else:
                name, expert, first = place.stack
                low, high, _ = piece.rows.indices(place.shape[0])
                rows = slice(first + low, first + high)
                piece.target.copy_(file.get_slice(name)[expert : expert + 1, rows, piece.columns][0])


def open_tensors(folder: Path, config: ModelConfig) -> "dict[str, Stored]":
    """Where every tensor of a checkpoint is stored. Raises UserError where one is missing, left over or of another shape."""
    stored = unstacked(config, stored_tensors(folder))
    check_tensors(folder, config, stored)
    return stored


class Stored(NamedTuple):
    """Where a tensor is stored and what its file says about it; dtype as safetensors spells it ("BF16"). stack: of an
    expert's, the tensor that it is a part of, the expert's number and the part's first row among the expert's."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    stack: tuple[str, int, int] | None = None


def stacks_of(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], list[list[str]]]]:
    """(name, shape, the expert's tensors one above the other, for each expert) of the tensors that hold a layer's experts."""
    for i in config.sparse_layers:
        assert config.experts is not None
        e, theirs = config.experts, f"{config.prefix}layers.{i}.mlp.experts."
        for name, parts, shape in (
            ("gate_up_proj", ("gate_proj", "up_proj"), (e.count, 2 * e.ffn_size, config.hidden_size)),
            ("down_proj", ("down_proj",), (e.count, config.hidden_size, e.ffn_size)),
        ):
            yield theirs + name, shape, [[f"{theirs}{n}.{part}.weight" for part in parts] for n in range(e.count)]


def unstacked(config: ModelConfig, stored: "dict[str, Stored]") -> "dict[str, Stored]":
    """The same with each expert's tensors by name, where a layer's experts are stored as one. Raises UserError where a stack
    has another shape."""
    found = dict(stored)
    for name, shape, experts in stacks_of(config):
        if name in stored:
            path, stack_shape, dtype, _ = found.pop(name)
            if stack_shape != shape:
                raise UserError(f"{path}: tensor {name} has shape {list(stack_shape)}, config.json needs {list(shape)}")
            rows = shape[1] // len(experts[0])
            for n, parts in enumerate(experts):
                found |= {p: Stored(path, (rows, shape[2]), dtype, (name, n, i * rows)) for i, p in enumerate(parts)}
    return found


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder's safetensors files, from their headers."""
    stored: dict[str, Stored] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
                found = {name: Stored(path, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
        except (SafetensorError, OSError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); fetch it again") from None
        if twice := stored.keys() & found.keys():
            raise UserError(
                f"{path}: tensor {min(twice)} is in {stored[min(twice)].path.name} too; keep one of the two"
            )
        stored |= found
    return stored


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, or else those its index names."""
    if (single := checkpoint_file(folder, SINGLE, anywhere=True)) is not None:
        return [single]
    if (index := checkpoint_file(folder, INDEX)) is None:
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} is there; fetch the weights as safetensors")
    read = read_json(index)
    entries = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(entries, dict) or not entries or not all(isinstance(v, str) for v in entries.values()):
        raise UserError(f"{index}: weight_map must map tensor names to file names")
    paths = []
    for name in sorted(set(entries.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{index}: weight_map names {shown(name)}, which is outside the checkpoint's folder")
        if (path := checkpoint_file(folder, name, anywhere=True)) is None:
            raise UserError(f"{folder / one_line(name)}: named by the index but missing; fetch it again")
        paths.append(path)
    return paths


def check_tensors(folder: Path, config: ModelConfig, stored: dict[str, Stored]) -> None:
    """Hold the tensors that are there against the table, before anything is allocated."""
    spare = dict(stored)
    for name, _, _, shape in layout(config):
        if name not in stored:
            others = sum(map(len, beside(spare).values()))
            hint = f" (those of {' and '.join(beside(spare))} are there: {others} tensors)" if others else ""
            raise UserError(f"{folder}: tensor {name} is missing{hint}; the model in config.json needs it")
        path, found, dtype, _ = spare.pop(name)
        if found != shape:
            raise UserError(f"{path}: tensor {name} has shape {list(found)}, config.json needs {list(shape)}")
        if dtype not in ("F32", "BF16", "F16"):
            raise UserError(f"{path}: tensor {name} is stored as {dtype}; only F32, BF16 and F16 are supported")
    if config.tied and "lm_head.weight" in spare:
        path = spare.pop("lm_head.weight").path
        with safe_open(path, framework="pt") as one:
            head = one.get_tensor("lm_head.weight")
        embedding = config.prefix + "embed_tokens.weight"
        with safe_open(stored[embedding].path, framework="pt") as other:
            same = torch.equal(head, other.get_tensor(embedding))
        if not same:
            raise UserError(f"{path}: lm_head.weight differs from the embedding; set tie_word_embeddings to false")
    if config.family.hybrid and (left := beside(spare)):
        counts = ", ".join(f"{len(names)} tensors of {what} ({names[0]}, ...)" for what, names in left.items())
        say_once(f"{folder}: text alone is read; left out, and copied unchanged when the model is written: {counts}")
        spare = {name: tensor for name, tensor in spare.items() if not any(name in names for names in left.values())}
    for name, tensor in spare.items():
        if not name.endswith("rotary_emb.inv_freq"):  # a constant that old exports store
            raise UserError(f"{tensor.path}: tensor {name} is left over; config.json describes no such tensor")


def beside(names: Iterable[str]) -> dict[str, list[str]]:
    """what: the names of the tensors that a text model does without, of those given."""
    found = {what: sorted(name for name in names if name.startswith(begins)) for what, begins in BESIDE.items()}
    return {what: of_it for what, of_it in found.items() if of_it}


@functools.cache
def say_once(message: str) -> None:
    """A checkpoint is opened several times in a run."""
    log.info("%s", one_line(message))


def model_fingerprint(folder: Path) -> dict[str, str]:
    """file: a hash of all its bytes, for every file of a checkpoint that decides a result, or stands beside it.

    Nothing is left out or remembered: a byte in the middle of the weights can be changed and the file's time set back.
    It takes one read of the weights, which loading them then finds in the page cache, and SHA-256 in up to THREADS
    threads: 0.7 s of a core for each GiB. Raises UserError as loading does, before anything is computed.
    """
    names = ("config.json", *COPIED, *more_templates(folder), INDEX)
    found = {name: path for name in names if (path := checkpoint_file(folder, name)) is not None}
    found |= {tensor.path.name: tensor.path for tensor in stored_tensors(folder).values()}  # whole, so of a stated size
    pieces = [(name, at) for name, path in found.items() for at in range(0, max(1, path.stat().st_size), PIECE)]
    hashes = {name: hashlib.sha256() for name in found}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
        try:
            digests = threads.map(lambda piece: piece_digest(found[piece[0]], piece[1]), pieces)
            for (name, _), digest in zip(pieces, digests):
                hashes[name].update(digest)
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error}") from None
    return {name: found_hash.hexdigest()[:32] for name, found_hash in sorted(hashes.items())}


def piece_digest(path: Path, start: int) -> bytes:
    """SHA-256 of the PIECE of a file that begins at `start`. hashlib lets other threads run meanwhile."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        for _ in range(PIECE // BUFFER):
            digest.update(file.read(BUFFER))
    return digest.digest()


def published_tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights under their published names, as views of the fused storage."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return {theirs: parameters[ours][start : start + shape[0]] for theirs, ours, start, shape in layout(model.config)}


def save_checkpoint(model: Transformer, source: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write `folder` as a Hugging Face checkpoint: weights in `dtype` (default: as they are), the rest from `source`.

    The folder appears whole or not at all. Raises UserError where it exists already or cannot be written.
    """
    write_checkpoint(model.config, published_tensors(model), source, folder, dtype or model.embed.dtype)


def write_checkpoint(
    config: ModelConfig, tensors: Mapping[str, Tensor], source: Path, folder: Path, dtype: torch.dtype
) -> None:
    """The same from `tensors` under their published names. They are asked for in the order of `layout`, each once and
    one file's worth at a time, so a mapping that makes its values when asked never holds the whole model."""
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another place for the checkpoint")
    described = read_object(need_file(source, "config.json"))
    for fields in (described, described.get("text_config")):
        if fields is described or (isinstance(fields, dict) and {"dtype", "torch_dtype"} & fields.keys()):
            fields["torch_dtype" if "torch_dtype" in fields else "dtype"] = str(dtype).removeprefix("torch.")
    remove_partials(folder)
    # Written beside its place and renamed when it is whole: nobody loads half a checkpoint, whenever this is killed.
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        write_shards(partial, config, tensors, dtype, source)
        write_json(partial / "config.json", described)
        for name in (*COPIED, *more_templates(source)):
            if (side := checkpoint_file(source, name)) is not None:
                (partial / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(side, partial / name)
        publish_folder(partial, folder)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder}: cannot be written: {error}; make room or choose another place") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def more_templates(folder: Path) -> list[str]:
    """The names of a checkpoint's further chat templates, by their place in it."""
    try:
        found = sorted(entry.name for entry in os.scandir(folder / MORE_TEMPLATES) if entry.name.endswith(".jinja"))
    except OSError:  # there are none
        return []
    if len(found) > MOST_TEMPLATES:
        raise UserError(
            f"{folder / MORE_TEMPLATES}: holds {len(found)} templates, more than {MOST_TEMPLATES}; remove some"
        )
    return [f"{MORE_TEMPLATES}/{name}" for name in found]


def remove_partials(folder: Path) -> None:
    """Remove what a process that was killed left of writing `folder`: what this one left, and what no living one has."""
    for partial in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        owner = partial.name.removeprefix(f".{folder.name}.").removesuffix(".partial")
        if owner.isdecimal() and (int(owner) == os.getpid() or not is_alive(int(owner))):
            shutil.rmtree(partial, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether a process of this id runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, and is somebody else's
        return True
    return True


class Written(NamedTuple):
    """A tensor to be written: its bytes, and what makes it."""

    size: int
    make: Callable[[], Tensor]


def to_write(
    config: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype, source: Path
) -> dict[str, Written]:
    """name: what a checkpoint's files hold, experts stacked where the source's are, with what the source has beside the text
    model. In the order of `layout`, so a reader of one file has whole layers."""
    stored = stored_tensors(source) if config.family.sparse or config.family.hybrid else {}
    stack_of: dict[str, tuple[str, tuple[int, ...], list[list[str]]]] = {}
    for name, shape, experts in stacks_of(config):
        if name in stored:
            stack_of |= {part: (name, shape, experts) for parts in experts for part in parts}
    found: dict[str, Written] = {}

    def stacked(experts: list[list[str]]) -> Tensor:
        return torch.stack([torch.cat([tensors[part].to("cpu", dtype) for part in parts]) for parts in experts])

    for name, _, _, shape in layout(config):
        if name in stack_of:
            stack, whole, experts = stack_of[name]
            found.setdefault(stack, Written(math.prod(whole) * dtype.itemsize, functools.partial(stacked, experts)))
        else:
            make = functools.partial(lambda name: tensors[name].to("cpu", dtype), name)
            found[name] = Written(math.prod(shape) * dtype.itemsize, make)
    for names in beside(stored).values() if config.family.hybrid else ():
        for name in names:
            place = stored[name]
            size = math.prod(place.shape) * ITEM_BYTES.get(place.dtype, 4)
            found[name] = Written(size, functools.partial(read_tensor, place.path, name))
    return found


def read_tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def write_shards(
    folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype, source: Path
) -> None:
    """Write one safetensors file, or several of at most SHARD_BYTES each with an index. Holds one of them at a time."""
    written = to_write(config, tensors, dtype, source)
    shards: list[list[str]] = []
    room = 0
    for name, (size, _) in written.items():
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file({n: written[n].make() for n in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(size for size, _ in written.values())}, "weight_map": weight_map}
        write_json(folder / INDEX, index)
