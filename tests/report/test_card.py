"""The model card: what a run made says what it is, from what, and how good, in the hub's form."""

import json
import os
import stat

import pytest
import yaml
from huggingface_hub import ModelCard

from o1core.cli import main
from o1core.files import write_record
from o1core.report.card import base_card, card, datasets_of
from o1core.report.samples import settings_of, without_places
from o1core.run_folder import RunFolder

SMALL = "--rounds 1 --problems 4 --samples 2 --picked 2 --max-new-tokens 12 --lora-rank 2"
LICENCE = "Apache License\n"
HEAD = "---\nlicense: other\nlicense_name: tiny\nlanguage:\n- en\nmodel-index: []\n---\n# Base\n"


@pytest.fixture
def base(checkpoint):
    (checkpoint / "README.md").write_text(HEAD)
    (checkpoint / "LICENSE").write_text(LICENCE)
    return checkpoint


def test_a_run_leaves_cards_with_the_bases_licence(base, flags, tmp_path, capsys):
    run, before = tmp_path / "run", os.umask(0o022)
    try:
        assert main(["prune", *flags, *SMALL.split(), "--out", str(run)]) == 0
    finally:
        os.umask(before)
    result = json.loads((run / "result.json").read_text())
    for folder, library in ((run / "pruned", "transformers"), (run / "adapter", "peft")):
        text = (folder / "README.md").read_text()
        held = ModelCard(text).data
        assert (held.license, held.license_name, held.language, held.library_name) == ("other", "tiny", ["en"], library)
        assert held.base_model is None, "a path is no name on the hub"
        metrics = {r.metric_type: r for r in held.eval_results}
        assert {r.dataset_name for r in held.eval_results} == {"problems"}
        assert metrics["accuracy"].metric_value == pytest.approx(100 * result["pruned"]["accuracy"], abs=0.006)
        change = result["paired"]["tokens"]["mean"] / result["base"]["mean_tokens"]
        assert metrics["token_change"].metric_value == pytest.approx(100 * change, abs=0.006)
        assert "95 % interval, paired: " in metrics["token_change"].metric_name
        assert "| learning rate | 0.001 |" in text and "| rank of the adapters | 2 |" in text and "| torch | " in text
        assert (
            "    o1core prune --model model --data problems.jsonl" in text
            and "| training data | problems.jsonl |" in text
        )
        assert str(tmp_path) not in text, "paths of this machine are nobody's business"
        assert (folder / "LICENSE").read_text() == LICENCE
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == base.name
    assert main(["report", str(run)]) == 0, "a card changes nothing of what the run is"


def test_names_on_the_hub_are_the_base_and_the_data_sets(tmp_path):
    settings = {
        "model": "Qwen/Qwen3-0.6B",
        "data": "openai/gsm8k:train@0123",
        "eval_data": ["a/b", str(tmp_path), "x.json"],
    }
    assert datasets_of(settings) == ["openai/gsm8k", "a/b"]
    held = ModelCard(card(settings | {"method": "dler"}, {"license": "mit"}, None, adapter=True)).data
    assert (held.base_model, held.base_model_relation, held.license) == ("Qwen/Qwen3-0.6B", "adapter", "mit")
    assert held.datasets == ["openai/gsm8k", "a/b"] and held.eval_results is None


@pytest.mark.parametrize(
    "text",
    [
        "no head",
        "---\n: [\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: {a: b}\nlanguage: 3\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['touch bad']\n---\n",
        f"---\nlicense: {'x' * 500}\n---\n",
        "---\n" + "[" * 500 + "\n---\n",
    ],
)
def test_a_strangers_head_is_data_or_nothing(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(text)
    assert base_card(tmp_path) == {} and not (tmp_path / "bad").exists()


def test_a_name_cannot_write_the_card_and_paths_stay_here(tmp_path):
    evil = {
        "model": '/x/m\n---\nlicense: mit\n"<script>`|',
        "method": "a|b",
        "data": "x: y\n- z",
        "command": "o1core 'a\nb'",
    }
    text = card(evil, {}, None, adapter=False)
    assert yaml.safe_load(text.split("---\n")[1]).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "<script>" not in text.replace("\\<script>", "")
    mine = {"reward": "/home/me/secret/mine.py:f", "data": "/home/me/secret/x.jsonl", "command": "o1core 'x"}
    assert "secret" not in card(mine, {}, None, adapter=False) and "mine.py:f" in card(mine, {}, None, adapter=False)
    write_record(tmp_path / "settings.json", mine | {"eval_data": ["/home/me/secret/y.jsonl"], "system": "/no_think"})
    held = dict(settings_of(RunFolder(tmp_path)))
    assert (held["reward"], held["data"], held["command"]) == ("mine.py:f", "x.jsonl", "")
    assert (held["eval_data"], held["system"]) == ('["y.jsonl"]', "/no_think")
    assert without_places("o1core prune --out=/home/me/secret --lr=1") == "o1core prune --out=secret --lr=1"
    assert without_places("o1core prune --model /home/me/M --out runs/x") == "o1core prune --model M --out runs/x"
