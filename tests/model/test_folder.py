"""Which files of a checkpoint's folder are opened and copied: regular ones, its own, and those of the cache it lies in."""

import os
import subprocess
import sys

import pytest
import torch

import o1core.model
from o1core.errors import UserError
from o1core.files import damaged_file, digests
from o1core.model import checkpoint as weights
from o1core.model import model_fingerprint, save_checkpoint

FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def cached(checkpoint, root):
    """The checkpoint as the Hugging Face cache holds it: links into blobs alone."""
    snapshot, blobs = root / "models--a--b" / "snapshots" / "0123abc", root / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(checkpoint.iterdir())):
        file.rename(blobs / f"{i:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:040x}")
    return snapshot


def test_a_folder_of_the_hugging_face_cache_loads_and_is_saved_as_files(checkpoint, tmp_path):
    snapshot = cached(checkpoint, tmp_path / "cache")
    (tmp_path / "link").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "link"):
        model, tokenizer = o1core.model.load(folder)
        assert tokenizer.decode(tokenizer.encode("2 + 2")) == "2 + 2"
    save_checkpoint(model, snapshot, tmp_path / "pruned")
    assert not any(file.is_symlink() for file in (tmp_path / "pruned").iterdir())
    assert (tmp_path / "pruned" / "tokenizer.json").read_bytes() == (snapshot / "tokenizer.json").read_bytes()


def test_weights_may_be_linked_from_anywhere(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").rename(tmp_path / "weights")
    (checkpoint / "model.safetensors").symlink_to(tmp_path / "weights")
    o1core.model.load(checkpoint)


def test_a_link_inside_the_folder_is_followed(checkpoint):
    (checkpoint / "tokenizer.json").rename(checkpoint / "tokenizer-2.json")
    (checkpoint / "tokenizer.json").symlink_to("tokenizer-2.json")
    o1core.model.load(checkpoint)


@pytest.mark.parametrize("name", [*FILES[1:], "chat_template.jinja"])
def test_a_link_out_of_the_folder_is_refused(checkpoint, tmp_path, name):
    target = tmp_path / "elsewhere"
    target.write_bytes((checkpoint / name).read_bytes() if name in FILES else b"private")
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to("../elsewhere")
    with pytest.raises(
        UserError, match=rf"{name}: is a link to .*/elsewhere, outside the checkpoint's folder; replace"
    ):
        o1core.model.load(checkpoint)


def test_no_private_file_lands_beside_the_pruned_weights(checkpoint, tmp_path):
    model, _ = o1core.model.load(checkpoint)
    (tmp_path / "private").write_text("secret")
    (checkpoint / "merges.txt").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"merges\.txt: is a link to .*/private, outside the checkpoint's folder"):
        save_checkpoint(model, checkpoint, tmp_path / "pruned")
    assert sorted(os.listdir(tmp_path)) == ["model", "private"]


@pytest.mark.parametrize("name", [*FILES, "chat_template.jinja"])
def test_a_pipe_is_refused_and_not_waited_for(checkpoint, name):
    (checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(checkpoint / name)
    with pytest.raises(UserError, match=f"{name}: is not a regular file"):
        o1core.model.load(checkpoint)


@pytest.mark.parametrize("target", ["/dev/zero", "missing", "config.json", "."])
def test_a_device_a_loop_and_a_broken_link_are_refused(checkpoint, target):
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").symlink_to(target)
    with pytest.raises(UserError, match=r"config\.json: (is not a regular file|cannot be opened: )"):
        o1core.model.load(checkpoint)


def test_a_path_with_a_nul_is_refused():
    with pytest.raises(UserError, match="no such file"):
        o1core.model.load("a\0b")


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(checkpoint, tmp_path):
    model, _ = o1core.model.load(checkpoint)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = os.getppid()
    for owner in (dead.pid, living, os.getpid(), 10**30, "x"):
        (tmp_path / f".pruned.{owner}.partial").mkdir()
        (tmp_path / f".pruned.{owner}.partial" / "model.safetensors").write_bytes(b"half")
    (tmp_path / f".other.{dead.pid}.partial").mkdir()
    save_checkpoint(model, checkpoint, tmp_path / "pruned")
    left = [f".other.{dead.pid}.partial", f".pruned.{living}.partial", ".pruned.x.partial", "model", "pruned"]
    assert sorted(os.listdir(tmp_path)) == sorted(left)


def test_an_export_holds_one_file_of_the_weights_at_a_time(checkpoint, tmp_path, monkeypatch):
    from o1core.model import checkpoint as module

    model, _ = o1core.model.load(checkpoint)
    tensors, asked = module.published_tensors(model), []

    class Lazy(dict):
        def __getitem__(self, name):
            asked.append((name, len(list(tmp_path.glob(".copy.*/*.safetensors")))))
            return tensors[name].clone()

    monkeypatch.setattr(module, "SHARD_BYTES", 60_000)
    module.write_checkpoint(model.config, Lazy(), checkpoint, tmp_path / "copy", torch.float32)
    assert [name for name, _ in asked] == list(tensors)  # each once, in the order of the table
    files = sorted((tmp_path / "copy").glob("*.safetensors"))
    index = module.stored_tensors(tmp_path / "copy")
    assert all(
        index[name].path == files[written] for name, written in asked
    )  # a file is written before the next is asked


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(checkpoint, tmp_path, monkeypatch):
    model, _ = o1core.model.load(checkpoint)
    synced, renamed = [], []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: renamed.append((str(b), len(synced))) or replace(a, b))
    save_checkpoint(model, checkpoint, tmp_path / "pruned")
    name, before = renamed[-1]
    assert name == str(tmp_path / "pruned")
    assert {os.path.basename(path) for path in synced[:before]} >= {
        path.name for path in (tmp_path / "pruned").iterdir()
    }
    assert synced[-1] == str(tmp_path)


BESIDE = ("tokenizer.model", "merges.txt", "LICENSE", "NOTICE", "additional_chat_templates/rag.jinja")


def test_what_stands_beside_the_weights_is_copied(checkpoint, tmp_path):
    (checkpoint / "additional_chat_templates").mkdir()
    for name in BESIDE:
        (checkpoint / name).write_text(f"of {name}")
    (checkpoint / "additional_chat_templates" / "notes.txt").write_text("not a template")
    save_checkpoint(o1core.model.load(checkpoint)[0], checkpoint, tmp_path / "pruned")
    assert {name: (tmp_path / "pruned" / name).read_text() for name in BESIDE} == {
        name: f"of {name}" for name in BESIDE
    }
    assert os.listdir(tmp_path / "pruned" / "additional_chat_templates") == ["rag.jinja"]
    listed = digests(tmp_path / "pruned")
    assert BESIDE[-1] in listed and damaged_file(tmp_path / "pruned", listed) is None
    (tmp_path / "pruned" / BESIDE[-1]).write_text("changed")
    assert damaged_file(tmp_path / "pruned", listed) == tmp_path / "pruned" / BESIDE[-1]


@pytest.mark.parametrize("name", ["rag.jinja", "."])
def test_no_private_template_is_copied(checkpoint, tmp_path, name):
    private = tmp_path / "private"
    private.mkdir()
    (private / "rag.jinja").write_text("secret")
    home = checkpoint / "additional_chat_templates"
    if name == ".":
        home.symlink_to(private)
    else:
        home.mkdir()
        (home / name).symlink_to(private / name)
    with pytest.raises(UserError, match=r"rag\.jinja: is a link to .*, outside the checkpoint's folder"):
        save_checkpoint(o1core.model.load(checkpoint)[0], checkpoint, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("name", [*FILES[1:], "merges.txt", "chat_template.jinja", "tokenizer.model"])
def test_a_sparse_file_is_refused_before_it_is_read_or_copied(checkpoint, tmp_path, name):
    model, _ = o1core.model.load(checkpoint)
    with open(checkpoint / name, "ab") as file:
        file.truncate(4608 << 20)
    size = rf"{name}: has 4,608 MiB, more than the 128 that such a file may have; fetch it again"
    for use in (lambda: model_fingerprint(checkpoint), lambda: save_checkpoint(model, checkpoint, tmp_path / "pruned")):
        with pytest.raises(UserError, match=size):
            use()
    assert os.listdir(tmp_path) == ["model"]
    if name not in ("merges.txt", "tokenizer.model"):  # which are not read
        with pytest.raises(UserError, match=size):
            o1core.model.load(checkpoint)


def test_every_byte_of_a_checkpoint_is_in_its_fingerprint(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PIECE", 8192)
    monkeypatch.setattr(weights, "BUFFER", 1024)
    for name in BESIDE[:2]:
        (checkpoint / name).write_text(name)
    before = model_fingerprint(checkpoint)
    assert set(before) == {path.name for path in checkpoint.iterdir()} and len(set(before.values())) == len(before)
    for path in checkpoint.iterdir():
        content, times = path.read_bytes(), path.stat()
        for at in (0, len(content) // 2, len(content) - 1) if path.suffix == ".safetensors" else [len(content) - 1]:
            if path.suffix == ".safetensors" and at < 8192:  # its header: no whole file any more
                continue
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            changed = model_fingerprint(checkpoint)
            assert {name for name in before if before[name] != changed[name]} == {path.name}
        path.write_bytes(content)
    assert model_fingerprint(checkpoint) == before
    (checkpoint / "README.md").write_text("decides nothing")
    assert model_fingerprint(checkpoint) == before
    (checkpoint / "chat_template.jinja").write_text("one more")
    assert model_fingerprint(checkpoint).keys() - before.keys() == {"chat_template.jinja"}


def test_pieces_of_a_file_cannot_change_places(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PIECE", 8192)
    monkeypatch.setattr(weights, "BUFFER", 8192)
    path = checkpoint / "model.safetensors"
    content, before = path.read_bytes(), model_fingerprint(checkpoint)
    path.write_bytes(content[:16384] + content[24576:32768] + content[16384:24576] + content[32768:])
    assert model_fingerprint(checkpoint)["model.safetensors"] != before["model.safetensors"]
