"""One hostile checkpoint: the embedded one, damaged in one to three ways, opened in a process with limits.

fuzz_model(rng, folder) says "ok" (it opened, and its prompts were made), "refused" (one clean UserError), or what is bad:
a traceback, a death, a hang, more than 2 GB of memory, raw control characters in the message, noise on stderr.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import o1core.errors
import o1core.model
from tests.campaigns.harness import BYTES, NUMBERS, SECONDS, TEXTS, TINY, VALUES
from tests.campaigns.hostile import PARTS, TEMPLATES

MOST_BYTES = 2 << 30


def fuzz_model(rng: random.Random, folder: Path) -> str:
    """Write one hostile checkpoint into the empty `folder` and open it."""
    model = folder / "model"
    shutil.copytree(TINY, model)
    damages = [rng.choice(DAMAGES) for _ in range(rng.choice((1, 1, 2, 3)))]
    told = []
    for damage in damages:
        try:
            told.append(f"{damage.__name__}: {damage(rng, model)}")
        except (OSError, ValueError, LookupError, TypeError, RecursionError, struct.error):
            continue  # another damage has taken what this one needs
    outcome = opened(model)
    return outcome if outcome in ("ok", "refused") else f"{outcome} [{'; '.join(told)}]"


def own_file(path: Path) -> Path:
    """Another damage may have put a pipe or an endless device there."""
    if path.is_symlink() or not path.is_file():
        raise FileNotFoundError
    return path


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(own_file(path).read_text())
    change(value)
    path.write_text(json.dumps(value))


def config(rng: random.Random, model: Path) -> str:
    path = model / rng.choice(["config.json", "config.json", "generation_config.json", "tokenizer_config.json"])
    extra = [
        "rope_scaling",
        "rope_parameters",
        "head_dim",
        "layer_types",
        "quantization_config",
        "chat_template",
        "torch_dtype",
    ]
    value = json.loads(own_file(path).read_text())
    field = rng.choice([*value, *extra, "architectures", "eos_token_id", "bos_token", *TEXTS])
    value[field] = rng.choice(VALUES)
    path.write_text(json.dumps(value))
    return f"{path.name} {field[:40]!r} = {str(value[field])[:40]!r}"


def rope(rng: random.Random, model: Path) -> str:
    fields = [
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "attention_factor",
    ]
    fields += ["beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "partial_rotary_factor"]
    kinds = ["default", "llama3", "yarn", "linear", "dynamic", "longrope", "", None, ["yarn"]]
    good = {
        "rope_theta": 1e4,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    value = (
        good | {"rope_type": rng.choice(kinds)} | {rng.choice(fields): rng.choice(VALUES + NUMBERS) for _ in range(2)}
    )
    name = rng.choice(["rope_scaling", "rope_parameters"])
    edit(model / "config.json", lambda config: config.__setitem__(name, value))
    return f"{name} {str(value)[:200]}"


def bytes_of_a_file(rng: random.Random, model: Path) -> str:
    path = own_file(rng.choice(sorted(model.iterdir())))
    if rng.random() < 0.4:
        path.write_bytes(rng.choice(BYTES))
        return f"{path.name} replaced"
    data, size = bytearray(path.read_bytes()), path.stat().st_size
    for _ in range(rng.choice((1, 3, 20))):
        data[rng.randrange(min(size, 20_000))] = rng.randrange(256)
    path.write_bytes(data[: rng.choice((size, size, rng.randrange(size)))])
    return f"{path.name} flipped"


def weights_header(rng: random.Random, model: Path) -> str:
    path = own_file(model / "model.safetensors")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = rng.choice(sorted(header.keys() - {"__metadata__"}))
    entry = header[name]
    kind = rng.choice(["length", "field", "rename", "drop", "offsets"])
    if kind == "length":
        length = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        return f"header length {length}"
    if kind == "field":
        entry[rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(
            [*VALUES, [0], [-1, 2], [2**63, 2], "I8", "F64", "BF16"]
        )
    elif kind == "rename":
        header[rng.choice(TEXTS)] = header.pop(name)
    elif kind == "drop":
        header.pop(name)
    else:
        entry["data_offsets"] = [rng.choice([0, -1, 2**63, entry["data_offsets"][0]]), rng.choice([0, 2**63, 10**12])]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return f"{kind} {name} {str(entry)[:60]}"


def index(rng: random.Random, model: Path) -> str:
    (model / "model.safetensors").rename(model / "part.safetensors")
    good = dict.fromkeys(["model.norm.weight", "x"], "part.safetensors")
    odd = [*VALUES, {**good, "y": rng.choice(VALUES)}, {"a": "../model/part.safetensors"}, {"a": "config.json"}, good]
    value = rng.choice(
        [{"weight_map": rng.choice(odd)}, {"weight_map": rng.choice(odd), "metadata": 5}, rng.choice(VALUES)]
    )
    (model / "model.safetensors.index.json").write_text(json.dumps(value))
    return str(value)[:60]


def template(rng: random.Random, model: Path) -> str:
    text = rng.choice(TEMPLATES)
    if rng.random() < 0.3:
        (model / "chat_template.jinja").unlink(missing_ok=True)
        (model / "chat_template.jinja").write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        named = rng.choice([text, text, [{"name": "default", "template": text}], [{"name": text}], {"default": text}])
        edit(model / "tokenizer_config.json", lambda config: config.__setitem__("chat_template", named))
    return text[:60]


def tokenizer_part(rng: random.Random, model: Path) -> str:
    name = rng.choice(sorted(PARTS))
    value = rng.choice(PARTS[name])
    edit(model / "tokenizer.json", lambda tokenizer: tokenizer.__setitem__(name, value))
    return f"{name} {str(value)[:100]}"


def tokenizer_leaf(rng: random.Random, model: Path) -> str:
    path = model / "tokenizer.json"
    root = node = json.loads(own_file(path).read_text())
    trail = []
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = rng.choice(keys)
        trail.append(key)
        child = node[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.2:
            break
        node = child
    node[key] = rng.choice(VALUES)
    path.write_text(json.dumps(root))
    return f"{trail} = {str(node[key])[:40]!r}"


def kind_of_file(rng: random.Random, model: Path) -> str:
    name = rng.choice([*(path.name for path in model.iterdir()), "merges.txt", "chat_template.jinja"])
    path, kind = model / name, rng.choice(["fifo", "folder", "missing", "/dev/zero", "/etc/passwd", "nowhere", name])
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.symlink_to(kind)
    return f"{name} {kind}"


DAMAGES = [
    config,
    config,
    rope,
    bytes_of_a_file,
    weights_header,
    index,
    template,
    tokenizer_part,
    tokenizer_leaf,
    kind_of_file,
]


def opened(model: Path) -> str:
    """What comes of opening the checkpoint in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["o1core.model.checkpoint", __name__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(model, theirs))
    process.start()
    theirs.close()
    try:
        outcome = ours.recv() if ours.poll(SECONDS) else "hang"
    except EOFError:
        outcome = "death"
    if outcome == "hang":
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
    process.join()
    ours.close()
    if outcome == "death":
        return f"death: exit code {process.exitcode}"
    lines = (model.parent / "stderr").read_text(errors="replace").splitlines()
    noise = [
        line for line in lines if not (line.startswith(str(model)) and line.isprintable())
    ]  # a warning names its file
    return outcome if not noise or outcome not in ("ok", "refused") else f"stderr: {noise[:3]!r}"


def child(model: Path, answer: Connection) -> None:
    os.setsid()
    os.dup2(os.open(model.parent / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.send(outcome_of(model, own))


def outcome_of(model: Path, before: int) -> str:
    try:
        _, tokenizer = o1core.model.load(model)
        for question, system in (("2 + 2?", None), ("\ud800", None), ("二加二 é \0 😀", "Be brief.")):
            try:
                tokenizer.decode(tokenizer.prompt(question, system))
            except o1core.errors.UserError as error:
                if not str(error).isprintable():
                    return f"control characters: {error!r}"
        outcome = "ok"
    except o1core.errors.UserError as error:
        outcome = "refused" if str(error).isprintable() else f"control characters: {str(error)!r}"
    except BaseException:
        outcome = "traceback: " + traceback.format_exc()[-600:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if max(peak - before, workers) > MOST_BYTES:
        return f"memory: {max(peak - before, workers) / 1e9:.1f} GB"
    return outcome
