"""Files are written whole, durably and with checksums, or the error says which one could not be."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from o1core.errors import UserError
from o1core.files import (
    damaged_file,
    digests,
    publish_folder,
    read_record,
    refuse_links,
    write_atomic,
    write_json,
    write_record,
)


def test_a_record_reads_as_it_was_written(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"x": "y"}}
    write_record(tmp_path / "r.json", value)
    assert read_record(tmp_path / "r.json") == value


def test_every_flipped_bit_of_a_record_is_noticed(tmp_path):
    path = tmp_path / "r.json"
    value = {"accuracy": 0.25, "problems": 7}
    write_record(path, value)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            read = read_record(path)
        except UserError:
            continue
        assert read == value, f"bit {bit} passed"


def test_a_record_of_an_older_version_has_no_checksum_and_is_read(tmp_path):
    (tmp_path / "r.json").write_text('{"accuracy": 1}')
    assert read_record(tmp_path / "r.json") == {"accuracy": 1}


def test_a_damaged_or_missing_file_of_a_folder_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12345")
    listed = digests(tmp_path)
    assert damaged_file(tmp_path, listed) is None
    (tmp_path / "b").write_bytes(b"12344")
    assert damaged_file(tmp_path, listed) == tmp_path / "b"
    (tmp_path / "a").unlink()
    assert damaged_file(tmp_path, listed) == tmp_path / "a"


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=f"{path}: cannot be written .No space left on device"):
        write_atomic(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["f"]


def test_a_link_at_the_temporary_name_is_not_written_through(tmp_path, monkeypatch):
    """Neither at the name that versions before 0.2 used nor where the name is known."""
    (tmp_path / "victim").write_text("mine")
    for name in (".f.partial", ".f.00000000.partial"):
        (tmp_path / name).symlink_to("victim")
    write_json(tmp_path / "f", 1)
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    with pytest.raises(UserError, match=r"f: cannot be written \(File exists\)"):
        write_json(tmp_path / "f", 2)
    assert (tmp_path / "victim").read_text() == "mine" and (tmp_path / "f").read_text() == "1\n"


def test_links_below_a_folder_are_refused(tmp_path):
    (tmp_path / "run" / "round-00").mkdir(parents=True)
    refuse_links(tmp_path / "run")
    (tmp_path / "run" / "round-00" / "rollouts").symlink_to(tmp_path)
    with pytest.raises(UserError, match="round-00/rollouts: is a link, which a run does not follow"):
        refuse_links(tmp_path / "run")


def test_content_and_name_are_on_the_disk_before_anything_depends_on_them(tmp_path):
    """The order of system calls, as a power failure would see it."""
    calls = record_calls(f"write_json(Path({str(tmp_path / 'f.json')!r}), 1)")
    assert calls == ["fsync .f.json.TOKEN.partial", "replace f.json", f"fsync {tmp_path.name}"]
    (tmp_path / ".s.partial").mkdir()
    (tmp_path / ".s.partial" / "t").write_text("x")
    calls = record_calls(f"publish_folder(Path({str(tmp_path / '.s.partial')!r}), Path({str(tmp_path / 's')!r}))")
    assert calls == ["fsync t", "fsync .s.partial", "replace s", f"fsync {tmp_path.name}"]


def record_calls(statement: str) -> list[str]:
    program = f"""
import os
from pathlib import Path
from o1core.files import *
opened, os_open, os_fsync, os_replace = {{}}, os.open, os.fsync, os.replace
def spy_open(path, *rest):
    descriptor = os_open(path, *rest); opened[descriptor] = Path(path).name; return descriptor
def spy_fsync(descriptor):
    os_fsync(descriptor); print("fsync", opened[descriptor])
def spy_replace(a, b):
    os_replace(a, b); print("replace", Path(b).name)
os.open, os.fsync, os.replace = spy_open, spy_fsync, spy_replace
{statement}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [re.sub(r"\.[0-9a-f]{8}\.", ".TOKEN.", line) for line in done.stdout.splitlines()]


def test_a_published_folder_is_there_as_a_whole(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x").write_text("1")
    publish_folder(tmp_path / "p", tmp_path / "q")
    assert not (tmp_path / "p").exists() and (tmp_path / "q" / "x").read_text() == "1"
