"""Names on the hub, against a stand-in on the loopback interface: what is downloaded, resumed, kept and refused."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time

import huggingface_hub.constants as constants
import huggingface_hub.file_download
import pytest
from huggingface_hub import ModelCard

import o1core
from o1core.cli import main
from o1core.errors import UserError
from o1core.model import find_model, read_config
from o1core.problems import load_problems
from tests.conftest import build
from tests.hub import COMMIT, TOKEN, serve

NAME, DATA = "someone/small-model", "someone/sums"
FLAGS = "--samples 2 --picked 2 --problems 3 --rounds 1 --max-new-tokens 6 --slots 8 --lora-rank 2 --device cpu"
README = """---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: [main/test-*]}
- config_name: other
  data_files: other/train.jsonl
---
# Sums
"""


def sums(path, *numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in numbers))


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    """A model with all that a repository holds, and a data set of two configurations."""
    model, data = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("data")
    build(model, shard="60KB")
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Small\n")
    (model / "LICENSE").write_text("Apache License")
    for name in ("pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors", "training_args.bin"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("not to be read")
    for at in (0, 1):
        sums(data / f"main/train-0000{at}-of-00002.jsonl", *range(10 * at, 10 * at + 5))
    sums(data / "main/test-00000-of-00001.jsonl", 70, 71, 72)
    sums(data / "other/train.jsonl", 90)
    (data / "README.md").write_text(README)
    return model, data


def move_to(monkeypatch, url):
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def hub(repos, tmp_path, monkeypatch):
    """The hub with both, an empty cache, and no patience between attempts."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    with serve({NAME: repos[0]}, {DATA: repos[1]}) as server:
        move_to(monkeypatch, server.url)
        yield server


def test_only_what_is_read_is_downloaded_once_and_then_offline(hub, repos, monkeypatch):
    found = find_model(NAME)
    assert found.commit == COMMIT == found.folder.name
    files = set(hub.downloaded())
    shards = {path.name for path in repos[0].glob("model-*.safetensors")}
    assert len(shards) > 1 and shards < files and len(files) == len(hub.downloaded())
    assert {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "README.md",
        "LICENSE",
    } < files
    assert not {name for name in files if name.endswith((".bin", ".onnx"))} and "consolidated.safetensors" not in files
    before = len(hub.downloaded())
    policy = o1core.load(NAME, device="cpu")
    assert policy.folder == found.folder and len(hub.downloaded()) == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert find_model(NAME) == find_model(NAME, "main") == find_model(NAME, COMMIT) == found
    assert len(hub.asked) == asked


def test_a_plan_needs_no_weights(hub, capsys):
    assert main(["plan", "--model", NAME]) == 0
    assert not any("safetensors" in name and "index" not in name for name in hub.downloaded())
    assert f"prune --model {NAME}" in capsys.readouterr().out


def test_a_cut_download_is_resumed(hub, repos, monkeypatch):
    """In the middle of a file while huggingface_hub tries again, and after it gave up with the files that are missing."""
    first, second = sorted(path.name for path in repos[0].glob("model-*.safetensors"))[:2]
    whole = {name: (repos[0] / name).read_bytes() for name in (first, second)}
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.cut = {first: [4096], second: [9] * 99}
    with pytest.raises(UserError, match=rf"^{NAME}: the download broke off .*; rerun the same command to continue it$"):
        find_model(NAME)
    assert [asked for _, path, asked in hub.asked if path.endswith(first)][-2:] == [None, "bytes=4096-"]
    hub.cut.clear()
    hub.asked.clear()
    folder = find_model(NAME).folder
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert second in hub.downloaded() and first not in hub.downloaded()


def test_a_file_outside_of_the_repository_is_not_fetched(hub, monkeypatch):
    monkeypatch.setattr(
        "o1core.problems.download.files_of", lambda repo, folder: (["../../../main/train-0.jsonl"], True)
    )
    monkeypatch.setattr("o1core.problems.download.read_configurations", lambda readme: None)
    with pytest.raises(UserError, match=f"^{DATA}: the hub refuses: "):
        load_problems(DATA)


def test_ctrl_c_ends_a_download(hub, tmp_path):
    hub.slow.add("main/train-00001-of-00002.jsonl")
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", f"import o1core; o1core.load_problems('{DATA}')"]
    with subprocess.Popen(command, env=os.environ | home, stderr=subprocess.PIPE, text=True) as process:
        while not any(path.endswith("00001-of-00002.jsonl") and of == "GET" for of, path, _ in hub.asked):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0


def test_data_sets_by_configuration_and_split(hub, monkeypatch):
    def answers(source):
        return [int(p.answer) - 1 for p in load_problems(source)]

    train, test = [*range(5), *range(10, 15)], [70, 71, 72]
    for _ in range(2):
        assert answers(DATA) == answers(f"{DATA}:train") == answers(f"{DATA}@{COMMIT}:main/train") == train
        assert answers(f"{DATA}:test") == answers(f"{DATA}:main/test") == test
        assert answers(f"{DATA}:other") == [90]
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=rf"^{DATA}: has no split main/dev in .*; there is: main/train, main/test, other/train"
    ):
        load_problems(f"{DATA}:dev")


def test_data_sets_that_say_nothing_are_read_by_the_names_of_their_files(hub, tmp_path):
    folder = tmp_path / "plain"
    sums(folder / "data/test.jsonl", 7)
    sums(folder / "data/validation.json", 8)
    sums(folder / "one.jsonl", 9)
    (folder / "notes.txt").write_text("text")
    hub.repos["datasets"] |= {"a/plain": folder, "a/one": folder / "data", "a/none": folder / "none"}
    (folder / "none").mkdir()
    assert [p.answer for p in load_problems("a/plain:val")] == ["9"]
    assert [p.answer for p in load_problems("a/one:test")] == ["8"]
    with pytest.raises(UserError, match="a/plain: has no split default/train in a format that is read"):
        load_problems("a/plain")
    with pytest.raises(UserError, match="a/none: has no split default/train"):
        load_problems("a/none")


def test_the_file_s_own_name_says_its_split_before_its_folders_do(hub, tmp_path, caplog):
    def answers(source):
        return [int(p.answer) - 1 for p in load_problems(source)]

    for at, name in enumerate(("eval/train", "eval/test", "en/train", "de/train", "de/test"), 1):
        sums(tmp_path / f"{'one' if at < 3 else 'two'}/{name}.jsonl", at)
    sums(tmp_path / "one/train-2.json", 9)
    sums(tmp_path / "three/data.json", 7)
    (tmp_path / "three/dataset_infos.json").write_text("{}")
    hub.repos["datasets"] |= {f"a/{name}": tmp_path / name for name in ("one", "two", "three")}
    assert (answers("a/one"), answers("a/one:test"), answers("a/one:eval/train")) == ([1], [2], [1])
    assert "a/one: only its .jsonl files are read, and not, for example, train-2.json" in caplog.text
    with pytest.raises(
        UserError, match=r"a/two: has several configurations \(de, en\); name one, as in a/two:de/train"
    ):
        answers("a/two")
    assert (answers("a/two:de/train"), answers("a/two:en"), answers("a/two:de/test")) == ([4], [3], [5])
    assert answers("a/three") == [7]


def test_from_a_name_on_the_hub_to_a_card(hub, tmp_path, caplog):
    """The run keeps the commits, goes on with them when the hub has moved, and its card names model and data."""
    run = tmp_path / "run"
    flags = [
        "--samples",
        "2",
        "--picked",
        "2",
        "--problems",
        "3",
        "--rounds",
        "1",
        "--max-new-tokens",
        "6",
        "--slots",
        "8",
        "--lora-rank",
        "2",
        "--device",
        "cpu",
    ]
    sources = ["--model", NAME, "--data", DATA, "--eval-data", f"{DATA}:test"]
    with caplog.at_level(logging.INFO):
        assert main(["sample", *sources, *flags, "--out", str(run)]) == 0
    assert "Sample small-model (1 M) on 3 problems x 2 samples" in caplog.text
    held = json.loads((run / "settings.json").read_text())
    assert (held["model"], held["revision"], held["data"]) == (NAME, COMMIT, f"{DATA}@{COMMIT}")
    assert held["eval_data"] == [f"{DATA}@{COMMIT}:test"] and list(held["tests"]) == ["sums"]
    for repos in hub.repos.values():
        repos.clear()
    assert main(["prune", *sources, *flags, "--out", str(run)]) == 0
    card = (run / "pruned" / "README.md").read_text()
    assert f"base_model: {NAME}\n" in card and f"datasets:\n- {DATA}\n" in card and "license: apache-2.0\n" in card
    assert (run / "pruned" / "LICENSE").read_text() == "Apache License"
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (NAME, COMMIT)
    assert main(["show", str(run), "--problems", "1"]) == 0
    assert "HTTP Request" not in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "someone/nothing"], "someone/nothing: no such folder here, and no such model on the hub; corr"),
        (
            ["--model", NAME, "--revision", "v9"],
            f"{NAME}: has no revision v9; name a branch, a tag or a whole commit hash",
        ),
        (
            ["--model", "a/pickled"],
            "a/pickled: the repository holds no safetensors, and pickled weights such as 'pytorch_mod",
        ),
        (["--model", "a/gated"], "a/gated: is gated; accept its terms on http"),
        (["--model", "a/empty"], "a/empty: the repository holds no config.json"),
        (["--model", "a/bert"], "config.json: architectures"),
        (["--model", ".", "--revision", "main"], "--revision: . is no name on the hub; leave the flag out"),
        (["--data", "someone/nothing"], "someone/nothing: no such file here, and no such dataset on the hub"),
        (["--data", f"{DATA}@v9"], f"{DATA}: has no revision v9"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub, repos, tmp_path, edit_json, flags, message, capsys):
    pickled, empty, bert = (tmp_path / name for name in ("pickled", "empty", "bert"))
    for folder in (pickled, empty, bert):
        folder.mkdir()
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (pickled / name).write_bytes((repos[0] / name).read_bytes())
    (empty / "README.md").write_text("text")
    (bert / "config.json").write_bytes((repos[0] / "config.json").read_bytes())
    (bert / "model.safetensors").write_text("gigabytes")
    edit_json(bert / "config.json", architectures=["BertModel"])
    hub.repos["models"] |= {"a/pickled": pickled, "a/gated": repos[0], "a/empty": empty, "a/bert": bert}
    hub.gated.add("a/gated")
    assert main(["eval", "--data", DATA, "--out", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("o1core: error: ") and message in error
    assert not (tmp_path / "run").exists()
    assert not any(name in hub.downloaded() for name in ("pytorch_model.bin", "model.safetensors"))


def test_no_space_left_in_the_cache(hub, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    with pytest.raises(UserError, match=rf"^{NAME}: no space is left in the cache .*cache; make room, or set HF_HOME"):
        find_model(NAME)


def test_without_a_network_one_line_says_what_to_type(hub, monkeypatch):
    for offline, why in ((True, "HF_HUB_OFFLINE is set"), (False, "the hub cannot be reached")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        move_to(monkeypatch, "http://127.0.0.1:9")
        with pytest.raises(UserError, match=rf"^{NAME}: .*{why}.*: hf download {NAME} --revision v1$"):
            find_model(NAME, "v1")
        with pytest.raises(UserError, match=rf"{why}.*: hf download {DATA} --repo-type dataset$"):
            load_problems(f"{DATA}:test")


def test_what_a_dry_run_left_out_is_not_said_to_be_missing_on_the_hub(hub, monkeypatch):
    find_model(NAME, weights=False)
    load_problems(f"{DATA}:other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=rf"^{NAME}: .* does not have all of it; .*: hf download {NAME} --revision {COMMIT}"
    ):
        find_model(NAME)
    with pytest.raises(
        UserError, match=rf"^{DATA}: the cache does not have the split main/train; .*: hf download {DATA} --"
    ):
        load_problems(DATA)


def test_the_environment_of_other_tools_is_heeded(hub, tmp_path):
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", f"import o1core; print(len(o1core.load_problems('{DATA}')))"]
    done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True)
    assert done.stdout.strip() == "10", done.stderr
    assert list((tmp_path / "home/hub/datasets--someone--sums/snapshots").iterdir())


def test_a_folder_of_the_cache_is_read(hub):
    assert read_config(find_model(NAME).folder).num_layers == 2


def test_from_a_name_on_the_hub_to_a_card_on_the_hub(repos, tmp_path, monkeypatch, capsys):
    """SmolLM2-135M's name with a small Llama in its place: downloaded, pruned, and uploaded with its card and licence."""
    name, mine = "HuggingFaceTB/SmolLM2-135M", "me/smol-pruned"
    smol = tmp_path / "smol"
    build(smol, "llama")
    (smol / "README.md").write_text("---\nlicense: apache-2.0\n---\n# SmolLM2\n")
    (smol / "LICENSE").write_text("Apache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    small = "--problems 4 --samples 2 --picked 2 --rounds 1 --max-new-tokens 8 --temperature 1 --batch 4 --device cpu"
    flags = ["--model", name, "--data", DATA, *small.split(), "--lora-rank", "2", "--out", str(tmp_path / "run")]
    with serve({name: smol}, {DATA: repos[1]}) as server:
        move_to(monkeypatch, server.url)
        assert main(["prune", *flags, "--push-to-hub", mine]) == 0
        assert f"on the hub: {server.url}/{mine}" in capsys.readouterr().out
        pushed = server.pushed[mine]
        assert {"README.md", "LICENSE", "config.json", "model.safetensors", "adapter/README.md"} < pushed.keys()
        assert pushed["model.safetensors"] == (tmp_path / "run" / "pruned" / "model.safetensors").read_bytes()
        held = ModelCard(pushed["README.md"].decode()).data
        assert (held.base_model, held.license, held.datasets) == (name, "apache-2.0", [DATA])
        assert {r.dataset_name for r in held.eval_results} == {"sums"}
        monkeypatch.setenv("HF_TOKEN", "another")
        assert main(["prune", *flags, "--push-to-hub", mine]) == 2, "the run is finished, the upload is refused"
        assert f"--push-to-hub {mine}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, token, message",
    [
        ("me/model", None, "nobody is logged in; log in with: hf auth login"),
        ("model", TOKEN, "model is not OWNER/NAME"),
        ("me/model", TOKEN, "--push-to-hub me/model: this method trains nothing"),
    ],
)
def test_an_upload_is_refused_before_the_work(name, token, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", token or "")
    method = ["--method", "fast-prompt"] if "trains nothing" in message else []
    assert main(["prune", "--push-to-hub", name, *method, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_data_set_named_twice_is_trained_on_by_its_train_split_and_tested_on_by_its_test_split(hub, tmp_path, capsys):
    flags = [
        "--model",
        NAME,
        "--data",
        DATA,
        "--eval-data",
        DATA,
        "--eval-problems",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["prune", *flags, "--dry-run"]) == 0
    assert "10 problems to train on, 2 of sums to evaluate" in capsys.readouterr().err
